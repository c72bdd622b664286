"""What a user calls: the command `lrp-verify` and the plugin of pytest.

Imports all other rooms but the vectors, which have a command of their own; nothing imports it.
"""
