"""Cases are selected and asked, each in a worker, where whatever happens becomes an outcome.

Imports checks and what is below them, and nothing of what is made of outcomes.
"""
