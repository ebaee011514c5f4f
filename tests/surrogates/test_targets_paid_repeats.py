"""A repeated attempt is on the bill before it is made, and one that would pass the budget is not made."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from surrogates import QueryLedger, Refused, TargetError, open_target
from surrogates.ledger.reader import read_statement
from surrogates.targets import http
from tests.servers.faulty import Faults, faulty_server

MANY = 256
IMAGES = np.linspace(0, 1, 4 * MANY, dtype=np.float32).reshape(MANY, 1, 2, 2)


@pytest.fixture
def service() -> Iterator[tuple[str, Faults]]:
    with faulty_server(lambda images: np.full((len(images), 3), [0.2, 0.5, 0.3])) as (url, faults):
        yield url, faults


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http.tenacity, "sleep_using_event", lambda event: lambda seconds: None)


def opened(url: str, **options: Any) -> Any:
    return open_target(url, num_classes=3, batch_size=MANY, timeout=5.0, **options)


@pytest.mark.parametrize("repeats", [1, 5])
def test_a_repeat_that_would_pass_the_budget_is_not_made(
    service: tuple[str, Faults], tmp_path: Path, repeats: int
) -> None:
    url, faults = service
    faults.will("fail", times=10, status=500)
    with QueryLedger(tmp_path / "ledger.db", MANY) as ledger:
        with pytest.raises(TargetError) as caught:
            ledger.attach(opened(url, repeats=repeats, attempts=10)).query(IMAGES)
        charge = ledger.bill()["training"]
    assert "answered 500" in str(caught.value)
    assert str(caught.value).endswith(
        ": it is not queried again, since the training budget is 256 queries, 0 spent and 256 in flight, "
        "this batch needs 256 more: raise ledger.training to at least 512 or query fewer images"
    )
    assert faults.charged == MANY, "the service was asked again"
    assert (charge.answered, charge.unknown, charge.in_flight) == (0, MANY, 0)


def test_repeats_go_on_until_the_budget_ends(service: tuple[str, Faults], tmp_path: Path) -> None:
    url, faults = service
    faults.will("fail", times=10, status=500)
    with QueryLedger(tmp_path / "ledger.db", 3 * MANY + 5) as ledger:
        with pytest.raises(
            TargetError, match=r"in 3 attempts: .* training budget is 773 queries, 0 spent and 768 in"
        ):
            ledger.attach(opened(url, repeats=5, attempts=10)).query(IMAGES)
        charge = ledger.bill()["training"]
    assert (faults.charged, charge.unknown, charge.in_flight) == (3 * MANY, 3 * MANY, 0)


def test_a_repeat_is_on_the_bill_before_it_is_made(service: tuple[str, Faults], tmp_path: Path) -> None:
    url, faults = service
    path = tmp_path / "ledger.db"
    in_flight: list[int] = []
    real = faults.model
    faults.model = lambda images: (in_flight.append(read_statement(path).total.in_flight), real(images))[1]
    faults.will("fail", status=500)
    with QueryLedger(path, 2 * MANY) as ledger:
        assert len(ledger.attach(opened(url)).query(IMAGES)) == MANY
        charge = ledger.bill()["training"]
    assert in_flight == [MANY, 2 * MANY]
    assert (charge.answered, charge.unknown, charge.in_flight, charge.refused) == (MANY, MANY, 0, 0)


def test_a_repeat_that_is_refused_is_not_charged(service: tuple[str, Faults], tmp_path: Path) -> None:
    url, faults = service
    faults.will("fail", status=500).will("refuse", times=9, status=429)
    with QueryLedger(tmp_path / "ledger.db", 2 * MANY) as ledger:
        with pytest.raises(TargetError) as caught:
            ledger.attach(opened(url, attempts=4)).query(IMAGES)
        assert not isinstance(caught.value, Refused)
        charge = ledger.bill()["training"]
    assert (faults.charged, charge.unknown, charge.refused, charge.in_flight) == (MANY, MANY, MANY, 0)


@pytest.mark.parametrize(("budget", "unknown"), [(MANY, 256), (MANY + 64, 256 + 64), (2 * MANY, 2 * MANY)])
def test_requests_at_once_share_the_budget(
    service: tuple[str, Faults], tmp_path: Path, budget: int, unknown: int
) -> None:
    url, faults = service
    faults.will("fail", times=20, status=500)
    target = open_target(url, num_classes=3, batch_size=64, concurrency=4, timeout=5.0)
    with QueryLedger(tmp_path / "ledger.db", budget) as ledger:
        with pytest.raises(TargetError):
            ledger.attach(target).query(IMAGES)
        charge = ledger.bill()["training"]
    assert faults.charged == charge.largest == charge.unknown == unknown <= budget


def test_without_a_ledger_nobody_forbids_a_repeat(service: tuple[str, Faults]) -> None:
    url, faults = service
    faults.will("fail", status=500)
    assert opened(url).query(IMAGES).lost == MANY
    assert faults.charged == 2 * MANY


def test_an_interrupt_between_two_attempts_charges_the_first_alone(
    service: tuple[str, Faults], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(event: Any) -> Any:
        def sleep(seconds: float) -> None:
            raise KeyboardInterrupt

        return sleep

    monkeypatch.setattr(http.tenacity, "sleep_using_event", interrupted)
    url, faults = service
    faults.will("fail", status=500)
    with QueryLedger(tmp_path / "ledger.db", 5 * MANY) as ledger:
        with pytest.raises(KeyboardInterrupt):
            ledger.attach(opened(url)).query(IMAGES)
        charge = ledger.bill()["training"]
    assert faults.charged == MANY
    assert (charge.answered, charge.unknown, charge.in_flight) == (0, MANY, 0)
