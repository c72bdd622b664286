"""A port that offers Pass alone, which gives back the relevance it gets, and that misbehaves as its arguments say.

``python port.py MODE...`` takes the modes in turn, one a case; the case decides, so that a new process does the same.
"""

import hashlib
import json
import os
import sys
import time
from typing import Any

OFFERED = {
    "protocol": 1,
    "name": "fake",
    "version": "1.0",
    "language": "Python",
    "rules": ["Pass"],
    "layers": ["Elementwise", "Softmax", "BatchNorm"],
    "functions": ["identity", "relu", "tanh"],
    "dtypes": ["float64", "float32"],
}
NAN = {"float64": "000000000000f87f", "float32": "0000c07f"}


def say(message: Any, end: str = "\n") -> None:
    sys.stdout.write((message if isinstance(message, str) else json.dumps(message)) + end)
    sys.stdout.flush()


def relevance(case: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in case["tensors"]["R"].items() if name != "preview"}


def answer(mode: str, case: dict[str, Any]) -> None:  # noqa: C901, PLR0912, PLR0915  a mode after the other
    r = relevance(case)
    good = {"seq": case["seq"], "relevance": r}
    match mode:
        case "behaves":
            say(good)
        case "crashes":
            sys.stderr.write("out of memory, say\n")
            sys.stderr.flush()
            os._exit(3)
        case "exits":
            os._exit(0)
        case "segfaults":
            os.kill(os.getpid(), 11)
        case "hangs":
            time.sleep(3600)
        case "closes":
            os.close(1)
            time.sleep(3600)
        case "half":  # and hangs
            say('{"seq": 1, "relev', end="")
            time.sleep(3600)
        case "half-dies":
            say('{"seq": 1, "relev', end="")
            os._exit(4)
        case "rubbish":
            say("Loading model... done")
        case "binary":
            sys.stdout.buffer.write(b"\xff\xfe\x00\x1b[31m\n")
            sys.stdout.flush()
        case "nan-token":
            say(f'{{"seq": {case["seq"]}, "relevance": [NaN]}}')
        case "huge":
            line = "x" * 2**20
            while True:
                sys.stdout.write(line)
        case "twice":
            say(json.dumps(good) + "\n" + json.dumps(good))
        case "out-of-order":
            say({**good, "seq": case["seq"] + 1})
        case "old":
            say({**good, "seq": case["seq"] - 1})
        case "no-seq":
            say({"relevance": r})
        case "nothing":
            say({"seq": case["seq"]})
        case "list":
            say("[]")
        case "more-keys":
            say({**good, "confidence": 0.9})
        case "nan":
            digits = NAN[r["dtype"]]
            say({"seq": case["seq"], "relevance": {**r, "hex": digits + r["hex"][len(digits) :]}})
        case "wrong-shape":
            say({"seq": case["seq"], "relevance": {**r, "shape": [1, *r["shape"]]}})
        case "wrong-dtype":
            digits, double = r["hex"], r["dtype"] == "float64"
            other = {"dtype": "float32", "hex": digits[: len(digits) // 2]}
            if not double:
                other = {"dtype": "float64", "hex": digits * 2}
            say({"seq": case["seq"], "relevance": {**r, **other}})
        case "short-hex":
            say({"seq": case["seq"], "relevance": {**r, "hex": r["hex"][:-2]}})
        case "skips":
            say({"seq": case["seq"], "skipped": "not yet", "link": "https://example.org/issues/1"})
        case "errs":
            say({"seq": case["seq"], "error": "other", "message": "index 7 of 3", "context": "at port.py:1"})
        case "refuses":
            say({"seq": case["seq"], "error": "value", "message": "I do not like R"})
        case "floods-stderr":
            for _ in range(64):
                sys.stderr.write("warning: " * 2**12 + "\n")
            say(good)
        case _:
            message = f"no mode {mode}"
            raise ValueError(message)


def main(modes: list[str]) -> None:
    first = modes[0] if modes else "behaves"
    if first == "never-starts":
        time.sleep(3600)
    if first == "dies-at-start":
        sys.stderr.write("cannot find the model\n")
        sys.exit(7)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "start":
            say(
                {**OFFERED, "protocol": 2} if first == "wrong-version"
                else "Hello!" if first == "greets"
                else {**OFFERED, "rules": ["LRP"]} if first == "unknown-rule"
                else OFFERED
            )  # fmt: skip
        elif request["do"] == "case":
            cases = [mode for mode in modes if mode not in OUTSIDE] or ["behaves"]
            answer(cases[int(hashlib.sha256(request["id"].encode()).hexdigest(), 16) % len(cases)], request)
        else:
            if first == "ignores-stop":
                continue
            say({"stopped": True} if first != "rude" else {"bye": True})
            sys.exit(5 if first == "bad-exit" else 0)
    if first == "outlives":
        time.sleep(3600)


#: Modes that are not about cases.
OUTSIDE = {
    "wrong-version", "greets", "unknown-rule", "never-starts", "dies-at-start", "ignores-stop", "rude", "bad-exit",
    "outlives",
}  # fmt: skip

if __name__ == "__main__":
    main(sys.argv[1:])
