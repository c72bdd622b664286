"""Check ``conduct``: what a rule never does, and what follows from it for those who use rules, a topic a function.

`topics` has the cases, `probing` what the topics share.
"""
