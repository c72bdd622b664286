"""Holds any implementation of LRP rules to the reference: run ``lrp-verify``."""
