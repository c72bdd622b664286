"""The ways in: the commands, the plugin of pytest, and what `lrp_rules.testing` loads.

They stand under a name of their own, because a user's repository may well have a folder or a file `verify`, `bench` or
`reference`, which Python would find before ours. Nothing here imports the other packages before it is told to, and then
by `importlib`, with their names pinned (`names`): so any of them may use this one, and no import goes round in circles.
"""
