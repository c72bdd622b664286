"""Arrays in JSON, exact to the bit: the form in which vectors, answers and the process protocol carry tensors.

    {"dtype": "float32", "shape": [2, 3], "order": "C", "hex": "<little-endian bytes>", "preview": [0.5, -1.0]}

`hex` is what counts: the bytes of the entries in C order (last axis fastest), little-endian, two lower-case digits a
byte. `preview` shows the first entries to people, as the shortest decimals that read back as the entry in its dtype;
what JSON has no number for stands as the string "NaN", "Infinity" or "-Infinity". An answer may leave it out.

NumPy has no bfloat16: its 16 bits are an array of uint16 here, and `widen` says what they are worth.

>>> import numpy as np
>>> encode(np.array([[1.0, -0.0]], np.float32))
{'dtype': 'float32', 'shape': [1, 2], 'order': 'C', 'hex': '0000803f00000080', 'preview': [1.0, -0.0]}
>>> decode({"dtype": "bfloat16", "shape": [1], "order": "C", "hex": "803f"})
array([16256], dtype=uint16)
>>> widen(_)
array([1.])
"""

import re
from collections.abc import Mapping
from math import isfinite, isnan, prod
from typing import Any

import numpy as np
import numpy.typing as npt

Entries = npt.NDArray[Any]

#: How the entries of each dtype lie in memory.
STORED = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
#: How many entries a preview shows.
SHOWN = 4

_KEYS = ("dtype", "shape", "order", "hex", "preview")
_WORDS = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}
_HEX = re.compile(r"[0-9a-f]*")


class TensorError(ValueError):
    """A tensor that is not in the form; the message says what was given and what was expected."""


def dtype_of(array: Entries) -> str:
    """Return the name of the dtype of an array: uint16 stands for bfloat16."""
    name = "bfloat16" if array.dtype == np.uint16 else array.dtype.name
    if name not in STORED:
        message = f"tensor: given an array of {array.dtype}, expected float64, float32, float16, or uint16 for bfloat16"
        raise TensorError(message)
    return name


def encode(array: Entries) -> dict[str, Any]:
    """Return the form of an array, always the same for the same bits. TensorError for a dtype it does not know."""
    array = np.asarray(array)
    dtype = dtype_of(array)
    data = np.ascontiguousarray(array, STORED[dtype]).tobytes()
    shown = [_shown(value) for value in _decimals(array.ravel()[:SHOWN])]
    return {"dtype": dtype, "shape": list(array.shape), "order": "C", "hex": data.hex(), "preview": shown}


def decode(form: object) -> Entries:
    """Return the array, writable and in native byte order; uint16 for bfloat16.

    TensorError where a key is missing or unknown, where the hex has not as many digits as the shape asks for, or where
    the preview is not what the hex says (every number is rounded to the dtype first, so any correct printing will do).
    """
    if not isinstance(form, Mapping):
        message = f"tensor: given {_short(form)}, expected an object with the keys {', '.join(_KEYS)}"
        raise TensorError(message)
    unknown = sorted(set(form) - set(_KEYS), key=str)
    missing = [key for key in _KEYS[:-1] if key not in form]
    if unknown or missing:
        message = (
            f"tensor: given the keys {sorted(form, key=str)}, expected {', '.join(_KEYS)} (preview may be left out)"
        )
        raise TensorError(message)
    dtype, shape, digits = form["dtype"], form["shape"], form["hex"]
    if not isinstance(dtype, str) or dtype not in STORED:
        message = f"tensor: given dtype {_short(dtype)}, expected one of {', '.join(STORED)}"
        raise TensorError(message)
    if form["order"] != "C":
        message = f'tensor: given order {_short(form["order"])}, expected "C": the last axis runs fastest'
        raise TensorError(message)
    if not isinstance(shape, list | tuple) or not all(type(length) is int and length >= 0 for length in shape):
        message = f"tensor: given shape {_short(shape)}, expected a list of whole numbers, none negative"
        raise TensorError(message)
    array = np.frombuffer(_bytes(digits, dtype, shape), STORED[dtype]).reshape(shape)
    native = array.astype(array.dtype.newbyteorder("="))
    if "preview" in form:
        _check_preview(form["preview"], native)
    return native


def is_canonical(form: object) -> bool:
    """Tell whether a tensor is written just as `encode` writes it. TensorError where it is no tensor at all."""
    own = encode(decode(form))
    return list(own) == list(form) and repr(own) == repr(form)  # type: ignore[call-overload]  # repr: -0.0 is not 0.0


def widen(array: Entries) -> npt.NDArray[np.float64]:
    """Return the entries as float64, which is exact; uint16 are the bits of bfloat16."""
    if dtype_of(array) == "bfloat16":
        return np.asarray(_single(array), np.float64)
    return np.asarray(array, np.float64)


def _single(bits: Entries) -> npt.NDArray[np.float32]:
    """The float32 that begins with these 16 bits."""
    return np.asarray(bits.astype(np.uint32) << 16, np.uint32).view(np.float32)


def _bytes(digits: object, dtype: str, shape: list[int] | tuple[int, ...]) -> bytes:
    if not isinstance(digits, str) or not _HEX.fullmatch(digits):
        message = f"tensor: given hex {_short(digits)}, expected a string of the digits 0-9 and a-f"
        raise TensorError(message)
    expected = 2 * np.dtype(STORED[dtype]).itemsize * prod(shape)
    if len(digits) != expected:
        message = f"tensor: given {len(digits)} digits of hex, expected {expected} for shape {list(shape)} in {dtype}"
        raise TensorError(message)
    return bytes.fromhex(digits)


def _decimals(entries: Entries) -> list[float]:
    """The shortest decimals that read back as the entries in their dtype."""
    values = _single(entries) if entries.dtype == np.uint16 else entries
    return [float(np.format_float_scientific(value, unique=True)) for value in values]


def _shown(value: float) -> float | str:
    return value if isfinite(value) else "NaN" if isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _check_preview(preview: object, array: Entries) -> None:
    entries = array.ravel()
    if not isinstance(preview, list) or len(preview) > entries.size:
        message = f"tensor: given preview {_short(preview)}, expected a list of at most {entries.size} numbers"
        raise TensorError(message)
    stored = _single(entries) if entries.dtype == np.uint16 else entries
    for position, given in enumerate(preview):
        read = stored.dtype.type(_number(given))
        entry = stored[position]
        same = np.isnan(entry) if np.isnan(read) else read == entry and np.signbit(read) == np.signbit(entry)
        if not same:
            message = f"tensor: given preview {given} at entry {position}, expected {entry}, which is what the hex says"
            raise TensorError(message)


def _number(given: object) -> float:
    if isinstance(given, str) and given in _WORDS:
        return _WORDS[given]
    if isinstance(given, int | float) and not isinstance(given, bool):
        return float(given)
    message = f"tensor: given {_short(given)} in a preview, expected a number, {', '.join(map(repr, _WORDS))}"
    raise TensorError(message)


def _short(given: object) -> str:
    text = repr(given)
    return text if len(text) <= 60 else f"{text[:57]}..."
