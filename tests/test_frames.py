"""What a notebook shows of a value: a line that names it, a table, HTML that no name can break out of."""

import pickle
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn

import certify
import surrogates
from certdef.attacks.evaluation import AttackEvaluation, Evaluations
from certdef.release.results import Comparison, Row, Version
from certdef.stages.attack import AttackResult, AttackRow
from certdef.stages.budgets import BudgetsResult, Cell
from certdef.stages.plan import Images, Plan, Purpose
from certdef.tracking.results import Share, StageResult
from certify.certificate import Framed as FramedHere
from certify.threats.population import ImageChange, PopulationBound
from surrogates.frames import Framed as FramedThere

EVIL = "<script>alert('1')</script>"
SHARE = Share(0.5, 0.123456, 0.876543)
CERTIFICATE = certify.Certificate(
    prediction=3,
    radius=0.412399,
    norm="l2",
    p_lower=0.950871,
    counts=(3, 7, 0, 1990),
    n0=100,
    n=2000,
    alpha=0.001,
    method="fixed",
    noise={"law": EVIL, "norm": "l2", "sigma": 0.25},
    subject=EVIL,
    sound=True,
    selected=3,
)
ABSTAINED = replace(CERTIFICATE, prediction=certify.ABSTAIN, radius=0.0)
CERTIFICATES = certify.Certificates([CERTIFICATE, ABSTAINED])
RECORDS = certify.Records.of(CERTIFICATES, [3, 1])
VERSION = Version(
    given=EVIL, records="", images=60, subject=None, denoiser=None, noise=None, norm=None, n0=None, n=None,
    alpha=None, method=None, seed=None, sound=True, abstained=0.0, median_radius=0.2, mean_radius=0.2,
)  # fmt: skip
ROW = Row(
    scope=EVIL, name="", radius=0.25, images=60, old=0.9, new=0.5, lost=30, won=6, difference=-0.4, lower=-0.6,
    upper=-0.2, p=1e-4, p_holm=2e-4, verdict="worse",
)  # fmt: skip
TRIED = AttackEvaluation(EVIL, "every weight", 0.2, [0.5, 0.4, 0.6], (True, False) * 50, 700)

# The value, its number of rows, and words of its line.
SHOWN = {
    "certificate": (CERTIFICATE, 1, ("prediction=3", "radius=0.4123", "n=2000", "alpha=0.001", "sigma=0.25")),
    "abstention": (ABSTAINED, 1, ("ABSTAIN", "radius=0,")),
    "certificates": (CERTIFICATES, 2, ("2 images, 1 certified", "alpha=0.001", "4,200 votes")),
    "records": (RECORDS, 2, ("2 images, 1 correct, 1 abstained", "radius 0 to 0.4123", "alpha=0.001")),
    "curve": (
        certify.curves.certified_accuracy(RECORDS, [0, 0.3]),
        2,
        ("2 images", "50.0% at radius 0, 50.0% at radius 0.3"),
    ),
    "bill": (
        surrogates.Bill(
            EVIL,
            {"training": surrogates.Charge(600, 500, 2, 0, 70), "attack": surrogates.Charge(0, 0, 0, 0, 0)},
        ),
        1,
        ("training 502 of 600", "2 of them without an answer"),
    ),
    "fidelity": (
        surrogates.Fidelity(0.9251, 0.899991, 0.946001, 0.1, 400, True),
        1,
        ("0.9251 [0.8999, 0.9461]", "n=400", "noisy"),
    ),
    "population": (
        PopulationBound(
            EVIL, EVIL, {}, 0.1, 0.001, "fixed", 66, 16, 0, (ImageChange(0, 1, 0, 66, 0, "proven", 0, 0.1),)
        ),
        1,
        ("average case", "P(change) <= 0.1 proven of 1 of 1 images"),
    ),
    "choice": (
        certify.NoiseChoice(
            certify.Gaussian(0.5),
            (certify.Gaussian(0.25), certify.Gaussian(0.5)),
            np.array([0.0, 0.5]),
            np.array([[0.9, 0.1], [0.8, 0.6]]),
            4000,
            (1, 2),
        ),
        4,
        ("gaussian sigma=0.5", "of 2 candidates", "4,000 votes on 2 held-out images"),
    ),
    "ladder": (
        Evaluations([TRIED, AttackEvaluation("square", "scores", 0.2, skipped="labels alone")]),
        2,
        ("1 of 2 tried",),
    ),
    "attack": (
        AttackResult(rows=(AttackRow(0.1, SHARE, SHARE),), images=100, metrics={EVIL: 0.5}),
        1,
        ("AttackResult", "=0.5"),
    ),
    "budgets": (BudgetsResult(cells=(Cell(EVIL, 100, 0, 100, 80, {"clean": SHARE}),)), 1, ("BudgetsResult",)),
    "stage": (
        StageResult(metrics={"a": 1.0, "b": 0.25, "c": 3.0, "d": 4.0}, params={"x": [0] * 1000}),
        4,
        ("a=1, b=0.25, c=3, 1 more metrics",),
    ),
    "comparison": (
        Comparison(
            old=VERSION, new=VERSION, images=60, paired_by="idx", same_noise=True, radii=(0.25,), alpha=0.05,
            tests=1, correction="", rows=(ROW,), lost=(), won=(), gates=(), notes=(),
        ),
        1,
        ("60 images", "1 worse, 0 better"),
    ),
    "plan": (
        Plan(EVIL, Images("digits", (1, 8, 8), 50, 100, ("0", "1")), queries={"attack": Purpose(5, 9, 2)}),
        1,
        ("at most 5 queries, 2 of them answered",),
    ),
}  # fmt: skip


class Table(HTMLParser):
    """The cells of every row; fails on any tag that a table and its caption do not need."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self.text = [], set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        self.text += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()

    def column(self, name):
        return [row[self.rows[0].index(name)] for row in self.rows[1:]]


@pytest.mark.parametrize(("value", "rows", "words"), SHOWN.values(), ids=SHOWN)
def test_a_value_is_a_line_and_a_table(value, rows, words):
    line = repr(value)
    assert line.startswith(type(value).__name__ + "(")
    assert "\n" not in line
    assert len(line) < 330
    assert "array(" not in line
    for each in words:
        assert each in line
    frame = value.to_frame()
    assert len(frame) == rows
    assert all(np.ndim(cell) == 0 for cell in frame.to_numpy().flat)
    table = Table(value._repr_html_())
    assert table.tags <= {"p", "code", "table", "thead", "tbody", "tr", "th", "td"}
    assert line in table.text  # whole, and as text
    assert len(table.rows) == rows + 1
    assert "color" not in value._repr_html_()  # that of the notebook, light or dark


def test_the_check_sees_a_name_that_breaks_out():
    assert "script" in Table(f"<table><tr><td>{EVIL}</td></tr></table>").tags


def test_bounds_are_never_shown_as_more_than_was_proven():
    table = Table(CERTIFICATES._repr_html_())
    assert table.column("radius") == ["0.4123", "0"]  # 0.412399
    assert table.column("p_lower") == ["0.9508", "0.9508"]  # 0.950871
    fidelity = Table(SHOWN["fidelity"][0]._repr_html_())
    assert (fidelity.column("lower"), fidelity.column("upper")) == (["0.8999"], ["0.9461"])
    attack = Table(SHOWN["attack"][0]._repr_html_())
    assert attack.column("target_lower") == ["0.1234"]
    assert attack.column("target_upper") == ["0.8766"]
    grid = certify.curves.certified_accuracy(RECORDS, [0.1, 0.3, 0.7])
    assert Table(grid._repr_html_()).column("radius") == ["0.1", "0.3", "0.7"]


def test_both_packages_show_alike():
    class Here(FramedHere):
        to_frame = CERTIFICATES.to_frame

    class There(FramedThere):
        to_frame = CERTIFICATES.to_frame

    shown = [re.sub(r"<code>.*</code>", "", each()._repr_html_()) for each in (Here, There)]
    assert shown[0] == shown[1]


def test_a_long_table_is_short_in_a_notebook_and_whole_in_the_frame():
    many = certify.Certificates([CERTIFICATE] * 500)
    assert len(many.to_frame()) == 500
    assert len(Table(many._repr_html_()).rows) < 25


def test_certificates_are_a_list():
    assert CERTIFICATES == [CERTIFICATE, ABSTAINED]
    assert isinstance(CERTIFICATES, list)
    again = pickle.loads(pickle.dumps(CERTIFICATES))
    assert type(again) is certify.Certificates
    assert again == CERTIFICATES
    assert repr(certify.Certificates()) == "Certificates(0 images)"
    assert len(certify.Certificates().to_frame()) == 0
    mixed = certify.Certificates([CERTIFICATE, replace(CERTIFICATE, alpha=0.01, sound=False)])
    assert "alpha" not in repr(mixed)  # there is no single one
    assert "approximate" in repr(mixed)


@pytest.fixture(scope="module")
def smoothed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    return certify.SmoothedClassifier(model, certify.Gaussian(0.25), 3), torch.rand(5, 1, 4, 4)


def test_records_of_certificates_are_those_of_a_file(smoothed, tmp_path):
    classifier, images = smoothed
    with certify.RecordLog(tmp_path / "records", {}) as log:
        found = classifier.certify(
            images, n=200, on_certificate=lambda index, each, _: log.append(index, index % 3, each, 0.1)
        )
    assert type(found) is certify.Certificates
    written, at_hand = certify.read_records(log.path), certify.Records.of(found, np.arange(5) % 3)
    for name in (
        "idx",
        "label",
        "predict",
        "radius",
        "correct",
        "p_lower",
        "counts",
        "selected",
        "alpha",
        "n0",
    ):
        np.testing.assert_array_equal(getattr(written, name), getattr(at_hand, name), err_msg=name)
    for name in ("method", "sound", "noise", "known_class"):
        assert getattr(written, name) == getattr(at_hand, name)
    assert written.to_frame().equals(at_hand.to_frame())
    unknown = certify.Records.of(found, [-1] * 5)
    assert not unknown.correct.any()  # an abstention is no match for a label that is not known


@pytest.mark.parametrize(
    ("certificates", "labels", "message"),
    [
        (CERTIFICATES, [1], r"labels must be integers \(2,\), got int64 \(1,\)"),
        (CERTIFICATES, [1.0, 2.0], "got float64"),
        ([], [], "one a certificate"),
        ([CERTIFICATE, replace(CERTIFICATE, noise={})], [1, 2], "certificate 1 is of another noise law"),
    ],
)
def test_records_of_what_does_not_belong_together_are_refused(certificates, labels, message):
    with pytest.raises(certify.CertifyError, match=message):
        certify.Records.of(certificates, labels)


def test_lines_of_what_has_no_table(tmp_path):
    answers = surrogates.Answers(np.zeros(80, dtype=np.int64), np.zeros((80, 10), dtype=np.float32), lost=2)
    assert repr(answers) == "Answers(80 images, labels and scores of 10 classes, lost=2)"
    student = surrogates.Surrogate(nn.Linear(2, 2), 300, tuple(range(300)), (0.5,) * 40, "cross_entropy", 0.9)
    assert repr(student) == (
        "Surrogate(Linear, queries=300, strategy='random', loss='cross_entropy', epochs=40, "
        "held_out_agreement=0.9000)"
    )
    ledger = surrogates.QueryLedger(tmp_path / "paid.db", {"training": 1500, "attack": 20})
    ledger.close()
    assert (
        repr(ledger) == f"QueryLedger('{tmp_path / 'paid.db'}', training 1,500, attack 20)"
    )  # also when closed
