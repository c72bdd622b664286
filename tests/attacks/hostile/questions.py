"""Two cases for attacks: agreement of Epsilon, which attacks, and of ZPlus, which comes after it."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from verify.checks import agreement
from verify.model import Case, Level
from verify.questions.drawing import draw
from verify.questions.layers import LayerCase
from verify.questions.variants import variant

DTYPES = DEFAULT_DTYPES = ("float64",)
LAYER = LayerCase("linear-5-4", "Linear", partial(nn.Linear, 5, 4), (3, 5))


def all_cases(*, seed: int, dtypes: Sequence[str], device: str) -> tuple[Case, ...]:
    """Both, in float64."""
    problem = partial(draw, LAYER, "signed", "float64", seed, device)
    runs = {rule: partial(agreement.agrees, problem, LAYER, variant(rule), device) for rule in ("Epsilon", "ZPlus")}
    name = f"{LAYER.name}/default/signed/float64"
    return tuple(
        Case(f"agreement/{rule}/{name}", rule, "Linear", "agreement", "float64", Level.MUST, run)
        for rule, run in runs.items()
    )
