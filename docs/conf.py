"""Settings of the documentation site; `make docs` builds it in build/site."""

import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

project = "fmcli"
author = "the authors of fmcli"
extensions = ["myst_parser"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "fmcli"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_static_path = ["style"]
html_css_files = ["tables.css"]
pygments_style = "friendly"
pygments_dark_style = "monokai"

_DOCS = Path(__file__).parent
_OUTSIDE_LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]*)(#[^)\s]*)?\)")


def _name_files_outside(app: Sphinx, page: str, source: list[str]) -> None:
    """Show a link to a file of the repository as its path, because the site does not contain the file."""

    def replace(link: re.Match[str]) -> str:
        target = (_DOCS / link[2]).resolve()
        if not target.exists():
            logging.getLogger(__name__).warning("%s does not exist", link[2], location=page)
        name = f"`{target.relative_to(_DOCS.parent)}`"
        return name if link[1].strip("`") == name.strip("`") else f"{link[1]} ({name})"

    source[0] = _OUTSIDE_LINK.sub(replace, source[0])


def setup(app: Sphinx) -> None:
    """Connect the functions of this file."""
    app.connect("source-read", _name_files_outside)
