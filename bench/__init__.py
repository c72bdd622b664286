"""The clock: how fast the rules are, and how much memory they take. Whether they are right is asked of `verify`."""
