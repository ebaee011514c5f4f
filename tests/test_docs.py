"""README and examples: what they say runs as it stands, and their links lead somewhere."""

import os
import re
import runpy
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parents[1]
README = (HERE / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted((HERE / "examples").glob("*.py"))
LINK = re.compile(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)")


def test_the_readme_is_short_and_its_links_exist() -> None:
    assert README.count("\n") <= 150
    assert [link for link in LINK.findall(README) if not (HERE / link).exists()] == []


def test_every_picture_is_on_a_page() -> None:
    pages = [README, *(page.read_text(encoding="utf-8") for page in (HERE / "docs").rglob("*.md"))]
    shown = {Path(link).name for page in pages for link in LINK.findall(page)}
    assert [path.name for path in (HERE / "docs" / "images").iterdir() if path.name not in shown] == []


def test_the_readme_s_python_runs(tmp_path: Path) -> None:
    [block] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "block.py").write_text(block)
    for spent in ("answered=10500", "recalled=10500"):  # the second time for nothing
        done = subprocess.run(
            [sys.executable, "block.py"], cwd=tmp_path, capture_output=True, text=True, env=environment()
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert [line.endswith("l2 target") for line in lines] == 5 * [True] + [False]
        assert spent in lines[-1]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    stops = pytest.raises(SystemExit, match="1") if example.stem == "08_release_gate" else nullcontext()
    with torch.random.fork_rng(), stops:
        runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()
    assert len(example.read_text().splitlines()) < 60


FIGURES = re.compile(r"^\|.*---:", re.MULTILINE)  # a table with a column of figures
ROW = re.compile(
    r"^\| (?:\[([\w-]+)\]\(\1\.md\)|above) \| [^|]+ \| (\d+) \| ([^|]+) \| ([0-9a-f]{7}) \| 20[\d-]{8}",
    re.MULTILINE,
)


def unaccounted(pages: dict[str, str]) -> list[str]:
    """Pages whose tables of figures the register of results.md does not count right, and commands of files that are not there."""
    counted = dict.fromkeys(pages, 0)
    counted["results"] = 1  # the register itself
    faults = []
    for page, tables, command, _ in ROW.findall(pages["results"]):
        counted[page or "results"] += int(tables)
        faults += [
            name
            for name in re.findall(r"(?:benchmarks|tests)/\S+?\.py", command)
            if not (HERE / name).is_file()
        ]
    return faults + [page for page, text in pages.items() if len(FIGURES.findall(text)) != counted[page]]


def test_every_table_of_figures_has_its_command_and_commit() -> None:
    pages = {path.stem: path.read_text(encoding="utf-8") for path in (HERE / "docs").glob("*.md")}
    assert unaccounted(pages) == []
    added = pages | {"plan": pages["plan"] + "\n| a | b |\n| --- | ---: |\n| c | 1 |\n"}
    assert unaccounted(added) == ["plan"]
    gone = pages | {"results": pages["results"].replace("benchmarks/agdm.py", "benchmarks/agmd.py")}
    assert unaccounted(gone) == ["benchmarks/agmd.py"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(HERE)}
