"""Layers as matrices that are never formed, and helpers for derivatives, numbers and memory."""
