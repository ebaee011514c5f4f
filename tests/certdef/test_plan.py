"""The plan of a job: all that is wrong at once, nothing paid beyond its own purpose, figures that the job then keeps to."""

import dataclasses
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import certdef
import surrogates
from certdef.cli import main
from certdef.config.job import ConfigError
from certdef.data.sets import load_data
from certdef.doctor import doctor
from certdef.report.plan import duration
from certdef.stages.estimates import expected_queries, reaches
from tests.conftest import TINY
from tests.servers.faulty import faulty_server

SMALL = TINY | {"data__heldout_images": 60, "ledger__training": 200, "surrogate__epochs": 5, "purifier": "gs"}
WRITTEN = ["--preset=digits"] + [
    f"--{key.replace('__', '.')}={str(value).lower()}" for key, value in SMALL.items()
]


def spent(folder: Path) -> dict[str, int]:
    """Queries by purpose in every ledger below a folder."""
    found: dict[str, int] = {}
    for path in folder.rglob("*.db"):
        with sqlite3.connect(path) as ledger:
            if ledger.execute("SELECT 1 FROM sqlite_master WHERE name = 'batches'").fetchone():
                found |= dict(ledger.execute("SELECT purpose, sum(size) FROM batches GROUP BY purpose"))
    return found


# Six things that are wrong in different places: a value, the device, the images, a budget, a model, the target.
SIX = {
    "--certify.alpha=2": "certify.alpha is 2.0",
    "--device=cuda": "device is 'cuda'",
    "--data.path=nowhere.npz": "nowhere.npz",
    "--ledger.attack=10": "ledger.attack is 10",
    "--surrogate.model=resnet1800": "unknown model 'resnet1800'",
    "--target.uri=nowhere.onnx": "nowhere.onnx",
}


@pytest.mark.parametrize("verb", ["plan", "run"])
def test_six_wrong_settings_are_six_lines_before_any_query(
    verb: str, store: str, tmp_path: Path, capsys: Any
) -> None:
    assert main([verb, f"--tracking.uri={store}", *SIX]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    for words in SIX.values():
        assert any(words in line for line in lines), words
    assert spent(tmp_path) == {}


def test_options_that_cannot_be_read_stand_beside_all_else_that_is_wrong(store: str, capsys: Any) -> None:
    wrong = [
        "--certify.n=many",
        "--certify.alhpa=0.1",
        "--certify.n0=0",
        "--nim.heads=5",
        "--target.layout=nchw",
    ]
    assert main(["plan", f"--tracking.uri={store}", *wrong, "--target.uri=net.onnx", "--json"]) == 2
    errors = json.loads(capsys.readouterr().out)["errors"]
    for words in (
        "certify.n is many",
        "certify.n0 is 0",
        "unknown key 'certify.alhpa'",
        "nim.heads is 5",
        "layout must be one of",
    ):
        assert sum(words in line for line in errors) == 1, (words, errors)


def test_a_job_names_every_option_that_it_cannot_read(capsys: Any) -> None:
    assert main(["run", "--certify.n=many", "--certify.alhpa=0.1"]) == 2
    assert [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()] == [
        "certify.n is many",
        "unknown key 'certify.alhpa' (did you mean 'certify.alpha'?)",
    ]


def test_a_plan_pays_for_its_look_once_and_the_job_gets_that_for_nothing(
    service: Any, store: str, tmp_path: Path, capsys: Any
) -> None:
    url, faults = service
    arguments = [f"--tracking.uri={store}", f"--target.uri={url}", "--target.num_classes=10", *WRITTEN]
    arguments += ["--work_dir=work", "--target.canary_every=0"]
    assert main(["plan", *arguments, "--price=1.50"]) == 0
    shown = capsys.readouterr().out
    assert faults.charged == 50
    assert spent(tmp_path) == {"preflight": 50}
    for words in (
        "60 held out, 797 in the pool, 1x8x8; 10 classes: 0, 1, 2, 3 ... 9",
        "takes float32 (N, 1, 8, 8), pixels from 0 to 1",
        "of 50 held-out images",
        "USD at most, 1.5 USD per 1,000",
        "the target's answers",
        "under nim",
        "1 can't be proven under nim noise",
    ):
        assert words in shown, (words, shown)
    assert len(shown.splitlines()) <= 24
    assert main(["plan", *arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert faults.charged == 50
    assert plan["look"]["images"] == 50
    assert plan["queries"]["preflight"] == {"expected": 50, "budget": 1_000, "answered": 50}

    config = certdef.load_config(
        "digits",
        work_dir="work",
        tracking__uri=store,
        target__uri=url,
        target__num_classes=10,
        target__canary_every=0,
        **SMALL,
    )
    summary = certdef.distill(config, progress=False)
    assert spent(tmp_path) == {"preflight": 50, "evaluation": 2 * 60 - 50, "training": 200}
    assert summary.results["target"]["accuracy"][0] > 0.85
    made = certdef.plan(config)
    assert faults.charged == 50 + 70 + 200
    ((behind, shares),) = made.foretold.items()
    assert behind == "gs"  # which needs no training
    assert [share.value for share in shares] == sorted((share.value for share in shares), reverse=True)


def test_a_job_begins_with_the_look_and_names_the_fault(
    logistic: LogisticRegression, store: str, tmp_path: Path, capsys: Any
) -> None:
    """A service of pixels from 0 to 255 that is told nothing of it: the job says so before it pays for anything else."""
    calls: list[dict[str, int]] = []

    def answer(images: np.ndarray) -> np.ndarray:
        calls.append(spent(tmp_path))
        levels = images.reshape(len(images), -1) / 255
        return logistic.predict_proba(levels)

    with faulty_server(answer) as (url, _):
        arguments = [f"--tracking.uri={store}", f"--target.uri={url}", "--target.num_classes=10", *WRITTEN]
        assert main(["distill", *arguments, "--quiet", "--work_dir=work"]) == 0
    said = capsys.readouterr().err
    assert "certdef: warning: accuracy " in said
    assert "likely it takes pixels from 0 to 255: --target.pixel_range [0,255]" in said
    assert set(calls[0]) <= {"preflight", "canary"}
    bill = spent(tmp_path)
    assert 50 < bill["preflight"] <= 1_000
    assert bill["training"] == 200
    assert bill["evaluation"] == 2 * 60 - 50


def test_no_look_where_its_budget_is_0(service: Any, store: str, tmp_path: Path) -> None:
    url, faults = service
    config = certdef.load_config(
        "digits",
        work_dir="work",
        tracking__uri=store,
        target__uri=url,
        target__num_classes=10,
        ledger__preflight=0,
        **SMALL,
    )
    assert certdef.plan(config).look is None
    assert faults.charged == 0


def test_doctor_pays_for_nothing(service: Any, store: str, tmp_path: Path, capsys: Any) -> None:
    url, faults = service
    options = {"tracking__uri": store, "target__uri": url, "target__num_classes": 10, "work_dir": "work"}
    assert doctor(certdef.load_config("digits", **options | SMALL)) == 0
    shown = capsys.readouterr().out
    assert "takes float32 (N, 1, 8, 8)" in shown
    assert faults.charged == 0
    assert not (tmp_path / "work").exists()
    assert doctor(certdef.load_config("digits", **options | SMALL | {"target__num_classes": 9})) == 1
    assert "MISSING  job" in capsys.readouterr().out


def test_the_queries_of_a_plan_are_those_of_the_job(tiny_job: Any) -> None:
    config, summary, _ = tiny_job
    expected = expected_queries(config, load_data(config.data, config.seed), None)
    charges = summary.bill.charges
    answered = {purpose: charges[purpose].answered for purpose in expected}
    assert answered.pop("certification") <= expected["certification"]  # votes end once the radii are decided
    assert answered == {purpose: count for purpose, count in expected.items() if purpose != "certification"}
    assert set(expected) == {"training", "evaluation", "certification", "attack"}


def test_the_radius_of_a_plan_is_that_of_a_unanimous_vote(tiny_job: Any) -> None:
    config, summary, _ = tiny_job
    first, *_ = reaches(config)
    assert first.law == config.headline_law
    assert first.n == summary.results["certify"]["draws_target"]
    curves = summary.results["certify"]["curves"]
    beyond = [radius > first.radius for radius in config.certify.radii]
    shares = curves[f"target-{first.law}-de3"]["accuracy"]
    assert all(share[0] == 0 for share, out in zip(shares, beyond, strict=True) if out)
    assert True in beyond


def test_a_look_without_labels_asks_twice() -> None:
    config = certdef.load_config(**SMALL | {"data__heldout_images": 20})
    data = load_data(config.data, 0)
    target = surrogates.open_target(lambda images: np.zeros(len(images), int), num_classes=10)
    looks = [
        expected_queries(config, each, target)["preflight"]
        for each in (data, dataclasses.replace(data, labeled=False))
    ]
    assert looks == [20, 40]


@pytest.mark.parametrize("verb", ["distill", "certify", "attack"])
def test_a_verb_expects_what_it_pays_for(verb: str) -> None:
    config = certdef.load_config(**SMALL)
    expected = expected_queries(config, load_data(config.data, 0), None, verb)
    assert ("certification" in expected) == (verb == "certify")
    assert ("attack" in expected) == (verb == "attack")
    assert (
        expected["evaluation"] == (3 if verb == "certify" else 2) * 60
    )  # denoised, for the surrogate that is certified


def test_an_evaluation_budget_that_is_too_small_is_refused_before_anything_is_paid(store: str) -> None:
    config = certdef.load_config(tracking__uri=store, **SMALL, ledger__evaluation=179)
    with pytest.raises(ConfigError, match=r"ledger.evaluation is 179: .* need 180"):
        certdef.distill(config, progress=False)


def test_prices_and_times_as_a_person_says_them(store: str) -> None:
    config = certdef.load_config("digits", tracking__uri=store, **SMALL)
    with pytest.raises(ConfigError, match="price must be USD per 1,000 queries above 0, got 0"):
        certdef.plan(config, price=0)
    assert [duration(seconds) for seconds in (0.2, 89, 600, 7_200)] == ["1 s", "89 s", "10 min", "2.0 h"]


def test_a_plan_of_a_target_that_is_trained_here_has_times_and_no_look(store: str) -> None:
    config = dataclasses.replace(certdef.load_config("digits", tracking__uri=store, **SMALL), purifier="de3")
    made = certdef.plan(config, price=2.0)
    assert made.look is None
    assert made.target is None
    assert made.seconds.keys() >= {"train De^3", "train the surrogate", "the surrogate's votes", "attack"}
    assert all(value > 0 for value in made.seconds.values())
    assert made.total.expected == sum(each.expected for each in made.queries.values())
    assert json.loads(json.dumps(made.to_json()))["price"] == 2.0


@pytest.mark.parametrize(
    ("training", "model", "warned"), [(19, "mlp", True), (20, "mlp", False), (19, "none", False)]
)
def test_a_surrogate_of_few_answers_is_warned_of(store: str, training: int, model: str, warned: bool) -> None:
    options = SMALL | {"ledger__training": training, "surrogate__query_batch": 10, "surrogate__model": model}
    plan = certdef.plan(certdef.load_config("digits", tracking__uri=store, **options))
    assert ("19 answers for 10 classes" in " ".join(plan.warnings)) == warned
