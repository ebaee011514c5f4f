"""The example of docs/certify.md runs as it stands, in fewer than 15 lines."""

import re
from pathlib import Path

import pytest

DOC = Path(__file__).parents[1] / "docs" / "certify.md"


@pytest.mark.acceptance
def test_the_example_runs_and_is_short(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    [example] = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.S)
    assert len([line for line in example.splitlines() if line.strip()]) < 15
    exec(compile(example, str(DOC), "exec"), {})
    assert "| model | 6 |" in capsys.readouterr().out
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 7
