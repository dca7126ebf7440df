"""Settings of the documentation site: sphinx-build -W --keep-going docs OUTPUT."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from novasvc import __version__

project = "novasvc"
author = "the authors of novasvc"
release = version = __version__

extensions = ["sphinx.ext.autodoc", "myst_parser", "extension"]
html_theme = "furo"
html_title = f"novasvc {release}"
html_copy_source = False

# The pages are written for GitHub as well: anchors are made of headings as GitHub makes them.
myst_heading_anchors = 4
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}

# A reference to something that does not exist is an error; see extension.py.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(.*\.)?_\w+"),  # type variables
    # autodoc refers to a part of an annotation in brackets: Callable[[], T], Literal["a", "b"].
    ("py:.*", r"(collections\.abc\.Callable|typing\.Literal)\[.*"),
    ("py:class", "TracerProvider"),  # of OpenTelemetry, an extra that the site does not need
]


def _check_reactor(_app: Any, error: Exception | None) -> None:
    if error is None and "twisted.internet.reactor" in sys.modules:
        raise RuntimeError("a documented module installs a reactor; leave it out of the reference")


def setup(app: Any) -> None:
    """Fail the build if a documented module has installed a reactor, which no import of a public module may do."""
    app.connect("build-finished", _check_reactor)
