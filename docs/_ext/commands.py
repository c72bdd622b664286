"""The reference of the commands and the JSON files as Markdown, read from the commands and the schemas themselves."""

from __future__ import annotations

import importlib
import json
import re
from typing import TYPE_CHECKING, Any

import typer
from facts import ROOT, table

from lrp_entry.commands import COMMANDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def command(name: str) -> str:
    """Return all of a command: what it does, its options and its subcommands."""
    app = importlib.import_module(COMMANDS[name][1]).app
    return "\n\n".join(_of(typer.main.get_command(app), name))


def _of(one: Any, name: str) -> Iterator[str]:
    yield _text(one.help)
    options = [parameter for parameter in one.params if not getattr(parameter, "hidden", False)]
    if options:
        yield table(("option", "meaning"), (_row(option) for option in options))
    if one.epilog:
        yield _text(one.epilog)
    for part, subcommand in sorted(getattr(one, "commands", {}).items()):
        yield f"### {name} {part}"
        yield from _of(subcommand, f"{name} {part}")


def _row(option: Any) -> tuple[str, str]:
    names = ", ".join(f"`{one}`" for one in (*option.opts, *option.secondary_opts) if one.startswith("-"))
    flag = isinstance(option.default, bool) or getattr(option, "is_flag", False)
    metavar = option.metavar or ("" if flag else option.name.rstrip("_").upper())
    shown = f"{names} *{metavar}*" if names and metavar else names or f"*{option.metavar or option.name.upper()}*"
    given = option.default
    default = "" if callable(given) or given in (None, False, (), [], "") else f" Default: `{given}`."
    return shown, _text(option.help) + default


def _text(given: str | None) -> str:
    text = " ".join((given or "").split())
    text = text.replace("*", r"\*").replace("<", r"\<").replace("[", r"\[")
    return re.sub(r"(?<![\w`-])--[a-z][a-z-]*", r"`\g<0>`", text)  # or two hyphens become a dash


def schemas() -> str:
    """Return a section for each JSON schema: what it is for, and its keys."""
    return "\n\n".join(_schema(path) for path in _files())


def _files() -> list[Path]:
    found: dict[str, Path] = {}
    for folder in sorted(ROOT.iterdir()):
        if folder.is_dir() and folder.name in {"vectors", "verify", "bench", "lrp_rules"}:
            for path in sorted(folder.rglob("*.schema.json")):
                found.setdefault(path.name, path)
    return [found[name] for name in sorted(found)]


def _schema(path: Path) -> str:
    schema = json.loads(path.read_text(encoding="utf-8"))
    link = f"[`{path.name}`](../{path.relative_to(ROOT).as_posix()})"
    text = [f"## {path.name.removesuffix('.schema.json')}"]
    text += [_text(schema[key]) for key in ("title", "description") if key in schema]
    text.append(f"The file: {link}.")
    needed = set(schema.get("required", ()))
    rows = [
        (f"`{key}`", _kind(value), "yes" if key in needed else "", _text(_described(value, schema)))
        for key, value in schema.get("properties", {}).items()
    ]
    if rows:
        text.append(table(("key", "type", "required", "meaning"), rows))
    else:
        rows = [
            (", ".join(f"`{key}`" for key in form.get("properties", ())), _text(form.get("description")))
            for form in _forms(schema, schema)
        ]
        text.append("A line has one of these forms:\n\n" + table(("keys", "meaning"), rows))
    return "\n\n".join(text)


def _forms(part: Any, schema: Any) -> Iterator[Any]:
    """Yield the alternatives of a schema, those of alternatives too."""
    if "$ref" in part:
        part = schema["$defs"][part["$ref"].rpartition("/")[2]]
    alternatives = [*part.get("oneOf", ()), *part.get("anyOf", ())]
    if "properties" in part or not alternatives:
        yield part
    else:
        for one in alternatives:
            yield from _forms(one, schema)


def _kind(value: Any) -> str:
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    given = value.get("type", "")
    return " or ".join(given) if isinstance(given, list) else str(given)


def _described(value: Any, schema: Any) -> str:
    reference = value.get("$ref", "")
    if reference.startswith("#/"):
        for part in reference[2:].split("/"):
            schema = schema[part]
        return str(value.get("description", schema.get("description", "")))
    return str(value.get("description", ""))
