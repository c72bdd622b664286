"""The checks: each puts questions to a subject and turns the answers into findings; `cases` has them all.

Imports subjects, questions and formats; runs ask what is here.
"""
