"""How the parts of a rule are computed: as declared, or in faster ways. Independent of hooks."""
