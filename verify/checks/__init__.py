"""The checks: each turns a question to a subject into a Finding. No formula of a rule is here."""
