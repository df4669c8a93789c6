"""Sphinx configuration: the API from docstrings, one generated page a paper."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import workingpapers

project = "Working Papers"
author = "The Working Papers authors"
copyright = "2026, The Working Papers authors"
version = release = workingpapers.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generate"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
suppress_warnings = ["ref.python"]
exclude_patterns = ["_build", "verify_results.md", "inspect_checks.md"]
html_theme = "furo"
html_title = "Working Papers"
html_static_path = ["_static"]
