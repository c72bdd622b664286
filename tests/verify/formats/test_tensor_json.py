"""The tensor form: every bit there and back, one way to write it, and a clear refusal of anything else."""

import json

import numpy as np
import pytest

from verify.formats.tensor_json import SHOWN, STORED, TensorError, decode, encode, is_canonical, widen

PLAIN = {"dtype": "float32", "shape": [1, 2], "order": "C", "hex": "0000803f00000080", "preview": [1.0, -0.0]}


def bits_of(dtype: str) -> np.ndarray:
    """Many bit patterns of a dtype, those of -0, infinities, subnormal numbers and NaN with a payload among them."""
    width = np.dtype(STORED[dtype]).itemsize
    drawn = np.random.default_rng(0).integers(0, 256, 64 * width, np.uint8)
    special = {
        "float64": [0, 1, 1 << 63, 0x7FF << 52, 0xFFF << 52, 0x7FF8000000000001],
        "float32": [0, 1, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00001],
        "float16": [0, 1, 1 << 15, 0x7C00, 0xFC00, 0x7E01],
        "bfloat16": [0, 1, 1 << 15, 0x7F80, 0xFF80, 0x7FC1],
    }[dtype]
    data = b"".join(bits.to_bytes(width, "little") for bits in special) + drawn.tobytes()
    return np.frombuffer(data, STORED[dtype]).reshape(2, 5, 7)


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.filterwarnings("error")
def test_every_bit_there_and_back(dtype: str) -> None:
    array = bits_of(dtype)
    text = json.dumps(encode(array), allow_nan=False)
    back = decode(json.loads(text))
    assert back.tobytes() == array.tobytes()
    assert back.shape == array.shape
    assert back.flags.writeable
    assert is_canonical(json.loads(text))


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 0, 3)])
def test_shapes_without_an_axis_or_an_entry(shape: tuple[int, ...]) -> None:
    assert decode(encode(np.zeros(shape))).shape == shape


def test_bytes_are_little_endian_and_in_c_order() -> None:
    array = np.asfortranarray(np.array([[1, 2, 3], [4, 5, 6]], ">f8"))
    form = encode(array)
    assert form["hex"].startswith("000000000000f03f0000000000000040")  # 1.0, 2.0
    assert form["preview"] == [1, 2, 3, 4, 5, 6][:SHOWN]
    assert decode(form).dtype == np.dtype("=f8")


def test_preview_is_short_and_in_the_digits_of_the_dtype() -> None:
    form = encode(np.full(SHOWN + 1, 0.1, np.float32))
    assert form["preview"] == [0.1] * SHOWN
    assert encode(np.array([np.nan, np.inf, -np.inf]))["preview"] == ["NaN", "Infinity", "-Infinity"]


def test_a_port_may_print_more_digits_or_no_preview() -> None:
    form = {**encode(np.array([0.1], np.float32)), "preview": [0.10000000149011612]}
    assert decode(form) == np.float32(0.1)
    assert not is_canonical(form)
    del form["preview"]
    assert decode(form) == np.float32(0.1)


def test_bfloat16_is_the_upper_half_of_float32() -> None:
    bits = np.array([0x3F80, 0xC049, 0x8000], np.uint16)
    assert widen(bits).tolist() == [1.0, -3.140625, 0.0]
    assert np.signbit(widen(bits)[2])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dtype": "float8"}, "given dtype 'float8', expected one of float64"),
        ({"dtype": ["float32"]}, "given dtype"),
        ({"order": "F"}, "given order 'F', expected \"C\""),
        ({"shape": [2, 2]}, "given 16 digits of hex, expected 32 for shape"),
        ({"shape": [-1, -2]}, "given shape .* none negative"),
        ({"shape": [1.0, 2]}, "whole numbers"),
        ({"shape": [True, 2]}, "whole numbers"),
        ({"shape": 2}, "given shape 2"),
        ({"hex": "0000803F00000080"}, "digits 0-9 and a-f"),
        ({"hex": "0000803f0000008"}, "given 15 digits of hex, expected 16"),
        ({"hex": "0000803f00000000"}, "given preview -0.0 at entry 1, expected 0.0"),
        ({"hex": "0000003f00000080"}, "given preview 1.0 at entry 0, expected 0.5"),
        ({"hex": b"0000803f00000080"}, "given hex"),
        ({"preview": [1.0, "zero"]}, "given 'zero' in a preview"),
        ({"preview": [True]}, "given True in a preview"),
        ({"preview": [1.0, -0.0, 2.0]}, "at most 2 numbers"),
        ({"preview": None}, "given preview None"),
        ({"note": "x"}, "given the keys .*'note'"),
    ],
    ids=str,
)
def test_what_is_not_a_tensor_is_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(TensorError, match=says):
        decode({**PLAIN, **change})


@pytest.mark.parametrize("form", [None, [1.0], "0000", {}, {"hex": ""}], ids=str)
def test_what_is_not_an_object_with_the_keys_is_refused(form: object) -> None:
    with pytest.raises(TensorError, match="expected"):
        decode(form)


def test_one_way_to_write_it() -> None:
    assert is_canonical(PLAIN)
    assert not is_canonical(dict(reversed(PLAIN.items())))
    assert not is_canonical({**PLAIN, "preview": [1.0]})
    assert not is_canonical({**PLAIN, "preview": [1, -0.0]})


@pytest.mark.parametrize("array", [np.zeros(2, np.int64), np.array(["a"]), np.zeros(1, complex)], ids=str)
def test_other_dtypes_are_not_written(array: np.ndarray) -> None:
    with pytest.raises(TensorError, match="expected float64, float32, float16, or uint16"):
        encode(array)
