"""What is known of failures: the variant of a rule that explains them, and the known deviations of libraries.

Imports checks and what is below them; reports are above.
"""
