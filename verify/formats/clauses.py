"""Which numbered clauses of `docs/specification.md` a case is about."""

from __future__ import annotations

_RULES = {
    "Epsilon": "3.1", "Norm": "3.2", "ZPlus": "3.3", "AlphaBeta": "3.4", "Gamma": "3.5", "ZBox": "3.6",
    "WSquare": "3.7", "Flat": "3.8",
    "Pass": "4.1", "ReLUDeconvNet": "4.2", "ReLUGuidedBackprop": "4.3", "ReLUBetaSmooth": "4.4",
    "Uniform": "9.1", "SignalTakesAll": "9.2", "Bilinear": "9.3", "Softmax": "9.4", "Stop": "9.5",
    "LayerNormRule": "9.6",
}  # fmt: skip
_API = {
    "Stabilizer": "2.2", "ClampMod": "2.3", "GammaMod": "2.3", "NoMod": "2.3", "BasicHook": "2.3", "Hook": "7.1",
    "zero_bias": "2.3", "copy": "7.4", "remove": "7.4",
}  # fmt: skip
#: The whole section stands for a topic that is not named here.
_NEVER = "7"
_CONDUCT = {
    "1.2": "weight-norm spectral-norm weight-by-a-pre-hook weight-depends-on-mode weight-is-a-buffer "
    "weight-is-a-property weight-is-an-attribute standardised-weight scaled-weight random-weight low-rank-adapter "
    "rules-inside",
    "7.1": "parameters parameters-during optimizer-and-tied-weights tensors",
    "7.2": "random-state dropout-mask batch-norm-in-training buffers-moved-inside",
    "7.3": "forward without-grad autocast in-place-neighbours inplace-inside shortcut-around-in-place-relu",
    "7.4": "remove exception exception-in-stabilizer copy deepcopy pickle copied-module pickled-module averaged-model "
    "checkpoint-after-remove handle-entered-again tensors-die no-growth",
    "7.5": "same-answer two-forwards called-twice threads retain-graph overwritten-input overwritten-parameters "
    "overwritten-buffers mode-switched weights-replaced weight-loaded-for-the-call functional-call replica",
    "7.6": "two-modules registered-twice hook-appended hook-prepended hooks-that-look-on pre-hooks global-hook "
    "hooks-inside",
    "7.7": "create-graph output-before-relevance output-after-relevance output-beside-relevance "
    "relevance-from-a-thread",
    "7.8": "batches batched-relevance batched-relevance-works",
    "7.9": "complex-numbers quantized-layer meta-device nested-tensors parameters-in-parts tensor-as-attribute "
    "tensor-in-an-object constant-argument constant-argument-works recorded-by-a-trace vmapped-forward forward-mode "
    "function-vjp checkpoint",
}
_OF_TOPIC = {topic: clause for clause, topics in _CONDUCT.items() for topic in topics.split()}


def clauses(id_: str, check: str, rule: str, level: str) -> tuple[str, ...]:
    """Return the numbers of the clauses that a case is about, or of a whole section; none for a case of the protocol.

    >>> clauses("agreement/Gamma/linear-5-4/zero_params=bias/signed/float64", "agreement", "Gamma", "must")
    ('3.5', '1.4')
    >>> clauses("conduct/ZPlus/dropout-mask", "conduct", "ZPlus", "must")
    ('7.2',)

    """
    parts = id_.split("/")
    own = [_RULES[rule]] if rule in _RULES else []
    match check:
        case "conduct":
            found = [_OF_TOPIC.get(parts[-1], _NEVER)]
        case "errors":
            of_networks = _RULES.get(rule, "").startswith("9")
            found = [
                "9.8"
                if of_networks
                else "6.2"
                if parts[-1].endswith("-is-named")
                else "6.3"
                if level == "must"
                else "6.4"
            ]
        case "api":
            name = parts[2] if parts[1] == "signature" else parts[1]
            found = [_API.get(name) or _RULES.get(name, "2")]
        case "conservation" | "second-order":
            found = [*own, "5.1" if check == "conservation" else "7.7"]
        case "network":
            found = own or ["3", "4"]
        case _:
            named = (("zero_params=", "1.4"), ("stabilizer=", "2.1"))
            found = [*own, *(clause for name, clause in named if f"/{name}" in id_)]
    return tuple(found)
