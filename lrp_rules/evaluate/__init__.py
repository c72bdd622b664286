"""How relevance is computed: layers as matrices, and what makes it fast. Nothing here knows a hook."""
