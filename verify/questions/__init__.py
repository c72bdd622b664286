"""What is asked: layers, parameters of rules, data, the grid of them, examples that a search draws or has found.

Imports nothing above it: a question does not know who is asked, nor what the right answer is.
"""
