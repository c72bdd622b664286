"""How the parts of a rule are computed: as declared, or in ways that are faster. Nothing here knows a hook."""
