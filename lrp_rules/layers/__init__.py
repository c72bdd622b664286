"""Layers as matrices that are never formed, and what is known of passes, numbers and memory for it."""
