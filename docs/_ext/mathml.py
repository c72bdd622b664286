"""Formulas as MathML, which browsers draw by themselves: no script, no network, no fonts to load.

docutils translates a part of LaTeX; what it cannot is an error of the build.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def _mathml(text: str, *, as_block: bool) -> str:
    """Return a formula whose bars are fences, which docutils leaves open: browsers would set them as relations."""
    formula = tex2mathml(text, as_block=as_block)
    formula = formula.replace('<mo class="mathopen">|</mo>', '<mo form="prefix" stretchy="false">|</mo>')
    return formula.replace("<mo>|</mo>", '<mo form="postfix" stretchy="false">|</mo>')


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(_mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _block(self: Any, node: nodes.math_block) -> None:
    formula = _mathml(node.astext(), as_block=True)
    self.body.append(f'<div class="math" tabindex="0">{formula}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
