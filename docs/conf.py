"""How the documentation is built: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

from mechvlm import __version__

sys.path.insert(0, str(Path(__file__).parent))  # building.py stands beside this file

project = "mechvlm"
author = "mechvlm contributors"
project_copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "building",
]
exclude_patterns = ["_build", "reproduced"]
suppress_warnings = ["config.cache"]  # a URL scheme's page is no value to keep

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
myst_url_schemes = {
    "https": None,
    "arxiv": "https://arxiv.org/abs/{{path}}",
}

default_role = "literal"  # docstrings write `name`
add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_use_type_comments = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 76
python_display_short_literal_types = True
pygments_style = "friendly"
pygments_dark_style = "github-dark"

html_theme = "furo"
html_title = "mechvlm"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {
        "color-brand-primary": "#1f5f99",
        "color-brand-content": "#1f5f99",
        "color-brand-visited": "#1f5f99",
    },
    "dark_css_variables": {
        "color-brand-primary": "#8ab8e6",
        "color-brand-content": "#8ab8e6",
        "color-brand-visited": "#8ab8e6",
    },
}
