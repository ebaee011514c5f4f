"""The notebooks: they run afresh without an error, and what is stored in them was made by their code and by nothing else."""

import getpass
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).parents[1]
NOTEBOOKS = sorted((HERE / "examples" / "notebooks").glob("*.ipynb"))
MACHINE = re.compile(r"/(home|root|tmp|work|usr|var|Users)/|[A-Z]:\\\\Users|site-packages|Traceback|Warning")
names = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def kinds(cell: nbformat.NotebookNode) -> list[set[str]]:
    """What a cell shows, but for what it prints: the forms of each value or picture."""
    return [set(each.data) for each in cell.get("outputs", []) if "data" in each]


def said(notebook: nbformat.NotebookNode) -> str:
    """All text of a notebook that its code put there, pictures left out."""
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            parts += [output.get("text", ""), str(output.get("traceback", ""))]
            parts += [text for form, text in output.get("data", {}).items() if not form.startswith("image/")]
    return "\n".join(parts)


def executed(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook, run from its start in a folder."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    where = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()


@names
def test_what_is_stored_is_whole_and_says_nothing_of_a_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]  # in order, from the start
    assert sum("image/png" in kind for cell in code for kind in kinds(cell)) >= 3
    assert sum("text/html" in kind for cell in code for kind in kinds(cell)) >= 3
    for word in (getpass.getuser(), socket.gethostname()):
        assert not re.search(rf"\b{re.escape(word)}\b", said(notebook))
    assert MACHINE.search(said(notebook)) is None
    assert all(output.get("name") != "stderr" for cell in code for output in cell.outputs)
    assert (HERE / "docs" / "notebooks" / path.with_suffix(".md").name).is_file()  # and the site shows it


def test_the_check_sees_a_path() -> None:
    cell = SimpleNamespace(get=lambda *_: [nbformat.v4.new_output("stream", text="in /home/ada/model.py")])
    assert MACHINE.search(said(SimpleNamespace(cells=[cell])))


@pytest.mark.slow
@pytest.mark.acceptance
@names
def test_a_notebook_runs_and_shows_what_is_stored(path: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    (tmp_path / "folder").mkdir()
    fresh, stored = executed(path, tmp_path / "folder"), nbformat.read(path, as_version=4)
    assert [kinds(cell) for cell in fresh.cells] == [kinds(cell) for cell in stored.cells]
    assert not list((tmp_path / "folder").iterdir())  # it leaves nothing where it is read


def test_an_error_in_a_cell_is_an_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    planted = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(planted, tmp_path / "planted.ipynb")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        executed(tmp_path / "planted.ipynb", tmp_path)
