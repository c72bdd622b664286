"""How things are written: tensors and layers as plain data, numbers and lines as people read them, files, versions.

Imports no other room.
"""
