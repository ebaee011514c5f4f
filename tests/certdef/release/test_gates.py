"""The grammar of gates is strict, and each gate measures what it says."""

import numpy as np
import pytest

from certdef.config.job import ConfigError
from certdef.release.compare import compare_rows
from certdef.release.gates import gate, observed_drop, proven_drop
from certdef.release.pairing import pair
from certdef.release.rules import parse_rules
from tests.certdef.release.certified import of_flags

LABELS = np.zeros(100, dtype=np.int64)


def pairs(before: int, after: int, radius: float = 0.5):
    flags = [np.arange(100) < count for count in (before, after)]
    return pair(*of_flags(*flags, LABELS, radius), ("OLD", "NEW"))


@pytest.mark.parametrize(
    ("rule", "passed"),
    [
        ("certified@0.25 < 0.60", True),
        ("certified@0.25 < 93%", True),
        ("certified@0.25 <= 0.93", False),
        ("certified@0.25<0.931", False),
        ("certified@.5 < 0.93", True),
        ("certified@0.6 < 0.01", False),
        ("clean >= 0.94", True),
        ("abstained > 0.07", True),
        ("abstained >= 7%", False),
        ("drop@0.25 > 0.02", True),
        ("drop@0.25 >= 0.02", False),
        ("lost@0.25 > 1", False),
        ("lost@0.25 > 2", True),
        ("median_radius < 0.5", True),
        ("mean_radius < 0.47", False),
    ],
)
def test_a_gate_fails_where_its_rule_is_true(rule, passed):
    [parsed] = parse_rules([rule])
    assert gate(parsed, pairs(95, 93)).passed == passed


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "certified < 0.6",
        "clean@0.5 < 1",
        "certified@0.25 < 60",
        "certified@0.25 == 0.6",
        "certified@0.25 < 0.6 or clean < 1",
        "certified@-1 < 0.6",
        "certified@0.25 < nan",
        "certified@1e999 < 0.5",
        "abstained < 0x1",
        "__import__('os').system('true') < 1",
        "certfied@0.25 < 0.6",
        "median_radius < 5%",
        "0.6 > certified@0.25",
        "clean < 1; clean < 2",
        "clean < ١",
    ],
)
def test_anything_else_is_refused(rule):
    with pytest.raises(ConfigError, match="--fail-if"):
        parse_rules([rule])


def test_all_that_cannot_be_read_is_said_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_rules(["certfied@0.25 < 0.6", "clean < 1", "clean"])
    assert len(str(caught.value).splitlines()) == 2
    assert "'certified'" in str(caught.value)


def rows_of(before: int, after: int):
    return compare_rows(pairs(before, after), [0.25], {})


@pytest.mark.parametrize(("after", "passed"), [(95, True), (93, True), (92, False), (99, True)])
def test_the_observed_drop(after, passed):
    assert (
        observed_drop(rows_of(95, after), 0.02).passed == passed
    )  # 95/100 - 93/100 is more than 0.02 in floats


@pytest.mark.parametrize(("after", "passed"), [(94, True), (90, True), (80, False)])
def test_a_drop_must_be_proven(after, passed):
    assert proven_drop(rows_of(95, after), 0).passed == passed


def test_a_proven_drop_beyond_a_limit_is_larger_than_one_beyond_zero():
    assert not proven_drop(rows_of(95, 80), 0).passed
    assert proven_drop(rows_of(95, 80), 0.1).passed
    assert not proven_drop(rows_of(95, 40), 0.1).passed
