"""The checks: each puts questions to a subject, and turns the answers into findings.

`cases` has all of them. Imports subjects, questions and formats; runs ask what is here.
"""
