"""The process protocol: one request a line on standard input, one answer a line on standard output.

`python main.py` speaks it; `python main.py DIR` answers the vectors in a folder, for `lrp-vectors verify`.
"""

import json
import os
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# Many small questions: compiling takes longer than running, by far. What is compiled is what a user's `relevance` has,
# with less care for its speed; a flag of the environment's own comes last and has the last word.
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
        os.environ.get("XLA_FLAGS", ""),
    )
)

import jax
import numpy as np
from lrp_jax import (
    CHANGING,
    DTYPES,
    FOR,
    FUNCTIONS,
    LAYERS,
    LINEAR,
    NORMALISATIONS,
    OPERATIONS,
    RULES,
    Layer,
    Stabilizer,
    relevance,
)

OFFERED = {
    "protocol": 1,
    "name": "lrp-jax",
    "version": "0.1.0",
    "language": f"Python, JAX {jax.__version__}",
    # the protocol has no operations of several operands, and no rules for them: the vectors ask for these
    "rules": [rule for rule in RULES if rule not in FOR and rule != "Stop"],
    "layers": [layer for layer in LAYERS if layer not in OPERATIONS and layer not in NORMALISATIONS],
    "functions": list(FUNCTIONS),
    "dtypes": list(DTYPES),
}
#: Such numbers are lost before a rule sees them, with --xla_cpu_ftz=false too.
FLUSHED = {
    "skipped": "XLA reads subnormal numbers as zero",
    "link": "https://github.com/jax-ml/jax/issues/16200",
}
WORDS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


def decode(form: dict[str, Any]) -> np.ndarray:
    """The array that a tensor in JSON holds."""
    little = np.dtype(form["dtype"]).newbyteorder("<")
    return np.frombuffer(bytes.fromhex(form["hex"]), little).reshape(form["shape"])


def encode(array: np.ndarray) -> dict[str, Any]:
    """A tensor in JSON."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {"dtype": array.dtype.name, "shape": list(array.shape), "order": "C", "hex": little.tobytes().hex()}


def subnormal(array: np.ndarray) -> bool:
    """Whether there are numbers between zero and the smallest that has all its digits."""
    return bool(((array != 0) & (np.abs(array) < np.finfo(array.dtype).tiny)).any())


def parameter(value: Any) -> Any:
    """A parameter in JSON as Python has it."""
    if isinstance(value, dict):
        return decode(value) if "hex" in value else Stabilizer(**value)
    return WORDS.get(value, value) if isinstance(value, str) else value


def hashable(value: Any) -> Any:
    """A list as a tuple, at every depth."""
    return tuple(map(hashable, value)) if isinstance(value, list) else value


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """A relevance, a reason to skip, or an error, for what the vectors and the protocol ask."""
    rule, layer, dtype = (question[name] for name in ("rule", "layer", "dtype"))
    for what, given, known in (("rule", rule, RULES), ("layer", layer["type"], LAYERS), ("dtype", dtype, DTYPES)):
        if given not in known:
            return {"skipped": f"no {what} {given}"}
    # NumPy's, as they are: jnp.asarray would compile a copy for each new shape
    tensors = {name: decode(form) for name, form in question["tensors"].items()}
    if any(map(subnormal, tensors.values())):
        return FLUSHED
    if rule in CHANGING and layer["type"] not in LINEAR:
        return {"skipped": f"{rule} needs a linear layer"}
    if layer["type"] not in FOR.get(rule, (layer["type"],)):
        return {"skipped": f"{rule} needs {' or '.join(FOR[rule])}"}
    options = tuple((name, hashable(value)) for name, value in layer.items() if name != "type")
    parameters = {name: parameter(value) for name, value in question["parameters"].items()}
    try:
        r = relevance(rule, Layer(layer["type"], options), tensors, tensors.pop("x"), tensors.pop("R"), **parameters)
    except (TypeError, ValueError) as error:
        if not str(error).startswith(f"{rule}: "):  # not about the parameters
            raise
        return {"error": "type" if isinstance(error, TypeError) else "value", "message": str(error)}
    return {"relevance": encode(np.asarray(r))}


def speak() -> None:
    """Answer requests until there are no more."""
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "start":
            reply = OFFERED
        elif request["do"] == "stop":
            reply = {"stopped": True}
        else:
            try:
                reply = {"seq": request["seq"], **answer(request)}
            except Exception as error:
                context = traceback.format_exc()
                reply = {"seq": request["seq"], "error": "other", "message": str(error), "context": context}
        print(json.dumps(reply), flush=True)
        if request["do"] == "stop":
            return


def vectors(folder: str) -> None:
    """Answer every case of every file, on every core: it is compiling that takes the time."""
    paths = sorted(Path(folder).glob("*.json"))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for lines in pool.map(answers, paths):
            print(lines, end="")


def answers(path: Path) -> str:
    """Answer every case of a file, a line each."""
    content = json.loads(path.read_text(encoding="utf-8"))
    lines = []
    for group in content.get("groups", []) if isinstance(content, dict) else []:
        given = {"rule": content["rule"], "parameters": group["parameters"], "layer": group["layer"]}
        lines += [json.dumps({"id": case["id"], **answer(given | case)}) + "\n" for case in group["cases"]]
    return "".join(lines)


if __name__ == "__main__":
    vectors(sys.argv[1]) if len(sys.argv) > 1 else speak()
