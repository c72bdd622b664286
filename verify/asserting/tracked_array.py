"""Arrays of numbers that know how far rounding may have taken them (`tracked`), for formulas in NumPy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from verify.asserting.tracked import Decision, Tracked, slack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import ArrayLike, NDArray

    from reference.precision import Model

    Floats = NDArray[np.float64]


def _pair(a: Any, b: Any) -> tuple[Any, Any]:
    """Make both tracked if one is."""
    model = next((v.model for v in (a, b) if isinstance(v, Tracked | Decision)), None)
    return (a, b) if model is None else (Tracked.of(a, model), Tracked.of(b, model))


def _extremum(a: Any, b: Any, *, larger: bool) -> Any:
    a, b = _pair(a, b)
    first = (a >= b) if larger else (a <= b)
    if not isinstance(first, Decision) or first.decided:
        return a if first else b
    nearest = a if first.value else b
    size = max(abs(a.value), abs(b.value))
    return Tracked(nearest.value, size, 1.0, max(a.off, b.off), 0.0, a.model)


def _sign(a: Any) -> Any:
    if not isinstance(a, Tracked):
        return float(np.sign(a))
    sign = Tracked.of(float(np.sign(a.value)), a.model)
    return sign if a.finish().farther(a.off) else Tracked(sign.value, 1.0, 1.0, math.inf, 0.0, a.model)


def _choose(condition: Any, a: Any, b: Any) -> Any:
    if isinstance(condition, Tracked):
        condition = condition != 0
    return condition.choose(a, b) if isinstance(condition, Decision) else a if condition else b


def _and(a: Any, b: Any) -> Any:
    return a & b if isinstance(a, Decision) or isinstance(b, Decision) else bool(a and b)


def _not(a: Any) -> Any:
    return ~a if isinstance(a, Decision) else (a == 0)


_OWN: Mapping[Any, Any] = {
    np.maximum: np.frompyfunc(lambda a, b: _extremum(a, b, larger=True), 2, 1),
    np.minimum: np.frompyfunc(lambda a, b: _extremum(a, b, larger=False), 2, 1),
    np.sign: np.frompyfunc(_sign, 1, 1),
    np.heaviside: np.frompyfunc(lambda a, h: _choose(a < 0, 0.0, _choose(a > 0, 1.0, h)), 2, 1),
    np.copysign: np.frompyfunc(lambda a, b: _choose(b < 0, -abs(a), abs(a)), 2, 1),
    np.logical_and: np.frompyfunc(_and, 2, 1),
    np.logical_or: np.frompyfunc(lambda a, b: _not(_and(_not(a), _not(b))), 2, 1),
    np.logical_not: np.frompyfunc(_not, 1, 1),
}
_COMPARISONS = frozenset({np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal})
_where = np.frompyfunc(_choose, 3, 1)


class TrackedArray(np.ndarray[Any, Any]):
    """An array of objects, most of them tracked numbers or decisions on such."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        """Keep decisions as they are, where NumPy would ask for true or false."""
        if ufunc in _COMPARISONS and method == "__call__":
            options["dtype"] = object
        if out is not None:
            options["out"] = tuple(_plain(array) for array in out)
        with np.errstate(all="ignore"):  # an infinite error is no mistake
            result = getattr(_OWN.get(ufunc, ufunc), method)(*map(_plain, inputs), **options)
        return _wrapped(result) if out is None else out[0]

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        """Choose without asking for true or false."""
        with np.errstate(all="ignore"):
            if function is np.where and len(arguments) == 3:
                return _wrapped(_where(*map(_plain, arguments)))
            if function is np.clip:
                return _wrapped(arguments[0]).clip(*arguments[1:], **options)
            return _wrapped(super().__array_function__(function, types, arguments, options))

    def clip(self, min: Any = None, max: Any = None, **_: Any) -> Any:  # type: ignore[override]  # noqa: A002
        """Return max(min(self, max), min)."""
        result: Any = self if max is None else np.minimum(self, max)
        return result if min is None else np.maximum(result, min)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(_indices(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(_indices(key), value)


def _indices(key: Any) -> Any:
    """Return decisions as a mask, if they are decided."""
    if isinstance(key, TrackedArray):
        return _plain(key).astype(np.bool_)
    return tuple(map(_indices, key)) if isinstance(key, tuple) else key


def _plain(array: Any) -> Any:
    return array.view(np.ndarray) if isinstance(array, TrackedArray) else array


def _wrapped(result: Any) -> Any:
    return result.view(TrackedArray) if isinstance(result, np.ndarray) and result.dtype == object else result


class Matrix(TrackedArray):
    """A matrix A(w) that also offers A(f(w)), as ``of(f)``; what is computed from it is a plain array."""

    _of: Callable[[Any], Matrix] | None = None

    def of(self, change: Callable[[Any], Any]) -> Matrix:
        """Return the matrix of the changed parameter."""
        if self._of is None:
            msg = "of() belongs to the matrix A that the formula is given; write A.of(change).T for a transposed one"
            raise AttributeError(msg)
        return self._of(change)

    @staticmethod
    def gathered(build: Callable[[Floats], Floats], weight: TrackedArray, model: Model) -> Matrix:
        """Return build(weight), where build adds up parameters in its entries, and each is A(f(w)) for some f."""

        def matrix(parameter: Any) -> Matrix:
            numbers = exact(parameter, model)
            if numbers.shape != weight.shape:
                msg = f"a change of the weight gives shape {numbers.shape}, expected that of the weight, {weight.shape}"
                raise ValueError(msg)
            fields = [build(_field(numbers, name)) for name in ("value", "size", "terms", "error")]
            grain = float(_field(numbers, "grain").min(initial=math.inf))  # of all, which is on the safe side
            made: Any = np.empty(fields[0].shape, object)
            made.ravel()[:] = [
                Tracked(value, size, terms, error, grain if size else math.inf, model)
                for value, size, terms, error in zip(*(field.ravel().tolist() for field in fields), strict=True)
            ]
            made = made.view(Matrix)
            made._of = lambda change: matrix(change(weight))  # noqa: SLF001  its own
            return made  # type: ignore[no-any-return]

        return matrix(weight)


def _field(numbers: Any, name: str) -> Floats:
    flat = [getattr(number, name) for number in _plain(numbers).ravel()]
    return np.array(flat, np.float64).reshape(numbers.shape)


def exact(values: ArrayLike, model: Model) -> TrackedArray:
    """Return numbers as tracked ones, those that are tracked already as they are."""
    given = _plain(np.asarray(values) if not isinstance(values, np.ndarray) else values)
    made = np.empty(given.shape, object)
    made.ravel()[:] = [Tracked.of(value, model) for value in given.ravel()]
    return made.view(TrackedArray)


def bound(result: Any, model: Model) -> tuple[Floats, Floats]:
    """Return the values of a result, and how far an implementation may be from these; inf where it is undecided."""
    numbers = exact(result, model)
    values, off = _field(numbers, "value"), _field(numbers, "off")
    return values, np.where(np.isfinite(values), off * slack(model), np.inf)
