"""The bill and the export of a ledger's file, read while others write, beside the rows themselves."""

import csv
import os
import shutil
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest

from certdef.cli import main
from certdef.report.ledger_view import render
from surrogates import Answers, LedgerError, QueryLedger, Refused, TargetError, open_target
from surrogates.ledger.export import export
from surrogates.ledger.reader import read_statement, reading

SHAPE, CLASSES = (1, 2, 2), 5


def pool(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, *SHAPE), np.float32)


def service(images: np.ndarray) -> np.ndarray:
    """Scores that depend on the image, with a label of their own."""
    scores = np.tile(np.linspace(0.1, 0.2, CLASSES, dtype=np.float32), (len(images), 1))
    scores[np.arange(len(images)), (images[:, 0, 0, 0] * CLASSES).astype(int)] += (
        0.7 * images[:, 0, 0, 0] + 0.1
    )
    return scores / scores.sum(axis=1, keepdims=True)


def failing(error: Exception):
    def function(images: np.ndarray) -> np.ndarray:
        raise error

    return function


def opened(function=service, **options):
    return open_target(function, num_classes=CLASSES, identity="box", batch_size=20, **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with every state and two kinds of key."""
    file = tmp_path / "ledger.db"
    with QueryLedger(file, {"training": 500, "certification": 500}) as ledger:
        ledger.attach(opened()).query(pool(50))
        ledger.attach(opened(), purpose="certification", experiment="e").query(pool(30))
        with pytest.raises(TargetError):
            ledger.attach(opened(failing(RuntimeError("line dropped")))).query(pool(25, seed=1))
        with pytest.raises(Refused):
            ledger.attach(opened(failing(Refused("too busy")))).query(pool(3, seed=2))
        lossy = opened()
        answer = lossy.answer
        lossy.answer = lambda pixels: Answers(
            answer(pixels).argmax(axis=1).astype(np.int64), answer(pixels), lost=len(pixels)
        )
        ledger.attach(lossy).query(pool(2, seed=3))
    return file


def test_the_statement(path: Path) -> None:
    statement = read_statement(path)
    assert (statement.identity, statement.num_classes, statement.kept) == ("box", CLASSES, 52)
    training, certification = statement.accounts["training"], statement.accounts["certification"]
    assert (training.answered, training.unknown, training.in_flight, training.refused) == (52, 22, 0, 8)
    assert (training.smallest, training.largest) == (52, 74)
    assert (certification.answered, certification.largest) == (30, 30)
    assert statement.total.largest == 104
    assert training.first <= certification.first <= certification.last <= training.last
    with QueryLedger(path, {"training": 500}) as ledger:
        charge = ledger.bill()["training"]
    assert (charge.answered, charge.unknown, charge.refused) == (52, 22, 8)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_the_export_has_every_query(path: Path, tmp_path: Path, ending: str) -> None:
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    out = tmp_path / f"queries.{ending}"
    assert export(path, out) == 112
    table = (parquet.read_table(out) if ending == "parquet" else arrow_csv.read_csv(out)).to_pydict()
    rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    assert [row["position"] for row in rows[:50]] == [*range(20), *range(20), *range(10)]
    answers = service(pool(50))
    for row, scores in zip(rows[:50], answers, strict=True):
        assert (row["purpose"], row["state"], row["label"]) == ("training", "answered", scores.argmax())
        assert [row[f"score_{k}"] for k in range(CLASSES)] == pytest.approx(scores.tolist(), abs=1e-7)
        assert row["reserved_at"] <= row["sent_at"] <= row["settled_at"]
    with QueryLedger(path, 500) as ledger:
        keys = ledger.attach(opened()).keys.of(pool(50)).order
    assert [row["key"] for row in rows[:50]] == [key.hex() for key in keys]
    votes = rows[50:80]
    assert [row["label"] for row in votes] == service(pool(30)).argmax(axis=1).tolist()
    assert {row["score_0"] for row in votes} == {None}
    assert len({row["key"] for row in votes}) == 30
    rest = [(row["state"], row["label"] is None, (row["key"] or "") == "") for row in rows[80:]]
    assert sorted(rest) == sorted(
        [("unknown", True, False)] * 20
        + [("refused", True, False)] * 8
        + [("answered", False, False)] * 2
        + [("unknown", True, True)] * 2
    )
    reasons = {row["reason"] for row in rows[80:]}
    assert any("line dropped" in (reason or "") for reason in reasons)
    assert any("lost attempts" in (reason or "") for reason in reasons)


def test_an_export_in_many_tables_is_the_same(path: Path, tmp_path: Path, monkeypatch) -> None:
    export(path, tmp_path / "whole.csv")
    monkeypatch.setattr("surrogates.ledger.export.ROWS_A_TABLE", 7)
    seen: list[int] = []

    def progress(batches, *, total, **_):
        for batch in batches:
            seen.append(total)
            yield batch

    export(path, tmp_path / "parts.csv", progress=progress)
    assert (tmp_path / "whole.csv").read_text() == (tmp_path / "parts.csv").read_text()
    assert seen == [seen[0]] * len(seen)
    assert len(seen) == seen[0]


def test_an_empty_ledger_has_an_empty_export(tmp_path: Path) -> None:
    QueryLedger(tmp_path / "ledger.db", 1).close()
    assert export(tmp_path / "ledger.db", tmp_path / "none.csv") == 0
    with (tmp_path / "none.csv").open() as file:
        assert [row[:2] for row in csv.reader(file)] == [["purpose", "state"]]
    assert "none yet" in render(str(tmp_path / "ledger.db"))


def test_reading_changes_nothing_and_needs_no_pause_of_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    stop = threading.Event()
    with QueryLedger(path, 100_000) as ledger:
        target = ledger.attach(opened())
        target.query(pool(5))

        def write() -> None:
            seed = 10
            while not stop.is_set():
                target.query(pool(40, seed=(seed := seed + 1)))

        writer = threading.Thread(target=write)
        writer.start()
        try:
            counts = []
            for turn in range(10):
                statement = read_statement(path)
                counts.append(statement.total.answered)
                rows = export(path, tmp_path / f"{turn}.csv")
                assert rows >= statement.total.largest
        finally:
            stop.set()
            writer.join()
        assert counts == sorted(counts)
        assert counts[-1] > counts[0] >= 5
    before = path.read_bytes()
    read_statement(path)
    export(path, tmp_path / "again.csv")
    assert path.read_bytes() == before


def test_a_stale_batch_is_listed_and_not_settled(path: Path) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(
            "INSERT INTO batches (purpose, size, state, charged_when_sent, owner, reserved_at) "
            "VALUES ('attack', 9, 'sent', 1, 12345, 0)"
        )
    connection.close()
    assert read_statement(path).accounts["attack"].in_flight == 9
    assert "left by one that ended" in render(str(path))
    assert read_statement(path).accounts["attack"].in_flight == 9


def test_the_command_shows_bill_and_cost(path: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "queries.parquet"
    assert main(["ledger", str(path), "--price", "1.50", "--export", str(out), "--quiet"]) == 0
    shown, errors = capsys.readouterr()
    assert errors == ""
    rows = {line.split()[0]: line.split()[1:7] for line in shown.splitlines() if line.strip()}
    assert rows["training"] == ["52", "22", "0", "8", "52", "74"]
    assert rows["certification"] == ["30", "0", "0", "0", "30", "30"]
    assert rows["total"] == ["82", "22", "0", "8", "82", "104"]
    assert "charge   between 82 and 104 queries" in shown
    assert "cost     between 0.12 and 0.16 USD at 1.5 USD per 1,000" in shown
    assert "112 queries" in shown
    assert out.stat().st_size > 0


def test_the_command_hides_a_password(tmp_path: Path, capsys) -> None:
    secret = open_target(service, num_classes=CLASSES, identity="http://me:secret@host/v2")
    with QueryLedger(tmp_path / "ledger.db", 1) as ledger:
        ledger.attach(secret)
    assert main(["ledger", str(tmp_path / "ledger.db")]) == 0
    assert "secret" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no file given"),
        (["missing.db"], "missing.db does not exist: give the file of a ledger"),
        (["text.db"], "file is not a database"),
        (["other.db"], "is no ledger but a database of another program"),
        (["future.db"], "has schema 99, expected 3"),
        (["ledger.db", "--price", "0"], "USD per 1,000 queries above 0, got 0"),
        (["ledger.db", "--price", "dear"], "invalid float value: 'dear'"),
        (["ledger.db", "--export", "out.xls"], ".parquet or .csv file, got out.xls"),
        (["ledger.db", "--export", "missing/out.csv"], "has no directory: create missing"),
        (["ledger.db", "--frobnicate"], "unknown option '--frobnicate'"),
    ],
)
def test_bad_input_is_one_line(path: Path, monkeypatch, capsys, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(path.parent)
    Path("text.db").write_text("no database at all, whatever its name says\n" * 50)
    sqlite3.connect("other.db").executescript("CREATE TABLE runs (id)").connection.close()
    shutil.copy(path, "future.db")
    connection = sqlite3.connect("future.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert main(["ledger", *arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not list(Path().glob("*.part"))


def test_the_help_has_an_example(capsys) -> None:
    assert main(["ledger", "--help"]) == 0
    assert "certdef ledger runs/digits/ledger.db --price 1.50 --export" in capsys.readouterr().out


def test_an_export_without_pyarrow_says_so(path: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(LedgerError, match="pip install pyarrow"):
        export(path, tmp_path / "out.csv")


def test_a_ledger_in_a_folder_that_cannot_be_written_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    with QueryLedger(path, 10) as ledger:
        ledger.attach(open_target(service, num_classes=CLASSES)).query(pool(3))
    Path(f"{path}-lock").unlink()
    monkeypatch.setattr(os, "access", lambda place, mode: place != tmp_path)
    with reading(path) as db:
        assert db.execute("SELECT sum(size) FROM batches").fetchone() == (3,)
        assert [each.name for each in tmp_path.iterdir()] == ["ledger.db"]  # SQLite needs nothing beside it
