"""A long stage in a log: one line at its end, and no carriage return."""

import sys

import pytest

from certdef.pipeline.bars import bars


def test_a_log_has_one_line_a_stage(capsys):
    for _ in bars(True)(range(3), desc="certify target", unit="image"):
        pass
    with bars(True)(total=10, desc="votes") as bar:
        bar.update(4)
    shown = capsys.readouterr().err
    assert "\r" not in shown
    lines = shown.splitlines()
    assert lines[0].startswith("certify target: 3 images in 00:0")
    assert lines[1].startswith("votes: 4 of 10 steps in 00:0")
    assert len(lines) == 2


def test_without_progress_nothing_is_shown(capsys):
    assert list(bars(False)(range(3), desc="x")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    list(bars(True)(range(3), desc="certify target"))
    assert "\r" in capsys.readouterr().err
