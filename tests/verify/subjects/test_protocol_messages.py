"""The lines of the process protocol: the schema and the code say the same of what may be written and read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from verify.subjects import protocol
from verify.subjects.protocol import messages
from verify.subjects.protocol.messages import Errored, MessageError, Skipped

SCHEMA = Path(protocol.__file__).parent / "lrp-port-1.schema.json"


def validator(name: str) -> Any:
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator({**schema, "anyOf": [{"$ref": f"#/$defs/{name}"}]})


def test_requests_are_what_the_schema_says() -> None:
    tensors = {"x": np.zeros((1, 2), np.float32), "R": np.ones((1, 2), np.uint16)}
    given = {"low": np.zeros((1, 2)), "high": float("inf"), "stabilizer": float("nan"), "zero_params": ["bias"]}
    line = messages.case(1, "an id", "ZBox", given, {"type": "Linear"}, tensors)
    assert json.loads(line)["parameters"]["high"] == "Infinity"
    assert json.loads(line)["parameters"]["stabilizer"] == "NaN"
    for request in (messages.start("lrp-verify"), line, messages.stop()):
        assert b"\n" not in request
        validator("request").validate(json.loads(request))


@pytest.mark.parametrize(
    "answer",
    [
        {"seq": 1, "skipped": "why", "link": "https://example.org"},
        {"seq": 1, "skipped": "why"},
        {"seq": 1, "error": "value", "message": "given 1", "context": "line 7"},
        {"seq": 1, "error": "other", "message": ""},
        {"seq": 1, "relevance": {"dtype": "float32", "shape": [1], "order": "C", "hex": "0000803f"}},
    ],
    ids="-".join,
)
def test_answers_that_the_schema_takes_are_read(answer: dict[str, Any]) -> None:
    validator("answer").validate(answer)
    found = messages.read_case(json.dumps(answer).encode(), 1)
    assert isinstance(found, Skipped | Errored | np.ndarray)


@pytest.mark.parametrize(
    "answer",
    [
        {"seq": 1},
        {"seq": "1", "skipped": "why"},
        {"seq": 1, "skipped": 3},
        {"seq": 1, "skipped": "why", "error": "other"},
        {"seq": 1, "error": "other"},
        {"seq": 1, "relevance": [0.5]},
        {"seq": 1, "relevance": {"dtype": "float32", "shape": [1], "order": "F", "hex": "0000803f"}},
        {"seq": 1, "relevance": {"dtype": "float32", "shape": [-1], "order": "C", "hex": ""}},
    ],
    ids=repr,
)
def test_answers_that_the_schema_refuses_are_refused(answer: dict[str, Any]) -> None:
    assert not validator("answer").is_valid(answer)
    with pytest.raises(MessageError):
        messages.read_case(json.dumps(answer).encode(), 1)
