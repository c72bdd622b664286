"""What explains a network: how it is entered, and how the relevance that it carries is read.

A pipeline is a context manager in which the model is called. Most hand relevance from operation to operation, as
`attach` and zennit do. Some hand on relevance divided by the value that it belongs to ("gradient times input", as the
efficient half of LXT): there the relevance of a tensor is what arrives at it times its value.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import types
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrp_rules import attach
from verify.model import SubjectError
from verify.subjects.loading import named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


_CAPTUM = (
    "captum's LRP cannot be audited: it calls the model twice, the second time with other weights, and multiplies by "
    "the input in hooks on tensors, so that an operation has its relevance on one side only. Its rules are tested by "
    "lrp-verify --subject verify.subjects.captum"
)


@dataclass(frozen=True)
class Pipeline:
    """What explains a network; for `audit`, where a context manager alone does not say enough."""

    name: str
    #: Is given the model, and returns what the model is called in.
    context: Callable[[nn.Module], AbstractContextManager[Any]]
    #: Gives the input as the pipeline wants it.
    wrapped: Callable[[Tensor], Tensor] = lambda x: x
    #: Is given the output, and returns what the backward pass is to be in.
    backward: Callable[[Tensor], AbstractContextManager[Any]] = lambda _output: nullcontext()
    #: Whether it hands on R / z: the relevance of a tensor is what arrives there times its value.
    times_input: bool = False


def pipeline_of(given: Any, rules: Any) -> Pipeline:
    """Return the pipeline that is meant by an argument of `audit`."""
    if given is None:
        return Pipeline("attach", lambda model: _only(attach(model, rules)))
    if isinstance(given, Pipeline):
        return given
    if isinstance(given, str):
        return _by_name(given)
    if type(given).__module__.startswith("captum.") or str(getattr(given, "__module__", "")).startswith("captum."):
        raise ValueError(_CAPTUM)
    if not callable(given):
        msg = f"the pipeline is {given!r}; expected a callable that is given the model and returns a context manager"
        raise TypeError(msg)
    owner = getattr(given, "__self__", None)
    name = getattr(given, "__name__", type(given).__name__)
    if owner is not None and not inspect.ismodule(owner):
        name = f"{type(owner).__module__.split('.')[0]}.{type(owner).__name__}"
    return Pipeline(name, given)


def _by_name(spec: str) -> Pipeline:
    kind, _, rest = spec.partition(":")
    if spec in {"gradient", "gradient*input"}:
        return Pipeline(spec, lambda _model: nullcontext(), times_input=spec != "gradient")
    if kind == "captum":
        raise ValueError(_CAPTUM)
    if kind == "autolrp":
        return _autolrp(spec, rest)
    if kind == "lxt" and rest:
        return Pipeline(spec, lambda _model: _patched_by_lxt(rest), times_input=True)
    if kind == "zennit" and rest:
        return _zennit(rest)
    if not rest:
        msg = (
            f"the pipeline is {spec!r}; expected gradient, gradient*input, zennit:COMPOSITE, autolrp, lxt:MODULE, or "
            "MODULE:CONTEXT for a callable that is given the model and returns a context manager"
        )
        raise ValueError(msg)
    try:
        return pipeline_of(named(spec), None)
    except SubjectError as error:
        raise ValueError(str(error)) from error


def _library(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        msg = f"{package} is needed for this pipeline ({error}): pip install {package}"
        raise ImportError(msg) from error


@contextmanager
def _only(attachment: AbstractContextManager[Any]) -> Iterator[None]:
    with attachment:
        yield


# --- zennit -----------------------------------------------------------------------------------------------------------


def _zennit(spec: str) -> Pipeline:
    name, *canonizers = spec.split("+")
    composites = _library("zennit.composites", "zennit")
    found = []
    if canonizers:
        places = [importlib.import_module(module) for module in ("zennit.canonizers", "zennit.torchvision")]
        for one in canonizers:
            place = next((place for place in places if hasattr(place, one.partition("(")[0])), places[0])
            found.append(made(one, place))
    composite = made(name, composites, **({"canonizers": found} if found else {}))
    return Pipeline(f"zennit:{spec}", composite.context)


# --- autoLRP ----------------------------------------------------------------------------------------------------------


def _autolrp(name: str, preset: str) -> Pipeline:
    """AutoLRP 0.2: a subclass of Tensor at the input, and hooks on the nodes of autograd before the backward pass."""
    library = _library("autolrp", "autolrp")
    engine: Any = importlib.import_module("autolrp.backward.engine")
    analysis: Any = importlib.import_module("autolrp.backward.analysis")
    installers: Any = importlib.import_module("autolrp.backward.strategies").INSTALLERS
    config = made(preset or "composite", library.LRPConfig)

    @contextmanager
    def backward(output: Tensor) -> Iterator[None]:
        handles: list[Any] = []
        try:
            plan = engine.walk(output, strategy=installers, config=config)
            analysis.run(plan)
            for node, installer in plan:
                found = None if installer is None else installer(node, config)
                handles += [] if found is None else found if isinstance(found, (list, tuple)) else [found]
            yield
        finally:
            for handle in handles:
                handle.remove()

    return Pipeline(name, lambda _model: nullcontext(), library.tensor, backward)


# --- LXT --------------------------------------------------------------------------------------------------------------


@contextmanager
def _patched_by_lxt(spec: str) -> Iterator[None]:
    """Let LXT's efficient half patch the classes of a module of Python, and take the patches back."""
    lxt, module = _library("lxt.efficient", "lxt"), _library(spec, spec.partition(".")[0])
    classes = [torch.nn, *(value for value in (module, *vars(module).values()) if isinstance(value, types.ModuleType))]
    kinds = {
        value
        for place in classes
        for value in vars(place).values()
        if isinstance(value, type) and issubclass(value, nn.Module)
    }
    before = {kind: dict(vars(kind)) for kind in kinds}
    names = dict(vars(module))
    try:
        lxt.monkey_patch(module)
        yield
    finally:
        for kind, own in before.items():
            now = dict(vars(kind))
            for name in now.keys() - own.keys():
                delattr(kind, name)
            for name in own:
                if now.get(name) is not own[name]:
                    setattr(kind, name, own[name])
        vars(module).update(names)


# --- names ------------------------------------------------------------------------------------------------------------


def made(call: str, place: Any, **more: Any) -> Any:
    """Return what a call such as 'EpsilonGammaBox(-3, high=3)' makes of the attribute of a module or class.

    Raises
    ------
    ValueError
        If there is none of this name, or it cannot be made so.

    """
    name, _, arguments = call.partition("(")
    kind = getattr(place, name.strip(), None)
    if kind is None:
        own = (one for one in vars(place).values() if getattr(one, "__module__", "") == place.__name__)
        known = ", ".join(sorted(one.__name__ for one in own if isinstance(one, type)))
        msg = f"{place.__name__} has no {name!r}{f'; it has {known}' if known else ''}"
        raise ValueError(msg)
    try:
        parsed: Any = ast.parse(f"f({arguments.rstrip().removesuffix(')')})", mode="eval").body
        args = [ast.literal_eval(arg) for arg in parsed.args]
        kwargs = {arg.arg: ast.literal_eval(arg.value) for arg in parsed.keywords}
        return kind(*args, **kwargs, **more)
    except (SyntaxError, TypeError, ValueError) as error:
        msg = f"{call} cannot be made: {error}"
        raise ValueError(msg) from error
