"""How a rule enters the backward pass. Nothing here knows the parts of a rule."""

from lrp_rules.hooks.hook import BasicHook, Hook, LayerHook
from lrp_rules.hooks.registration import Registration

__all__ = ["BasicHook", "Hook", "LayerHook", "Registration"]
