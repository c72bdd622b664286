"""Combinations of options: each pair of levels of two factors is asked together, and with ``--depth 3`` each triple.

Mistakes sit where two options meet. `factors` says what can be asked, `arrays` reads the rows that cover all pairs,
`windows`, `others` and `numbers` turn a row into a layer, the arguments of a rule and data.
"""
