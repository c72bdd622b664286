"""The corpus as files: what each holds, and the one way in which it is written.

A file is written the same way always: keys in a fixed order, what fits on a line on one line, tensors on one line each,
so that a change shows as what it is. Reading a file and writing it again gives its bytes.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np

from reference.windows import Array
from verify.formats import headers
from verify.formats.tensor_json import decode, encode, widen
from verify.vectors import CORPUS_VERSION, SCHEMA_VERSION, networks
from verify.vectors.answers import SINKS, expected
from verify.vectors.parameters import GRADIENT_RULES, Parameters, resolved
from verify.vectors.questions import Question, layer_at, questions

#: The JSON Schema of the files of vectors, which lies beside them.
SCHEMA_NAME = "vectors-1.schema.json"
#: The longest tensor that may stand inside a file, in bytes.
LARGEST = 4096

_WIDTH = 100
Json = dict[str, Any]


class CorpusError(Exception):
    """A corpus that may not be written as it is; the message says why."""


def dump(value: object) -> str:
    """Return a file's text."""
    return "\n".join(_lines(value)) + "\n"


def _lines(value: object) -> Iterator[str]:
    plain = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not isinstance(value, dict | list) or len(plain) <= _WIDTH or (isinstance(value, dict) and "hex" in value):
        yield plain
        return
    brackets = "{}" if isinstance(value, dict) else "[]"
    yield brackets[0]
    items = (
        [(f"{json.dumps(key, ensure_ascii=False)}: ", item) for key, item in value.items()]
        if isinstance(value, dict)
        else [("", item) for item in value]
    )
    for number, (head, item) in enumerate(items, 1):
        inner = list(_lines(item))
        inner[0] = head + inner[0]
        inner[-1] += "," * (number < len(items))
        yield from (f" {line}" for line in inner)
    yield brackets[1]


def documents() -> dict[str, Json]:
    """Return every file of vectors by name."""
    found: dict[str, list[Question]] = {}
    for question in chain(questions(), networks.questions()):
        found.setdefault(f"{question.rule.lower()}-{question.family}.json", []).append(question)
    return {name: _document(asked) for name, asked in found.items()}


def _document(asked: list[Question]) -> Json:
    groups: dict[str, Json] = {}
    for question in asked:
        parameters = written(resolved(question.parameters, question.tensors["x"].shape))
        key = json.dumps([parameters, question.layer.options])
        group = groups.setdefault(key, {"parameters": parameters, "layer": question.layer.options, "cases": []})
        group["cases"].append(case_of(question))
    rule, family = asked[0].rule, asked[0].family
    flags = {flag for group in groups.values() for case in group["cases"] for flag in case["flags"]}
    return {
        "$schema": SCHEMA_NAME,
        "schema_version": SCHEMA_VERSION,
        "corpus_version": CORPUS_VERSION,
        "rule": rule,
        "family": family,
        **headers.header(rule),
        "notes": headers.notes(flags),
        "cases": len(asked),
        "groups": list(groups.values()),
    }


def written(parameters: Parameters) -> Parameters:
    """Return parameters in JSON: a bound that is an array becomes a tensor."""
    return {name: encode(value) if isinstance(value, np.ndarray) else value for name, value in parameters.items()}


def read(parameters: Parameters) -> Parameters:
    """Return what `written` wrote."""
    return {
        name: widen(decode(value)) if isinstance(value, dict) and "hex" in value else value
        for name, value in parameters.items()
    }


def case_of(question: Question) -> Json:
    """Return a case with its answer, in JSON."""
    head: Json = {"id": question.id, "comment": question.comment, "flags": list(question.flags)}
    answer: Json
    tensors = {name: _tensor(values.astype(question.dtype)) for name, values in _ordered(question.tensors)}
    body: Json = {"dtype": question.dtype, "result": "valid", "tensors": tensors}
    if question.error is not None:
        answer = {"error": question.error} if question.must else {"advice": question.error}
        return head | body | {"result": "invalid" if question.must else "implementation-defined"} | answer
    x, R = question.tensors["x"], question.tensors["R"]
    layer = layer_at(question.layer.options, question.tensors)
    found = expected(question.rule, layer, resolved(question.parameters, x.shape), x, R, question.dtype)
    if found.poles:
        return head | {"flags": [*question.flags, "Pole"]} | body | {"result": "implementation-defined"}
    if not np.isfinite(found.relevance).all():
        message = f"{question.id}: the expected relevance is not finite; ask for something else"
        raise CorpusError(message)
    if found.inconclusive:
        head["flags"] = [*dict.fromkeys([*question.flags, "Undecided"])]
    answer = {
        "relevance": _tensor(found.relevance),
        "bound": _tensor(found.bound.astype(np.float32)),
        "inconclusive": found.inconclusive,
    }
    if question.rule not in GRADIENT_RULES:
        answer["ledger"] = {name: [one[name] for one in found.sinks] for name in SINKS}
    return head | body | answer


def _ordered(tensors: dict[str, Array]) -> Iterable[tuple[str, Array]]:
    order = (
        "x",
        "weight",
        "bias",
        "running_mean",
        "running_var",
        *sorted(n for n in tensors if n[:9] == "constant_"),
        "R",
    )
    return ((name, tensors[name]) for name in order if name in tensors)


def _tensor(values: Array) -> Json:
    if values.nbytes > LARGEST:
        message = f"a tensor of {values.nbytes} bytes; the corpus holds none above {LARGEST}: ask on a smaller layer"
        raise CorpusError(message)
    return encode(values)
