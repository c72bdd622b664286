"""How a rule enters the backward pass. Arrows go from here to ``evaluate``, never back."""

from lrp_rules.hooks.hook import BasicHook, Hook, LayerHook
from lrp_rules.hooks.registration import Registration

__all__ = ["BasicHook", "Hook", "LayerHook", "Registration"]
