"""What a subject answers: tensors, which are recorded where the subject is, and handed out where it is judged.

A case that compares numbers is asked in two processes. In that of the subject, each relevance is written down as bytes,
shape and dtype the moment it comes. In that of the judge the same case is asked again, and gets what was written down:
data, expected values and verdict are made there, and nothing of the subject is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from verify.model import Finding, UnansweredError, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

#: The dtypes of what a case may be asked about; of tensors of others, nothing but the dtype is of interest.
_SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


class Enough(BaseException):
    """What was to be recorded is recorded; no check takes it for an exception that it expects."""


class Recorder:
    """Writes down what a subject answers, at most so many times, then raises `Enough`."""

    def __init__(self, most: int | None) -> None:
        self.answers: list[list[dict[str, Any]]] = []
        self.data: list[bytes] = []
        self.asked = False
        self._most = most

    def record(self, answers: Iterable[Any]) -> None:
        """Write down one answer."""
        found = [_written(answer) for answer in answers]
        self.answers.append([head for head, _ in found])
        self.data += [data for _, data in found]
        if len(self.answers) == self._most:
            raise Enough


#: The recorder of the case that is asked, if any.
_recorders: list[Recorder] = []


def recording(recorder: Recorder, run: Callable[[], object]) -> None:
    """Run a case and record what the subject answers in it."""
    _recorders.append(recorder)
    try:
        run()
    except Enough:
        pass
    finally:
        _recorders.clear()


def is_recording() -> bool:
    """Whether this is the process of the subject: the verdict is made elsewhere."""
    return bool(_recorders)


@dataclass(frozen=True)
class Answered:
    """Stands for a rule whose answers are known."""

    answers: Answers


def is_answered(rule: Any) -> bool:
    """Whether a rule's next answer is known, and is no exception."""
    return isinstance(rule, Answered) and rule.answers.left > 0


class Answers:
    """The answers of one case, in the order in which they were asked for, and what came after them."""

    def __init__(self, answers: Sequence[Sequence[Any]], data: bytes, after: BaseException | None = None) -> None:
        self._left = deque(_read(answers, data))
        self._after = after or _broken("the case asks for more than came")

    @property
    def left(self) -> int:
        """How many there still are."""
        return len(self._left)

    def next(self) -> list[Any]:
        """Return the next answer, or raise what came in its place."""
        if not self._left:
            raise self._after
        return self._left.popleft()


def told(rule: Any, ask: Callable[[], list[Any]]) -> list[Any]:
    """Return what a rule answers: known, or else asked for now."""
    if isinstance(rule, Answered):
        return rule.answers.next()
    if not _recorders:
        return ask()
    recorder = _recorders[-1]
    recorder.asked = True
    answers = ask()
    recorder.record(answers)
    return answers


def _written(answer: Any) -> tuple[dict[str, Any], bytes]:
    if not isinstance(answer, Tensor):
        return {"type": type(answer).__name__}, b""
    head: dict[str, Any] = {"shape": list(answer.shape), "dtype": str(answer.dtype).removeprefix("torch.")}
    if head["dtype"] not in _SIZES:
        return head, b""
    return head, answer.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _read(answers: Sequence[Sequence[Any]], data: bytes) -> Iterable[list[Any]]:
    start = 0
    try:
        for answer in answers:
            found = []
            for head in answer:
                size = _size(head)
                found.append(_one(head, data[start : start + size]))
                start += size
            yield found
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        why = str(error)
        raise _broken(why) from error
    if start != len(data):
        why = f"{len(data)} bytes, where it announced {start}"
        raise _broken(why)


def _size(head: dict[str, Any]) -> int:
    return prod(_shape(head)) * _SIZES.get(head["dtype"], 0) if "type" not in head else 0


def _shape(head: dict[str, Any]) -> list[int]:
    shape = head["shape"]
    if not isinstance(shape, list) or not all(type(length) is int and length >= 0 for length in shape):
        msg = "its shape is no list of numbers"
        raise ValueError(msg)
    return shape


def _one(head: dict[str, Any], data: bytes) -> Any:
    if "type" in head:
        return type(str(head["type"]), (), {})()  # no tensor: of interest is its name alone
    shape, name = _shape(head), head["dtype"]
    dtype = getattr(torch, name)
    if name not in _SIZES or not data:
        empty = torch.empty(shape, dtype=dtype, device="meta" if name not in _SIZES else "cpu")
        if name in _SIZES and empty.numel():
            msg = "there are no numbers"
            raise ValueError(msg)
        return empty
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def _broken(why: str) -> UnansweredError:
    return UnansweredError(Finding(Verdict.ERROR, reason=f"the process of the implementation gave no answer: {why}"))
