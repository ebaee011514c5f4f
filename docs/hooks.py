"""A hook of the site: a link that leaves docs/ leads to the page that shows the same, or becomes plain text.

In the repository the pages link to files of code. The site has these files as sources in its reference, and not as files.
"""

import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]*)(#[^)]*)?\)")
LINK_TO_PAGE = re.compile(r"(\])\(docs/")
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page's text with links that the site can follow."""
    if page.file.src_uri == "changelog.md":  # where the repository has it, outside of docs/
        changes = Path(__file__).parents[1] / "CHANGELOG.md"
        markdown = LINK_TO_PAGE.sub(r"\1(", changes.read_text(encoding="utf-8"))
    return LINK.sub(lambda link: moved(*link.groups()), markdown)


def moved(text: str, path: str, anchor: str | None) -> str:
    package = path.split("/")[0]
    if path in PAGES:
        return f"[{text}]({PAGES[path]})"
    return f"[{text}](api/{package}.md)" if package in ("certify", "surrogates", "certdef") else text
