"""What the lines hold: three requests, and what may come back. Any other line is named, never guessed at."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from verify.formats.tensor_json import TensorError, decode, encode
from verify.model import SubjectError
from verify.questions.fixed import checked
from verify.subjects.protocol import PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

#: Which errors a port tells apart; any other kind is a failure of its own.
KINDS = ("value", "type", "missing")
_SHOWN = 80


class MessageError(ValueError):
    """A line that is not what was asked for; the message says what was given and what was expected."""


@dataclass(frozen=True)
class Started:
    """Who answers, and what it offers. ``functions`` are those of the layer Elementwise."""

    name: str
    version: str
    language: str
    rules: tuple[str, ...]
    layers: tuple[str, ...]
    functions: tuple[str, ...]
    dtypes: tuple[str, ...]
    #: Parameters that it cannot change, rule by rule.
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A case that the port does not answer, and why; the link leads to where that is discussed, if anywhere."""

    reason: str
    link: str = ""


@dataclass(frozen=True)
class Errored:
    """An error instead of a relevance: of the question (``KINDS``), or of the port."""

    kind: str
    message: str
    context: str = ""


def start(verifier: str) -> bytes:
    """Return the first request."""
    return _line({"do": "start", "protocol": PROTOCOL, "verifier": verifier})


def case(
    seq: int, id_: str, rule: str, parameters: Mapping[str, Any], layer: Mapping[str, Any], tensors: Mapping[str, Any]
) -> bytes:
    """Return the request for one relevance; arrays become tensors in JSON, and what JSON has no number for a string."""
    return _line(
        {
            "do": "case",
            "seq": seq,
            "id": id_,
            "rule": rule,
            "dtype": encode(tensors["x"])["dtype"],
            "parameters": {name: _plain(value) for name, value in parameters.items()},
            "layer": layer,
            "tensors": {name: encode(value) for name, value in tensors.items()},
        }
    )


def stop() -> bytes:
    """Return the last request."""
    return _line({"do": "stop"})


def read_start(line: bytes) -> Started:
    """Read the answer to `start`; MessageError if it is none, or that of another version."""
    found = _object(line)
    if found.get("protocol") != PROTOCOL:
        message = f"protocol is {_short(found.get('protocol'))}, expected {PROTOCOL}: the version that start asked for"
        raise MessageError(message)
    _keys(
        found,
        {"protocol", "name", "version", "language", "rules", "layers", "dtypes"},
        {"functions", "homepage", "parameters"},
    )
    name, version, language = (_text(found, key) for key in ("name", "version", "language"))
    rules, layers, functions, dtypes = (_names(found, key) for key in ("rules", "layers", "functions", "dtypes"))
    try:
        parameters = checked(name, found.get("parameters", {}))
    except SubjectError as error:
        raise MessageError(str(error)) from error
    return Started(name, version, language, rules, layers, functions, dtypes, parameters)


def read_case(line: bytes, seq: int) -> NDArray[Any] | Skipped | Errored:
    """Read the answer to the case of that number; MessageError if it is none, or that to another."""
    found = _object(line)
    if "seq" not in found or found["seq"] != seq or type(found["seq"]) is not int:
        raise MessageError(_wrong_seq(found, seq))
    match [name for name in ("relevance", "skipped", "error") if name in found]:
        case ["relevance"]:
            _keys(found, {"seq", "relevance"}, set())
            try:
                return decode(found["relevance"])
            except TensorError as error:
                message = f"relevance: {error}"
                raise MessageError(message) from error
        case ["skipped"]:
            _keys(found, {"seq", "skipped"}, {"link"})
            return Skipped(_text(found, "skipped"), _text(found, "link"))
        case ["error"]:
            _keys(found, {"seq", "error", "message"}, {"context"})
            return Errored(_text(found, "error"), _text(found, "message"), _text(found, "context"))
    message = f"has the keys {sorted(found)}, expected seq and one of relevance, skipped, error"
    raise MessageError(message)


def read_stop(line: bytes) -> None:
    """Read the answer to `stop`; MessageError if it is none."""
    found = _object(line)
    if found != {"stopped": True}:
        message = f'is {_short(found)}, expected {{"stopped": true}}'
        raise MessageError(message)


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, allow_nan=False, separators=(", ", ": ")).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return encode(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        message = f"is no JSON ({error}): {_short(line.decode('utf-8', 'replace'))}"
        raise MessageError(message) from error
    if not isinstance(found, dict):
        message = f"is {_short(found)}, expected an object"
        raise MessageError(message)
    return found


def _no_number(text: str) -> Any:
    message = f"{text} is no number in JSON; hex carries it"
    raise ValueError(message)


def _wrong_seq(found: Mapping[str, Any], seq: int) -> str:
    given = found.get("seq")
    if type(given) is not int:
        return f"has seq {_short(given)}, expected {seq}, the number of the case"
    if given < seq:
        return f"answers case number {given} again, or late: expected number {seq}, out of order"
    return f"answers case number {given}, which was not asked yet: expected number {seq}, out of order"


def _keys(found: Mapping[str, Any], needed: set[str], optional: set[str]) -> None:
    if not needed <= set(found) <= needed | optional:
        more = f" and perhaps {sorted(optional)}" if optional else ""
        message = f"has the keys {sorted(found)}, expected {sorted(needed)}{more}"
        raise MessageError(message)


def _text(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name, "")
    if not isinstance(value, str):
        message = f"{name} is {_short(value)}, expected text"
        raise MessageError(message)
    return value


def _names(found: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = found.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        message = f"{name} is {_short(value)}, expected a list of names"
        raise MessageError(message)
    return tuple(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
