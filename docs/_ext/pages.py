"""Fills the cards, draws the figures, and makes the sources' links and docstrings fit the site."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import commands
import figures
import gallery
from docutils import nodes
from examples import example
from facts import DOCS, FUNCTIONS, NETWORKS, PARTS, ROOT, slug
from published import REGIMES, conformance, times

if TYPE_CHECKING:
    from sphinx.application import Sphinx

#: Files outside of docs/ that have a page here.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "vectors/README.md": "vectors.md",
    "CONTRIBUTING.md": "contributing.md",
}
PAGES |= {f"ports/{name}/README.md": f"port-{name}.md" for name in ("javascript", "jax")}
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")
_RULES = {slug(rule): rule for rule in (*FUNCTIONS, *NETWORKS)}


#: What any page may ask for, as `<<name>>`.
GENERATED = {
    **{f"command:{name}": partial(commands.command, name) for name in ("lrp-verify", "lrp-bench", "lrp-vectors")},
    **{f"times:{regime}": partial(times, regime) for regime in REGIMES},
    **{f"gallery:{name}": partial(gallery.markdown, name) for name in gallery.ENTRIES},
    "schemas": commands.schemas,
}


def fill(text: str, rule: str) -> str:
    """Put in what the page of a rule asks for as `<<name>>`."""
    return re.sub(r"<<(\w+)>>", lambda found: {**PARTS, "example": example}[found[1]](rule), text)


def generate(text: str) -> str:
    """Put in what another page asks for as `<<name>>`."""
    return re.sub(r"^<<(\S+)>>$", lambda found: GENERATED[found[1]](), text, flags=re.MULTILINE)


def relink(text: str, file: Path, page: Path) -> str:
    """Let links that are written for the repository work on the page: to pages, to files, or to nothing for folders."""

    def replaced(found: re.Match[str]) -> str:
        target = (file.parent / found[1]).resolve()
        if target.is_dir():
            # The text of the link stays, in brackets that are none of Markdown's.
            return "]{.folder}"
        known = PAGES.get(target.relative_to(ROOT).as_posix()) if target.is_relative_to(ROOT) else None
        target = DOCS / known if known else target
        return f"]({os.path.relpath(target, page.parent)}{found[2] or ''})"

    return _LINK.sub(replaced, text)


def _read(app: Sphinx, name: str, source: list[str]) -> None:
    page = Path(app.env.doc2path(name))
    folder, _, last = name.rpartition("/")
    if name == "conformance":
        source[0] = conformance(source[0])
    if folder == "rules" and last in _RULES:
        source[0] = fill(source[0], _RULES[last])
        app.env.note_dependency(str(DOCS / "conformance.md"))
    elif page.suffix == ".md":
        source[0] = relink(generate(source[0]), page, page)


def _include(app: Sphinx, path: Path, _name: str, source: list[str]) -> None:
    file = (Path(app.srcdir) / path).resolve()
    if file.suffix == ".md":
        # every page that includes one lies in docs/ itself
        source[0] = relink(source[0], file, DOCS / "index.md")


def _docstring(_app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Read docstrings as they are meant: indented lines are formulas, `names` are code, * is a product."""
    found, fenced, section = [], False, False
    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        section |= bool(re.fullmatch(r"-{3,}", following.strip()))
        blank = not line.strip()
        if (
            not section
            and line.startswith("    ")
            and not fenced
            and not line.lstrip().startswith((">>>", "..."))
            and (not found or not found[-1].strip())
        ):
            found += ["::", ""]
            fenced = True
        elif not blank and not line.startswith("    "):
            fenced = False
        if section and line.startswith(">>>") and "Examples" not in found:
            found += ["Examples", "--------", ""]  # or napoleon reads them as what is raised
        found.append(line if fenced or line.lstrip().startswith(">>>") else _escaped(line))
    lines[:] = found


def _escaped(line: str) -> str:
    pieces = re.split(r"(``[^`]*``|:\w+:`[^`]*`|`[^`]*`)", line)
    for number, piece in enumerate(pieces):
        if number % 2:
            pieces[number] = f"`{piece}`" if re.fullmatch(r"`[^`]*`", piece) else piece
        else:
            pieces[number] = re.sub(r"([*|]|_\b)", r"\\\1", piece)
    return "".join(pieces)


def _clauses(app: Sphinx, document: Any) -> None:
    """Let other pages link to the numbered clauses of the specification, as `specification.md#3.2`."""
    name = app.env.docname
    if name == "specification":
        slugs = app.env.metadata[name].setdefault("myst_slugs", {})
        for anchor in document.findall(nodes.raw):
            for clause in re.findall(r'<a id="([\d.]+)">', anchor.astext()):
                slugs[clause] = (anchor.line or 0, clause, clause)


def _draw(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "_figures"
    figures.draw(folder, figures.FIGURES)
    figures.draw(folder, {f"gallery-{name}": partial(gallery.figure, name) for name in gallery.ENTRIES})


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect all of it."""
    app.connect("builder-inited", _draw)
    app.connect("source-read", _read)
    app.connect("include-read", _include)
    app.connect("doctree-read", _clauses)
    app.connect("autodoc-process-docstring", _docstring, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
