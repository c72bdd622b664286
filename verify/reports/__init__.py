"""What a run comes to, on a terminal, in files, as a badge, and as the published table.

Imports all that an answer has gone through; only those who ask for a report import it.
"""
