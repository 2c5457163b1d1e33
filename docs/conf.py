"""Configuration of Sphinx: `make docs`."""

import xdpspead

project = "xdpspead"
author = "the authors of xdpspead"
copyright = "the authors of xdpspead"
version = release = xdpspead.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc", "sphinx_copybutton"]
exclude_patterns = ["_build", "examples", "figures/*.py"]

myst_heading_anchors = 3

autodoc_member_order = "bysource"
# The docstrings tell the types, in words.
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

html_theme = "furo"
html_title = f"xdpspead {release}"
html_static_path = ["static"]
html_css_files = ["manual.css"]
html_show_copyright = False
