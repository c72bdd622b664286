"""How a subject comes to be: anything that has the rule classes of the API as attributes is imported or started."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from lrp_entry.names import NAMES
from verify.formats.text import shortened, text_of
from verify.model import NETWORK_RULES, RULES, Subject, SubjectError
from verify.questions.fixed import checked
from verify.subjects.protocol import is_command, port


def load(spec: str) -> Subject:
    """Import a subject given as ``MODULE`` or ``MODULE:ATTRIBUTE``, or start that of ``command:COMMAND``.

    Raises
    ------
    SubjectError
        If it cannot be imported, or has no rule of the API.

    """
    if is_command(spec):
        return port.load(spec)
    namespace, module_name = named(spec), spec.partition(":")[0]
    if not any(hasattr(namespace, rule) for rule in (*RULES, *NETWORK_RULES)):
        msg = (
            f"{spec!r} has none of the classes {', '.join(RULES)}; name the module or object that has them, "
            f"or write an adapter (docs/how-to/adapter.md){_hint(module_name)}"
        )
        raise SubjectError(msg)
    version = shortened(str(getattr(namespace, "__version__", None) or _version(module_name)))
    given = getattr(namespace, "parameters", {})
    # a library may have a function or a module of that name, which says nothing to us
    parameters = {} if callable(given) or isinstance(given, ModuleType) else checked(spec, given)
    return Subject(spec, namespace, version, parameters=parameters)


def named(spec: str) -> Any:
    """Import what is named ``MODULE`` or ``MODULE:ATTRIBUTE``, also from the folder of the call.

    Raises
    ------
    SubjectError
        If it cannot be imported.

    """
    module_name, _, attribute = spec.partition(":")
    if not module_name:
        msg = f"{spec!r} names no module; expected MODULE or MODULE:ATTRIBUTE, such as lrp_rules or zennit.rules"
        raise SubjectError(msg)
    # as `python -m` would: a subject in the folder of the call needs no installation
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        namespace = _import(module_name)
        for part in filter(None, attribute.split(".")):
            namespace = getattr(namespace, part)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        hint = _taken(error) or _hint(module_name)
        msg = f"{spec!r} cannot be imported: {type(error).__name__}: {shortened(text_of(error))}{hint}"
        raise SubjectError(msg) from error
    finally:
        if added:
            sys.path.remove(here)
    return namespace


def _hint(module_name: str) -> str:
    """What to do about the likeliest mistakes: a file in place of a module, a library that needs its adapter."""
    if module_name.endswith(".py"):
        name = module_name.removesuffix(".py").strip("./").replace("/", ".")
        return f"; expected the name of a module, without .py: {name}"
    library = module_name.partition(".")[0]
    adapter = f"verify.subjects.{library}" if library in {"autolrp", "captum", "lxt"} else None
    if adapter:
        return f"; the classes of this library are tested through an adapter, {adapter}"
    return ""


def _taken(error: BaseException) -> str:
    """What to do where a subject imports a package of its own that has the name of one of ours."""
    name = (getattr(error, "name", None) or "").partition(".")[0]
    if name not in NAMES:
        return ""
    return f"; {', '.join(NAMES)} are packages of lrp-rules here; expected another name for that of the subject"


def _version(module_name: str) -> str:
    package = module_name.split(".", maxsplit=1)[0]
    own = getattr(sys.modules.get(package), "__version__", None)
    if isinstance(own, str):
        return own
    distributions = importlib.metadata.packages_distributions().get(package, [])
    return importlib.metadata.version(distributions[0]) if distributions else "unknown"


_OPERATORS: list[Any] = []


def _import(name: str) -> Any:
    """Import a module, with help where torchvision, which zennit imports, cannot load its compiled operators.

    They cannot with a CPU build of torch and the torchvision of PyPI. zennit uses none of them: declared is enough.
    """
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _OPERATORS:
            raise
    package = name.split(".", maxsplit=1)[0]
    for loaded in [module for module in sys.modules if module.split(".")[0] in {"torchvision", package}]:
        del sys.modules[loaded]
    _OPERATORS.append(library := torch.library.Library("torchvision", "FRAGMENT"))
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module(name)
