"""Mutants of a source text, one change each, and the same text with a note of which blocks run."""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from verify.selftests.mechanical.operators import changes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Stands in a module for what notes that a block runs.
NOTE = "__note__"
_LONGEST = 120
#: How much is shown around a change in a longer text.
_CONTEXT = 30
_BLOCKS = ("body", "orelse", "finalbody")
#: Nodes that are too small to be read without what they stand in.
_SMALL = (ast.Constant, ast.Name, ast.Attribute, ast.keyword, ast.comprehension)
_READABLE = (ast.expr, ast.Return, ast.Assign, ast.AnnAssign, ast.keyword)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Mutant:
    """One change in one file.

    ``id`` says it, as in ``rules.py:Gamma.declare: gate = +1 -> gate = -1``; a second one that reads the same has
    ``#2`` behind it. No edit outside of the function moves it. ``source`` is the whole text with the change. ``block``
    names the block that must run for the change to be noticed, or is empty where nobody can say.
    """

    id: str
    file: str
    scope: str
    block: str
    source: str


@dataclass(frozen=True)
class _Site:
    """Where a node stands: ``holder.field``, or an element of that list."""

    holder: ast.AST
    field: str
    index: int | None
    node: ast.AST
    scope: str
    block: str

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.holder, self.field, node)
        else:
            getattr(self.holder, self.field)[self.index] = node


def mutants(file: str, text: str) -> Iterator[Mutant]:
    """Yield all mutants of a source text; ``file`` is its name in their ids.

    Documentation, annotations, imports and the texts of errors are left alone; so is what reads as another mutant does.
    """
    tree = ast.parse(text)
    imported, names = _imported(tree), {getattr(node, "id", getattr(node, "arg", None)) for node in ast.walk(tree)}
    pieces = [ast.unparse(statement) for statement in tree.body]
    seen = set(enumerate(pieces))
    count: Counter[str] = Counter()
    for place, statement in enumerate(tree.body):
        # a module of this one statement: to write and to compile the whole for each change would take minutes
        part = ast.Module([statement], [])
        for site in list(_sites(part, file)):
            for changed in list(changes(site.node, imported)):
                if isinstance(changed, ast.Name) and isinstance(site.node, ast.Name) and changed.id not in names:
                    continue
                before = _shown(site)
                site.put(changed)
                after, piece = _shown(site, changed), _unparsed(part)
                site.put(site.node)
                if piece is None or (place, piece) in seen:
                    continue
                seen.add((place, piece))
                name = f"{file}:{site.scope}: {' -> '.join(_short(before, after))}"
                count[name] += 1
                yield Mutant(
                    f"{name} #{count[name]}" if count[name] > 1 else name,
                    file,
                    site.scope,
                    site.block,
                    "\n".join([*pieces[:place], piece, *pieces[place + 1 :]]),
                )


def noted(file: str, text: str) -> str:
    """Return the text in which each block of a function calls ``__note__(block)`` first."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        for block in _blocks(node):
            call = ast.Call(ast.Name(NOTE, ast.Load()), [ast.Constant(_block(file, block))], [])
            block.insert(1 if _is_documentation(block[0]) and len(block) > 1 else 0, ast.Expr(call))
    return ast.unparse(ast.fix_missing_locations(tree))


def _blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    if not isinstance(node, ast.Module | ast.ClassDef):
        for field in _BLOCKS:
            block = getattr(node, field, None)
            if isinstance(block, list) and block:
                yield block


def _imported(tree: ast.Module) -> frozenset[str]:
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {(alias.asname or alias.name).partition(".")[0] for node in imports for alias in node.names}
    return frozenset(names | {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)})


def _sites(node: ast.AST, file: str, scope: str = "", block: str = "") -> Iterator[_Site]:
    for field, value in ast.iter_fields(node):
        if _is_left_alone(node, field):
            continue
        inner = block if not any(value is own for own in _blocks(node)) else _block(file, value)
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST) or _is_skipped(child):
                continue
            if not _is_only_binding(child, node):
                yield _Site(node, field, index if isinstance(value, list) else None, child, scope or "<module>", inner)
            if isinstance(child, (*_FUNCTIONS, ast.ClassDef)):
                # default arguments matter to those who call the function
                starts = inner if isinstance(child, ast.ClassDef) else _block(file, child.body)
                yield from _sites(child, file, f"{scope}.{child.name}".lstrip("."), starts)
            else:
                yield from _sites(child, file, scope, inner)


def _block(file: str, block: Sequence[ast.stmt]) -> str:
    return f"{file}:{block[0].lineno}:{block[0].col_offset}"


def _is_left_alone(node: ast.AST, field: str) -> bool:
    if field == "comparators" and isinstance(node, ast.Compare):
        return isinstance(node.ops[0], ast.Is | ast.IsNot)
    return field in {"annotation", "returns", "decorator_list", "bases", "cause", "exc"} or (
        isinstance(node, ast.ExceptHandler) and field == "type"
    )


def _is_skipped(node: ast.AST) -> bool:
    if isinstance(node, ast.Assign | ast.AnnAssign):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        constant = isinstance(target, ast.Name) and (target.id == "msg" or target.id.startswith("__"))
        return constant or node.value is None
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    if isinstance(node, ast.keyword):
        return node.arg == "strict"
    # what is asserted is what types cannot say
    return _is_documentation(node) or isinstance(node, ast.Import | ast.ImportFrom | ast.Assert | ast.JoinedStr)


def _is_only_binding(node: ast.AST, holder: ast.AST) -> bool:
    """Whether a statement at the top of a function or module binds what has no value without it."""
    if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(holder, ast.Module | ast.FunctionDef):
        return False
    targets = [name for t in getattr(node, "targets", [getattr(node, "target", None)]) for name in ast.walk(t)]
    names = {name.id for name in targets if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    stored = [n.id for n in ast.walk(holder) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    arguments = {n.arg for n in ast.walk(holder) if isinstance(n, ast.arg)}
    return any(stored.count(name) == 1 and name not in arguments for name in names)


def _is_documentation(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _shown(site: _Site, changed: ast.AST | None = None) -> str:
    """Return the text of the node, or of what it stands in if it is small, with the change if it is put there."""
    node = changed or site.node
    if isinstance(site.holder, ast.arguments):
        named = site.holder.posonlyargs + site.holder.args
        names = named[-len(site.holder.defaults) :] if site.field == "defaults" else site.holder.kwonlyargs
        return f"{names[site.index or 0].arg}={_text(node)}"
    if isinstance(site.node, _SMALL) and isinstance(site.holder, _READABLE):
        node = site.holder
    return _text(node)


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Pass):
        return "(deleted)"
    if isinstance(node, ast.AnnAssign):
        return f"{ast.unparse(node.target)} = {_text(node.value or ast.Pass())}"
    if isinstance(node, ast.If | ast.With | ast.For):
        return ast.unparse(ast.fix_missing_locations(node)).partition("\n")[0].removesuffix(":")
    return " ".join(ast.unparse(ast.fix_missing_locations(node)).split())


def _short(before: str, after: str) -> tuple[str, str]:
    """Return both, where they are long without most of what they share."""
    if max(len(before), len(after)) > _LONGEST:
        left = _shared(before, after)
        right = _shared(before[left:][::-1], after[left:][::-1])
        left, right = max(left - _CONTEXT, 0), max(right - _CONTEXT, 0)
        before, after = (
            f"{'...' * bool(left)}{text[left : len(text) - right]}{'...' * bool(right)}" for text in (before, after)
        )
    return _cut(before), _cut(after)


def _shared(one: str, other: str) -> int:
    """Return how many characters both begin with."""
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _cut(text: str) -> str:
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]}"


def _unparsed(part: ast.Module) -> str | None:
    """Return the text, or None where the change makes no program."""
    try:
        text = ast.unparse(ast.fix_missing_locations(part))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            compile(text, "<mutant>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    return text
