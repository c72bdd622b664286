"""Rules on whole networks: on modules, on the functions between them, and on batch norms that are folded."""
