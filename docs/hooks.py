"""Hooks of the site: links that leave docs/, and notebooks as pages.

In the repository the pages link to files of code. The site has these files as sources in its reference, and not as files: such a
link leads to the page that shows the same, or becomes plain text. A page of notebooks/ is the executed notebook of its name.
"""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]*)(#[^)]*)?\)")
LINK_TO_PAGE = re.compile(r"(\])\(docs/")
STYLE = re.compile(r"<style.*?</style>", re.DOTALL)
NOTEBOOKS = Path(__file__).parents[1] / "examples" / "notebooks"
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page's text with links that the site can follow."""
    if page.file.src_uri == "changelog.md":  # where the repository has it, outside of docs/
        changes = Path(__file__).parents[1] / "CHANGELOG.md"
        markdown = LINK_TO_PAGE.sub(r"\1(", changes.read_text(encoding="utf-8"))
    if page.file.src_uri.startswith("notebooks/"):
        name = Path(page.file.src_uri).with_suffix(".ipynb").name
        first, *cells = notebook_parts(json.loads((NOTEBOOKS / name).read_text(encoding="utf-8")))
        markdown = "\n\n".join(
            [first, f"*[Download the notebook]({name}), `examples/notebooks/{name}`.*", *cells]
        )
    return LINK.sub(lambda link: moved(*link.groups()), markdown)


def on_files(files: Any, config: Any) -> Any:
    """The files of the site, with the notebooks themselves beside their pages."""
    from mkdocs.structure.files import File

    for path in NOTEBOOKS.glob("*.ipynb"):
        files.append(File.generated(config, f"notebooks/{path.name}", abs_src_path=str(path)))
    return files


def moved(text: str, path: str, anchor: str | None) -> str:
    package = path.split("/")[0]
    if path in PAGES:
        return f"[{text}]({PAGES[path]})"
    return f"[{text}](api/{package}.md)" if package in ("certify", "surrogates", "certdef") else text


def notebook_parts(notebook: dict[str, Any]) -> Iterator[str]:
    """The cells of a notebook and their outputs, each as Markdown."""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
        for output in cell.get("outputs", []):
            yield shown(output)


def shown(output: dict[str, Any]) -> str:
    """An output of a cell: a picture, a table, or text; tables have the site's style and no other."""
    data = output.get("data", {})
    if "image/png" in data:
        width = output.get("metadata", {}).get("image/png", {}).get("width")
        size = f' width="{width}"' if width else ""
        return f'<img alt="{html.escape("".join(data["text/plain"]))}" src="data:image/png;base64,{"".join(data["image/png"]).strip()}"{size}>'
    if "text/html" in data:
        table = (
            STYLE.sub("", "".join(data["text/html"]))
            .replace(' border="1"', "")
            .replace(' class="dataframe"', "")
        )
        return "\n".join(
            line for line in table.splitlines() if line.strip()
        )  # a blank line would end the HTML
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```"
