"""What may be changed in one place of a syntax tree: each change is a mistake of a few characters."""

from __future__ import annotations

import ast
import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
}
#: The other side of the border, and the contrary.
_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_PAIRS = (
    ("positive", "negative"),
    ("plus", "minus"),
    ("above", "below"),
    ("low", "high"),
    ("min", "max"),
    ("amin", "amax"),
    ("minimum", "maximum"),
    ("alpha", "beta"),
    ("zeros_like", "ones_like"),
    ("inputs", "outputs"),
)
_OTHER = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])}
#: What they return differs from what they get in its type alone, which mypy sees.
_CONVERSIONS = frozenset({"bool", "dict", "iter", "list", "str", "tuple"})
#: Without a `return` or `raise`, a branch does what it does where its condition is False.
_DELETED = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Expr, ast.For, ast.Delete)


def changes(  # noqa: C901, PLR0912  one case, one operator
    node: ast.AST, imported: frozenset[str] = frozenset()
) -> Iterator[ast.AST]:
    """Yield what may stand in the place of a node.

    ``imported`` are names of modules and classes: ``torch.sign(x)`` without its call is ``x``, and not ``torch``.
    """
    match node:
        case ast.BinOp(op=ast.MatMult()):
            yield node.right
        case ast.BinOp():
            if swapped := _BINARY.get(type(node.op)):
                yield _with(node, op=swapped())
            yield from (node.left, node.right)
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            yield node.operand
        case ast.Compare():
            for k, op in enumerate(node.ops):
                for other in _COMPARISONS.get(type(op), ()):
                    yield _with(node, ops=[*node.ops[:k], other(), *node.ops[k + 1 :]])
        case ast.BoolOp():
            yield _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
            for k in range(len(node.values)):
                kept = node.values[:k] + node.values[k + 1 :]
                yield kept[0] if len(kept) == 1 else _with(node, values=kept)
        case ast.IfExp():
            yield from (node.body, node.orelse)
        case ast.Constant():
            yield from _constants(node)
        case ast.Name(ctx=ast.Load()):
            if other_name := _OTHER.get(node.id):
                yield _with(node, id=other_name)
        case ast.Attribute(ctx=ast.Load()):
            if other_name := _OTHER.get(node.attr):
                yield _with(node, attr=other_name)
            if node.attr == "T":
                yield node.value
        case ast.Subscript(ctx=ast.Load(), slice=ast.Slice()):
            yield node.value
        case ast.keyword() if node.arg != "strict":
            if other_name := _OTHER.get(node.arg or ""):
                yield _with(node, arg=other_name)
        case ast.Call():
            yield from _calls(node, imported)
        case ast.comprehension():
            for k in range(len(node.ifs)):
                yield _with(node, ifs=node.ifs[:k] + node.ifs[k + 1 :])
        case ast.If():
            yield from (_with(node, test=ast.Constant(value)) for value in (True, False))
        case ast.With():
            yield ast.If(ast.Constant(value=True), node.body, [])
        case ast.Raise(exc=None):
            yield ast.Pass()
        case _ if isinstance(node, _DELETED):
            yield ast.Pass()


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    vars(changed).update(fields)
    return changed


def _constants(node: ast.Constant) -> Iterator[ast.AST]:
    value = node.value
    if value is None:
        yield ast.Constant(0)
    elif isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield ast.Constant({0: 1, 1: 0}.get(value, value + 1))
    elif isinstance(value, float):
        yield ast.Constant({0.0: 1.0, 1.0: 0.0}.get(value, value * 1000))


def _calls(node: ast.Call, imported: frozenset[str]) -> Iterator[ast.AST]:
    for k, keyword in enumerate(node.keywords):
        # zip(strict=True) is an assertion
        if keyword.arg == "strict":
            continue
        yield _with(node, keywords=node.keywords[:k] + node.keywords[k + 1 :])
    called = node.func
    if isinstance(called, ast.Attribute) and not _is_namespace(called.value, imported):
        if len(node.args) <= 1:
            yield called.value
    elif len(node.args) == 1 and not isinstance(node.args[0], ast.Starred) and ast.unparse(called) not in _CONVERSIONS:
        yield node.args[0]


def _is_namespace(node: ast.expr, imported: frozenset[str]) -> bool:
    """Whether a function is looked up there, rather than a method called on it."""
    while isinstance(node, ast.Attribute):
        node = node.value
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in {"super", "type", "vars"}
    return isinstance(node, ast.Name) and node.id in imported | {"self", "cls"}
