"""The UDC job at its smallest: trained, attacked, purified, fine-tuned, reported and tracked; resumed where it stopped."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binom

import certdef
from certdef.config.checks import check
from certdef.config.job import ConfigError
from certdef.data.natural import numbered_crops
from certdef.restoration import psnr
from certdef.stages.udc import bench, networks
from certdef.stages.udc.bench import SYSTEMS, UNDER_ALL
from certdef.stages.udc.evaluation import HEADLINE, UDCResult
from certdef.stages.udc.intervals import Mean
from tests.conftest import run_once

TINY_UDC = {
    "preset": "udc",
    "tracking__system_metrics": False,
    "diffusion__channels": [8, 8],
    "diffusion__epochs": 2,
    "diffusion__grid": [2, 6],
    "udc__size": 16,
    "udc__crops": 24,
    "udc__test_crops": 6,
    "udc__width": 8,
    "udc__depth": 1,
    "udc__epochs": 3,
    "udc__finetune_epochs": 2,
    "udc__batch_size": 8,
    "udc__longest": 10,
    "udc__choice_crops": 6,
    "udc__eps_255": [4, 8],
    "udc__pgd_steps": 2,
    "udc__cw_steps": 2,
    "udc__simba_queries": 4,
    "udc__seeds": 2,
    "udc__adaptive_crops": 6,
    "udc__adaptive_eot": 1,
}
TUNINGS = ["udc-finetuned", "udc-finetuned-clean", "udc-finetuned-unpurified"]
STAGES = ["udc-restoration", "udc-diffusion", "udc-level", *TUNINGS, "udc"]
ATTACKS = [
    "clean",
    "pgd_4",
    "carlini_wagner_4",
    "simba_4",
    "pgd_bpda_eot_4",
    "pgd_full_eot_4",
    "pgd_8",
    "carlini_wagner_8",
    "simba_8",
]
AWARE = ATTACKS[4:6]


def photographs(folder: Path) -> Path:
    """A folder of data sets with a few smooth pictures in the place of natural photographs."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:180, 0:180] / 180

    def picture() -> np.ndarray:
        across, along, phase = random.uniform(-15, 15, 3)
        return (127 + 120 * np.sin(across * x + along * y + phase)).astype(np.uint8)

    natural = folder / "data" / "natural"
    (natural / "cbsd68").mkdir(parents=True)
    np.savez(natural / "train400_gray180.npz", x=np.stack([picture() for _ in range(8)]))
    for number in range(3):
        Image.fromarray(picture()).convert("RGB").save(natural / "cbsd68" / f"{number}.jpg")
    return folder / "data"


@pytest.fixture(scope="module")
def done(migrated_store, tmp_path_factory):
    """The whole job, run once: (configuration, summary, folder)."""
    folder = tmp_path_factory.mktemp("udc")
    return run_once(folder, migrated_store, **TINY_UDC, data__root=str(photographs(folder)))


def result_of(summary) -> UDCResult:
    return summary.stages["udc"].result


def test_every_attack_is_measured_on_every_stage_of_the_defense(done):
    config, summary, _ = done
    result = result_of(summary)
    assert list(summary.stages) == STAGES
    assert [each.name for each in result.evaluations] == ATTACKS
    for each in result.evaluations:
        adaptive = each.attack.endswith("_eot")
        assert list(each.psnr) == list(each.ssim) == list(UNDER_ALL if adaptive else SYSTEMS)
        assert (each.crops, each.photographs) == (6, 3)
        for mean in [*each.psnr.values(), *each.ssim.values(), *each.gains.values()]:
            assert mean.lower <= mean.value <= mean.upper
    clean = result.named("clean")
    for name in ("pgd_4", "carlini_wagner_4", "simba_4"):
        assert result.named(name).psnr["none"].value < clean.psnr["none"].value
        cost = clean.psnr["none"].value - result.named(name).psnr["none"].value
        assert result.named(name).gains["attack_costs"].value == pytest.approx(cost, abs=1e-3)
    assert result.named("pgd_8").psnr["none"].value < result.named("pgd_4").psnr["none"].value
    assert result.t == summary.stages["udc-level"].result.t
    assert result.t in config.diffusion.grid
    assert summary.bill is None


def test_the_worst_case_is_the_lowest_psnr_at_the_first_budget(done):
    result = result_of(done[1])
    for system, worst in result.headline.worst.items():
        attacks = [*ATTACKS[1:4], *(AWARE if SYSTEMS[system].purified else [])]
        lowest = min((result.named(name) for name in attacks), key=lambda each: each.psnr[system].value)
        assert worst.attack == lowest.name
        assert worst.psnr == lowest.psnr[system]
        assert worst.ssim == lowest.ssim[system]
    worst, gains = result.headline.worst, result.headline.gains
    against = worst["fine_tuned"].psnr.value - worst["adversarial_unpurified"].psnr.value
    assert gains["purifier_adds"].value == pytest.approx(against)
    against = worst["fine_tuned"].psnr.value - worst["clean_tuned"].psnr.value
    assert gains["attacked_inputs_add"].value == pytest.approx(against)
    lines = str(done[1])
    assert f"{result.named('clean').psnr['none'].value:.2f} dB" in lines
    assert f"{worst['adversarial_unpurified'].psnr.value:.2f} dB" in lines
    assert "the worst case" in lines
    assert "queries" not in lines


def test_the_headline_is_of_the_crops_that_every_attack_was_tried_on(done, monkeypatch):
    """Attacks through the purifier on fewer crops are compared with the others on these, and still count."""
    config, summary, folder = done
    monkeypatch.chdir(folder)
    fewer = certdef.run(replace(config, udc=replace(config.udc, adaptive_crops=3)), progress=False)
    result = result_of(fewer)
    assert [each.crops for each in result.evaluations] == [6] * 4 + [3] * 2 + [6] * 3
    for name in set(ATTACKS) - set(AWARE):
        assert result.named(name) == result_of(summary).named(name)
    headline = result.headline
    assert (headline.crops, headline.photographs) == (3, 3)
    kept = fewer.stages["udc"].path
    for system, worst in headline.worst.items():
        attacks = [*ATTACKS[1:4], *(AWARE if SYSTEMS[system].purified else [])]
        lowest = {}
        for name in attacks:
            with np.load(kept / f"quality-{name}.npz") as crops:
                lowest[name] = crops[f"psnr.{system}"][:3].mean()
        assert worst.attack == min(lowest, key=lowest.get)
        assert worst.psnr.value == pytest.approx(min(lowest.values()))


def test_each_network_is_attacked_by_its_own_attack_and_knows_what_it_was_trained_on(done):
    """The three fine-tunings start from one network, have one recipe and end at different weights."""
    from certdef.models.storage import load_model

    _, summary, _ = done
    before, *after = (
        torch.cat([w.flatten() for w in load_model(summary.stages[name].path / "model").parameters()])
        for name in ("udc-restoration", *TUNINGS)
    )
    for weights in after:
        assert 0 < (weights - before).norm() < 0.5 * before.norm()
    assert not torch.equal(after[0], after[1])
    assert not torch.equal(after[0], after[2])
    losses = [summary.stages[name].result.series[f"{name}/loss"] for name in TUNINGS]
    assert [len(each) for each in losses] == [2, 2, 2]


def test_the_controls_lack_one_half_of_the_defense_each(done, tmp_path, monkeypatch):
    """What the fine-tunings are given: the published inputs are the unpurified control's, purified."""
    config, _, folder = done
    tracking = replace(config.tracking, uri=f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    shutil.copytree(folder / "mlruns", tmp_path / "mlruns")
    monkeypatch.chdir(tmp_path)
    given = {}
    original = networks.finetune_restoration

    def listening(network, inputs, truth, *args, **options):
        given[Path(options["checkpoint"]).parent.name.rsplit("-", 1)[0]] = inputs.clone()
        return original(network, inputs, truth, *args, **options)

    purified, attacks = [], []
    through, attack = networks.purify_varied, networks.pgd

    def purifying(purifier, images, *args, **options):
        purified.append(images)
        return through(purifier, images, *args, **options)

    def attacking(*args, **options):
        attacks.append(options["eps"])
        return attack(*args, **options)

    def stop(*_):
        raise KeyboardInterrupt

    for name, spy in (
        ("finetune_restoration", listening),
        ("purify_varied", purifying),
        ("pgd", attacking),
    ):
        monkeypatch.setattr(networks, name, spy)
    other = replace(config, work_dir=str(tmp_path / "work"), tracking=tracking)
    with monkeypatch.context() as patch:
        patch.setattr(bench.Bench, "measured", stop)
        with pytest.raises(KeyboardInterrupt):
            certdef.run(other, progress=False)
    assert list(given) == TUNINGS
    attacked, clean = purified  # what the defense's inputs, and the clean control's, are made of
    assert torch.equal(given["udc-finetuned-unpurified"], attacked)
    assert not torch.equal(given["udc-finetuned"], attacked)
    assert torch.equal(clean[12:], attacked[12:])  # the second half is attacked in neither
    moved = (attacked[:12] - clean[:12]).abs().amax(dim=(1, 2, 3)) * 255
    assert (moved[:6] <= 4.001).all()
    assert (moved[6:] <= 8.001).all()
    assert (moved > 1).all()
    # For the choice of t, then the inputs, which are made once for both networks.
    assert attacks == [4 / 255, 8 / 255] * 2


def test_the_page_holds_the_figures(done, monkeypatch):
    config, _, folder = done
    monkeypatch.chdir(folder)
    summary = certdef.report(config, progress=False)
    result, text = result_of(summary), summary.report.read_text()
    for measure, digits in (("psnr", 2), ("ssim", 3)):
        tables = [
            text[text.index(f'<table id="{name}"') :].split("</table>")[0]
            for name in (f"{measure}-table", f"{measure}-controls-table")
        ]
        for section in tables:
            assert section.count("<tr>") == 1 + len(ATTACKS)
        for each in result.evaluations:
            for system, mean in getattr(each, measure).items():
                section = tables[list(SYSTEMS).index(system) >= 5]
                assert f"<b>{mean.value:.{digits}f}</b> <small>{mean.lower:.{digits}f}–" in section
    section = text[text.index('<table id="headline-table"') :].split("</table>")[0]
    for worst in result.headline.worst.values():
        assert f"<b>{worst.psnr.value:.2f}</b> <small>{worst.psnr.lower:.2f}–" in section
    assert "3 photographs" in section
    gains = text[text.index('<table id="gains-table"') :].split("</table>")[0]
    assert f"<b>{result.named('pgd_4').gains['attack_costs'].value:+.2f}</b>" in gains
    level = text[text.index('<table id="level-table"') :].split("</table>")[0]
    assert re.search(rf"{result.t} <span class=\"tag\">chosen", level)
    assert "data:image/png;base64," in text
    assert "2402.13629" in text
    assert not re.search(r'(src|href)="https?://(?!arxiv\.org)', text)


def test_every_stage_is_tracked(done, monkeypatch):
    config, summary, folder = done
    monkeypatch.chdir(folder)
    import mlflow

    client = mlflow.MlflowClient(config.tracking.uri)
    parent = client.get_run(summary.run_id)
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{summary.run_id}'"
    )
    runs = {run.info.run_name: run for run in children}
    assert set(runs) == set(STAGES)
    result = result_of(summary)
    logged = parent.data.metrics
    for each in result.evaluations:
        for defense, mean in each.psnr.items():
            assert logged[f"udc/{each.name}/{defense}/psnr"] == pytest.approx(mean.value)
    assert logged["udc/clean/psnr"] == pytest.approx(result.named("clean").psnr["none"].value)
    for system, worst in result.headline.worst.items():
        what = HEADLINE.get(system, system)
        assert logged[f"udc/{what}/psnr"] == pytest.approx(worst.psnr.value)
        assert logged[f"udc/{what}/ssim"] == pytest.approx(worst.ssim.value)
    for gain, mean in result.headline.gains.items():
        assert logged[f"udc/worst_case/{gain}"] == pytest.approx(mean.value)
    assert "udc-restoration/loss_last" in runs["udc-restoration"].data.metrics
    artifacts = {item.path for item in client.list_artifacts(runs["udc"].info.run_id)}
    assert "strip.png" in artifacts


def test_results_go_through_json(done):
    for stage in done[1].stages.values():
        plain = json.loads(json.dumps(stage.result.to_json()))
        assert type(stage.result).from_json(plain) == stage.result


def test_a_finished_job_does_nothing_again_and_other_attacks_train_nothing_again(done, monkeypatch):
    config, summary, folder = done
    monkeypatch.chdir(folder)
    again = certdef.run(config, progress=False)
    assert again.reused
    assert result_of(again) == result_of(summary)
    longer = replace(config, udc=replace(config.udc, simba_queries=8))
    other = certdef.run(longer, progress=False)
    assert [stage.reused for stage in other.stages.values()] == [True] * 6 + [False]


def test_an_interrupted_job_goes_on_to_the_same_figures(done, tmp_path, monkeypatch):
    """Stopped in the middle of the defense's fine-tuning, then of a control's, then in the middle of the attacks."""
    config, summary, folder = done
    shutil.copytree(folder / "mlruns", tmp_path / "mlruns")
    tracking = replace(config.tracking, uri=f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    config = replace(config, work_dir=str(tmp_path / "work"), tracking=tracking)
    monkeypatch.chdir(tmp_path)

    def stop_at(function, call):
        calls = iter(range(1, call + 1))

        def stopping(*args, **options):
            if next(calls) == call:
                raise KeyboardInterrupt
            return function(*args, **options)

        return stopping

    for module, name, call, finished in (
        (networks, "finetune_restoration", 1, 3),
        (networks, "finetune_restoration", 3, 5),
        (bench, "simba", 5, 6),  # of the second budget: clean, the first budget, PGD and C&W are done
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stop_at(getattr(module, name), call))
            with pytest.raises(KeyboardInterrupt):
                certdef.run(config, progress=False)
        assert len(list(config.workspace.glob("*/result.json"))) == finished
    (unfinished,) = config.workspace.glob("udc-" + "[0-9a-f]" * 16)
    assert {path.name for path in unfinished.glob("*.npz")} == {
        f"quality-{name}.npz" for name in ("clean_0", *ATTACKS[1:8])
    }
    again, simba = [], bench.simba

    def counted(*args, **options):
        again.append(options["eps"])
        return simba(*args, **options)

    monkeypatch.setattr(bench, "simba", counted)
    monkeypatch.setattr(
        bench, "carlini_wagner", stop_at(bench.carlini_wagner, 1)
    )  # is done, and is not done again
    resumed = certdef.run(config, progress=False)
    assert [stage.reused for stage in resumed.stages.values()] == [True] * 6 + [False]
    assert result_of(resumed).evaluations == result_of(summary).evaluations
    assert again == [8 / 255] * 4  # one for each network


def test_pictures_are_those_of_the_first_test_crops(done):
    with np.load(done[1].stages["udc"].path / "examples.npz") as examples:
        images = {name: torch.from_numpy(examples[name]) for name in examples}
    assert all(each.shape == (5, 1, 16, 16) for each in images.values())
    assert (images["attacked"] - images["degraded"]).abs().max() <= 4 / 255 + 1e-6
    attacked, restored = (psnr(images[name], images["truth"]) for name in ("attacked_restored", "restored"))
    assert (attacked < restored).all()


def test_mean_with_its_interval():
    """Photographs 0, 1 and 2 with means 1.5, 3 and 6; Student's t of two degrees of freedom is 4.3027."""
    mean = Mean.of(torch.tensor([1.0, 3.0, 2.0, 6.0]), np.array([0, 1, 0, 2]))
    assert mean == pytest.approx(
        (3.5, 3.5 - 4.3027 * 2.2913 / 3**0.5, 3.5 + 4.3027 * 2.2913 / 3**0.5), abs=1e-3
    )
    with pytest.raises(ValueError, match="two photographs"):
        Mean.of([1.0, 2.0], [5, 5])


@pytest.mark.parametrize(("photographs", "crops"), [(30, 4), (6, 2)])
def test_intervals_over_photographs_cover_where_those_over_crops_do_not(photographs, crops):
    """Planted correlation of 0.8 between two crops of a photograph: 95% of 4,000 intervals hold the true mean.

    The limits are those within which a binomial count of 4,000 at 95% stays but for one time in a million. Counting crops
    as independent, the interval is too short by a factor of sqrt(1 + 0.8 (crops - 1)).
    """
    random, trials = np.random.default_rng(0), 4_000
    numbers = np.tile(np.arange(photographs), crops)  # photographs take turns
    low, high = binom.interval(1 - 1e-6, trials, 0.95)
    held = {"photographs": 0, "crops": 0}
    for _ in range(trials):
        common, own = random.normal(size=photographs), random.normal(size=len(numbers))
        values = 7 + np.sqrt(0.8) * common[numbers] + np.sqrt(0.2) * own
        for units, groups in (("photographs", numbers), ("crops", np.arange(len(numbers)))):
            _, lower, upper = Mean.of(values, groups)
            held[units] += lower <= 7 <= upper
    assert low <= held["photographs"] <= high
    assert held["crops"] < low
    if crops == 4:
        assert held["crops"] < 0.75 * trials  # 2 P(Z < 1.98 / sqrt(3.4)) - 1 = 0.717


def test_crops_know_their_photographs(tmp_path):
    """Photographs that are each of one gray level: the level says which one a crop is cut from."""
    folder = tmp_path / "natural" / "cbsd68"
    folder.mkdir(parents=True)
    for level in (40, 120, 200):
        Image.fromarray(np.full((30, 30), level, np.uint8)).convert("RGB").save(folder / f"{level}.jpg")
    crops, numbers = numbered_crops(tmp_path, 1, 16, 8, seed=3, source="cbsd68")
    levels = (crops.mean(dim=(1, 2, 3)) * 255).round().long().numpy()
    assert np.abs(levels - np.array([120, 200, 40])[numbers]).max() <= 2  # files in the order of their names
    assert sorted(numbers[:3]) == sorted(numbers[3:6]) == [0, 1, 2]


def test_crops_of_one_photograph_are_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = photographs(tmp_path)
    for extra in sorted((root / "natural" / "cbsd68").glob("*.jpg"))[1:]:
        extra.unlink()
    config = certdef.load_config(**TINY_UDC, data__root=str(root))
    with pytest.raises(ConfigError, match="one photograph"):
        certdef.run(config, progress=False)
    assert not config.workspace.exists()


def test_missing_photographs_are_one_line_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    config = certdef.load_config(**TINY_UDC, data__root=str(tmp_path / "data"))
    with pytest.raises(ConfigError, match=r"no .*natural.*: pass the folder that holds the data sets"):
        certdef.run(config, progress=False)
    assert not config.workspace.exists()


@pytest.mark.parametrize(
    ("module", "extra"), [("torchmetrics.functional.image", "restoration"), ("diffusers", "diffusion")]
)
def test_a_missing_package_is_one_line_before_anything_is_trained(module, extra, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    config = certdef.load_config(**TINY_UDC, data__root=str(photographs(tmp_path)))
    with pytest.raises(ConfigError, match=rf"pip install 'certdef\[{extra}\]'"):
        certdef.run(config, progress=False)
    assert not config.workspace.exists()


def test_the_job_has_no_single_stages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"udc\.enabled is true.*use certdef run"):
        certdef.certify(certdef.load_config(**TINY_UDC), progress=False)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"udc__size": 17}, r"udc\.size is 17: use an even number"),
        ({"udc__size": 400}, r"udc\.size is 400: use an even number"),
        ({"udc__eps_255": [0]}, r"udc\.eps_255 is .*8-bit levels above 0"),
        ({"udc__eps_255": []}, r"udc\.eps_255 is"),
        ({"udc__test_crops": 1}, r"udc\.test_crops is 1: use at least 2"),
        ({"udc__seeds": 0}, r"udc\.seeds is 0: use at least 1"),
        ({"udc__clean_loss": -1}, r"udc\.clean_loss is -1"),
        ({"udc__longest": 5}, r"udc\.longest is 5: diffusion\.grid goes up to 6"),
        ({"ducd__enabled": True}, r"udc\.enabled is True: ducd\.enabled is true too"),
        ({"diffusion__pretrained": "google/ddpm"}, r"unset diffusion\.pretrained"),
    ],
)
def test_bad_options_are_refused_in_one_line(settings, says):
    with pytest.raises(ConfigError, match=says) as refused:
        check(certdef.load_config(**TINY_UDC | settings))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("settings", [{"udc__learning_rate": -1}, {"diffusion__channels": [7]}])
def test_recipes_that_do_not_work_are_refused_before_anything_is_trained(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = certdef.load_config(**TINY_UDC | settings, data__root=str(photographs(tmp_path)))
    with pytest.raises(ConfigError):
        certdef.run(config, progress=False)
    assert not config.workspace.exists()
