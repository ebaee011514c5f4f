"""Agreement against queries: the arithmetic of a table, and a real one on digits with interruptions and MLflow."""

import csv
import dataclasses
import io

import numpy as np
import pytest
import torch
from torch import nn

import certdef
import surrogates
from certdef import pipeline
from certdef.cli import main
from certdef.config.job import ConfigError
from certdef.models.classifiers import build_classifier, surrogate_model
from certdef.purifiers.networks.nim import NIM, NIMClassifier, NIMShape
from certdef.report.budget_curves import as_csv, as_markdown, plot
from certdef.stages import budgets as budgets_stage
from certdef.stages import check_budgets
from certdef.stages import target as target_stage
from certdef.stages.budgets import Cell, Point, curve_points, curves
from certdef.tracking.results import Share


def cell(strategy: str, budget: int, seed: int, share: float, charged: int = 0) -> Cell:
    return Cell(
        strategy,
        budget,
        seed,
        budget,
        charged,
        {"clean": Share(share, share - 0.02, share + 0.01), "noisy": Share(0.5, 0.4, 0.6)},
    )


CELLS = [
    cell("random", 100, 0, 0.80, 100),
    cell("random", 1000, 0, 0.90, 900),
    cell("random", 100, 1, 0.84, 90),
    cell("random", 100, 2, 0.82, 70),
    cell("margin", 100, 0, 0.86, 40),
]


def test_a_point_is_the_median_seed_with_its_own_interval():
    found = curves(CELLS, "clean")
    assert list(found) == ["random", "margin"]
    assert found["random"] == [
        Point(100, 0.82, 0.82 - 0.02, 0.82 + 0.01, 0.80, 0.84, 3),
        Point(1000, 0.90, 0.90 - 0.02, 0.90 + 0.01, 0.90, 0.90, 1),
    ]
    even = curves(
        [cell("random", 100, seed, share) for seed, share in enumerate((0.4, 0.1, 0.3, 0.2))], "clean"
    )
    assert even["random"][0].median == 0.2  # a seed that exists, and not the luckier one
    assert curves(CELLS, "denoised") == {}


def test_metrics_step_by_queries():
    found = curve_points(CELLS)
    assert found["budgets/random/agreement_clean"] == ((100, 0.82), (1000, 0.90))
    assert found["budgets/margin/agreement_noisy_upper"] == ((100, 0.6),)
    assert len(found) == 2 * 2 * 3


def test_the_table_is_written_whole():
    rows = list(csv.DictReader(io.StringIO(as_csv(CELLS))))
    assert [row["charged"] for row in rows] == ["100", "900", "90", "70", "40"]
    assert float(rows[2]["agreement_clean_lower"]) == pytest.approx(0.82)
    assert "agreement_denoised" not in rows[0]
    lines = as_markdown(CELLS).splitlines()
    assert lines[0] == "| agreement, % | strategy | 100 queries | 1,000 queries |"
    assert lines[2] == "| clean | random | 82.0 (80.0-84.0) [80.0, 83.0] | 90.0 [88.0, 91.0] |"
    assert lines[3] == "| clean | margin | 86.0 [84.0, 87.0] |  |"
    assert len(lines) == 6


def test_the_picture_has_a_panel_a_condition():
    from matplotlib.image import imread

    two = imread(io.BytesIO(plot(CELLS).to_png()), format="png")
    three = [
        dataclasses.replace(c, agreement=c.agreement | {"denoised": Share(0.7, 0.6, 0.8)}) for c in CELLS
    ]
    assert imread(io.BytesIO(plot(three).to_png()), format="png").shape[1] > 1.3 * two.shape[1]
    assert np.ptp(two) > 0.5


@pytest.mark.parametrize(
    ("budgets", "strategies", "seeds", "message"),
    [
        ([], ["random"], 1, r"budgets \[\], .*: name at least one of each"),
        ([100], ["random"], 0, "seeds 0: name at least one of each"),
        ([0, 100], ["random"], 1, "a budget is 0: use 1 to 797"),
        ([798], ["random"], 1, "a budget is 798: use 1 to 797"),
        (
            [700],
            ["random", "margin"],
            3,
            "ledger.training is 600, less than the largest budget 700: .* or to 797",
        ),
    ],
)
def test_a_table_that_cannot_be_filled_is_refused(budgets, strategies, seeds, message):
    with pytest.raises(ConfigError, match=message):
        check_budgets(certdef.load_config(), budgets, strategies, seeds, 797)


def test_bad_options_are_one_line(capsys, store):
    for arguments, message in (
        (["--budgets", "100,many"], "budgets is '100,many': give numbers of queries, e.g. 100,300,600"),
        (
            ["--budgets", "100", "--strategies", "random,best"],
            "--strategies has 'best': use one of random, kcenter",
        ),
        (["--surrogate.strategy", "best"], "surrogate.strategy is 'best': use one of random, kcenter"),
        (["--surrogate.features", "eyes"], "surrogate.features is 'eyes': use student or nim"),
        (["--surrogate.ema", "2"], "ema must be a decay in (0, 1), got 2.0: try 0.99"),
    ):
        assert main(["distill", *arguments]) == 2
        shown = capsys.readouterr().err
        assert message in shown
        assert shown.count("\n") == 1


def test_a_real_table(store, tmp_path, monkeypatch, capsys):
    """Interrupted, resumed, enlarged: the charges add up to the bill, and a finished cell is not trained again."""
    config = certdef.load_config(
        work_dir=str(tmp_path / "work"),
        tracking__uri=store,
        tracking__system_metrics=False,
        surrogate__epochs=3,
        surrogate__rounds=2,
        nim__epochs=1,
        ledger__training=500,
        data__heldout_images=100,
    )
    trained: list[str] = []
    whole = budgets_stage.train_surrogate

    def counted(job, target, now, *, budget, seed, **rest):
        if len(trained) == 2 and "stopped" not in trained:
            trained.append("stopped")
            job.ledger.attach(target).query(job.data.pool[-7:])  # paid for before the interruption
            raise KeyboardInterrupt
        trained.append(f"{now.strategy}-{budget}-{seed}")
        return whole(job, target, now, budget=budget, seed=seed, **rest)

    monkeypatch.setattr(budgets_stage, "train_surrogate", counted)
    table = ([100, 120], ["random", "margin"])
    with pytest.raises(KeyboardInterrupt):
        pipeline.budgets(config, *table, progress=False)
    first = pipeline.budgets(config, *table, progress=False)
    assert trained == ["random-100-0", "random-120-0", "stopped", "margin-100-0", "margin-120-0"]
    cells = list(next(reversed(first.stages.values())).result.cells)
    assert [(c.strategy, c.queries) for c in cells] == [
        ("random", 100),
        ("random", 120),
        ("margin", 100),
        ("margin", 120),
    ]
    assert [c.charged for c in cells[:2]] == [100, 20]  # one seed's random images are nested
    assert sum(c.charged for c in cells) == first.bill["training"].spent
    assert first.bill["training"].spent < 440
    assert first.bill["evaluation"].spent == 200  # every cell is measured on the same images
    assert not list((tmp_path / "work").glob("budget-cells-*/*.pt"))
    assert not list((tmp_path / "work").glob("budget-cells-*/*.begun"))

    again = pipeline.budgets(config, *table, progress=False)
    assert again.reused
    larger = pipeline.budgets(config, [80, *table[0]], table[1], progress=False)
    assert trained[5:] == ["random-80-0", "margin-80-0"]
    assert larger.results["budgets"]["cells"][1] == first.results["budgets"]["cells"][0]

    import mlflow

    client = mlflow.MlflowClient(store)
    run = next(
        found
        for found in client.search_runs([client.get_experiment_by_name("certdef").experiment_id])
        if found.data.params.get("budgets") == "[80, 100, 120]"
    )
    history = client.get_metric_history(run.info.run_id, "budgets/margin/agreement_clean")
    assert [point.step for point in history] == [80, 100, 120]
    assert history[1].value == pytest.approx(cells[2].agreement["clean"][0])
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        "budgets.csv",
        "budgets.md",
        "budgets.png",
        "result.json",
    }

    pipeline.pretrain(config, progress=False)
    behind = pipeline.budgets(config, [80], ["random"], progress=False).stages.values()
    (cell,) = next(reversed(behind)).result.cells
    assert set(cell.agreement) == {"clean", "noisy", "denoised"}
    assert "| denoised | random |" in as_markdown([cell])


def test_the_encoder_of_the_denoiser_is_a_student(store, tmp_path):
    config = certdef.load_config(
        work_dir=str(tmp_path / "work"),
        tracking__uri=store,
        tracking__system_metrics=False,
        surrogate__model="nim",
        surrogate__features="nim",
        surrogate__strategy="kcenter",
        surrogate__epochs=2,
        surrogate__validation=0.1,
        nim__epochs=1,
        nim__width=16,
        nim__depth=1,
        ledger__training=120,
        data__heldout_images=50,
    )
    found = pipeline.distill(config, progress=False).results["surrogate"]
    assert found["queries"] == 120
    assert 0 <= found["metrics"]["surrogate/agreement_validation"] <= 1
    folder = next((tmp_path / "work").glob("surrogate-*")) / "model"
    model = certdef.models.storage.load_model(folder)
    assert isinstance(model, NIMClassifier)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_the_student_starts_from_the_encoder():
    nim = NIM(NIMShape((1, 8, 8), width=16, depth=1))
    classifier = NIMClassifier(nim, 10)
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(classifier.features(images), nim.encode(images).mean(dim=1))
    classifier.encoder[0].mlp.fc1.weight.data += 1
    assert not torch.equal(classifier.features(images), nim.encode(images).mean(dim=1)), "weights are shared"
    config = certdef.load_config(surrogate__model="nim")
    assert surrogate_model(config) == "nim_p4_w64_d3_h4"
    assert isinstance(build_classifier("nim_p4_w64_d3_h4", (1, 8, 8), 10), NIMClassifier)
    assert surrogate_model(certdef.load_config()) == "mlp"


def test_the_surrogate_does_not_start_from_the_weights_that_the_target_started_from(
    store, tmp_path, monkeypatch
):
    """Same architecture, same seed of the job: shared first weights would be knowledge that no outsider has."""
    config = certdef.load_config(
        work_dir=str(tmp_path / "work"),
        tracking__uri=store,
        tracking__system_metrics=False,
        target__kind="cnn",
        target__epochs=1,
        surrogate__model="cnn",
        surrogate__epochs=1,
        surrogate__committee=2,
        ledger__training=100,
        data__heldout_images=50,
    )
    started: list[bytes] = []
    for module, name in ((target_stage, "train_classifier"), (surrogates, "distill")):
        whole = getattr(module, name)

        def noted(*arguments, _whole=whole, **options):
            models = [
                value for value in (*arguments, *options.get("committee", ())) if isinstance(value, nn.Module)
            ]
            started.extend(next(model.parameters()).detach().numpy().tobytes() for model in models)
            return _whole(*arguments, **options)

        monkeypatch.setattr(module, name, noted)
    pipeline.distill(config, progress=False)
    assert len(started) == 4  # the target, the student and its committee
    assert len(set(started)) == 4
