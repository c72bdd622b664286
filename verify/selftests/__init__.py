"""The verifier on trial: mistakes made by hand and by machine, each of which has to be found.

Imports runs and what is below them; only the command imports it.
"""
