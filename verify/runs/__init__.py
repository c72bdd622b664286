"""Cases are selected and asked, each in a worker; whatever happens there becomes an outcome.

Imports checks and what is below them, and nothing of what is made of outcomes.
"""
