"""Sphinx: how the site is built. `tox -e site`."""

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "lrp-rules"
author = "the lrp-rules developers"
copyright = "the lrp-rules developers"  # noqa: A001  Sphinx's name
version = release = installed("lrp-rules")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml", "pages"]
# The report for repositories: the site has its page of HTML.
exclude_patterns = ["_build", "_ext", "performance/report.md"]
myst_enable_extensions = ["amsmath", "attrs_inline", "dollarmath"]
myst_heading_anchors = 4
root_doc = "index"

html_theme = "furo"
html_title = "lrp-rules"
html_static_path = ["_static"]
html_extra_path = ["performance/report.html"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
# No fonts, scripts or pictures from elsewhere: the site works where there is no network.
templates_path: list[str] = []

nitpicky = True
# What is not of this project has no page here.
nitpick_ignore_regex = [(r"py:.*", r"(?!lrp_rules\.|reference\.|verify\.asserting\.).*")]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = False
linkcheck_timeout = 20
