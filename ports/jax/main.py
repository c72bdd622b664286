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

# many small questions: compiling takes longer than running
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import jax
import jax.numpy as jnp
import numpy as np
from lrp_jax import DTYPES, FUNCTIONS, LAYERS, RULES, WEIGHTED, Layer, Stabilizer, relevance

OFFERED = {
    "protocol": 1,
    "name": "lrp-jax",
    "version": "0.1.0",
    "language": f"Python, JAX {jax.__version__}",
    "rules": list(RULES),
    "layers": list(LAYERS),
    "functions": list(FUNCTIONS),
    "dtypes": list(DTYPES),
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
    tensors = {name: jnp.asarray(decode(form)) for name, form in question["tensors"].items()}
    if rule in WEIGHTED and "weight" not in tensors:
        return {"skipped": f"{rule} needs a weight"}
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
