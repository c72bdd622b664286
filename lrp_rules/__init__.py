"""Layer-wise Relevance Propagation for PyTorch: rules that replace a module's backward pass.

>>> import torch
>>> layer, x = torch.nn.Linear(3, 2), torch.ones(1, 3, requires_grad=True)
>>> with Epsilon(1e-6).register(layer):
...     output = layer(x)
>>> (relevance,) = torch.autograd.grad(output, x, grad_outputs=output)
>>> relevance.shape
torch.Size([1, 3])
"""

from lrp_rules.evaluate.rewriting import without_rewriting
from lrp_rules.hooks.hook import BasicHook, Hook
from lrp_rules.hooks.registration import Registration
from lrp_rules.network_rules import Bilinear, LayerNormRule, SignalTakesAll, Softmax, Stop, Uniform
from lrp_rules.networks.attaching import Composite, attach
from lrp_rules.networks.attachment import Attachment
from lrp_rules.networks.folding import FoldBatchNorm
from lrp_rules.networks.report import UnruledWarning
from lrp_rules.params import ClampMod, GammaMod, NoMod, ParamMod, zero_bias
from lrp_rules.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Norm,
    Pass,
    ReLUBetaSmooth,
    ReLUDeconvNet,
    ReLUGuidedBackprop,
    WSquare,
    ZBox,
    ZPlus,
)
from lrp_rules.stabilizer import Stabilizer

__all__ = [
    "AlphaBeta",
    "Attachment",
    "BasicHook",
    "Bilinear",
    "ClampMod",
    "Composite",
    "Epsilon",
    "Flat",
    "FoldBatchNorm",
    "Gamma",
    "GammaMod",
    "Hook",
    "LayerNormRule",
    "NoMod",
    "Norm",
    "ParamMod",
    "Pass",
    "ReLUBetaSmooth",
    "ReLUDeconvNet",
    "ReLUGuidedBackprop",
    "Registration",
    "SignalTakesAll",
    "Softmax",
    "Stabilizer",
    "Stop",
    "Uniform",
    "UnruledWarning",
    "WSquare",
    "ZBox",
    "ZPlus",
    "attach",
    "without_rewriting",
    "zero_bias",
]
__version__ = "0.2.0"
