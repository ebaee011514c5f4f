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

import certdef
from certdef.config.checks import check
from certdef.config.job import ConfigError
from certdef.restoration import RestorationNetwork, psnr
from certdef.stages.udc import evaluation, networks
from certdef.stages.udc.evaluation import DEFENSES, Mean, UDCResult
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
STAGES = ["udc-restoration", "udc-diffusion", "udc-level", "udc-finetuned", "udc"]
ATTACKS = [
    "clean",
    "pgd_4",
    "carlini_wagner_4",
    "simba_4",
    "pgd_8",
    "carlini_wagner_8",
    "simba_8",
    "pgd_bpda_eot_4",
    "pgd_full_eot_4",
]


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
        assert list(each.psnr) == list(each.ssim) == list(DEFENSES[:3] if adaptive else DEFENSES)
        assert each.crops == 6
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
    for what, defense in evaluation.HEADLINE.items():
        attacks = ATTACKS[1:4] if defense == "none" else [*ATTACKS[1:4], *ATTACKS[7:]]
        at_first = [result.named(name) for name in attacks]
        lowest = min(each.psnr[defense].value for each in at_first)
        assert result.named(result.worst[what]).psnr[defense].value == lowest
    lines = str(done[1])
    assert f"{result.named('clean').psnr['none'].value:.2f} dB" in lines
    assert "the worst case" in lines
    assert "queries" not in lines


def test_attacks_on_fewer_crops_are_measured_and_not_compared(done, monkeypatch):
    config, summary, folder = done
    monkeypatch.chdir(folder)
    fewer = certdef.run(replace(config, udc=replace(config.udc, adaptive_crops=3)), progress=False)
    result = result_of(fewer)
    assert [each.crops for each in result.evaluations] == [6] * 7 + [3] * 2
    assert not {"pgd_bpda_eot_4", "pgd_full_eot_4"} & set(result.worst.values())
    assert result.evaluations[:7] == result_of(summary).evaluations[:7]


def test_the_page_holds_the_figures(done, monkeypatch):
    config, _, folder = done
    monkeypatch.chdir(folder)
    summary = certdef.report(config, progress=False)
    result, text = result_of(summary), summary.report.read_text()
    for table, measure, digits in (("psnr-table", "psnr", 2), ("ssim-table", "ssim", 3)):
        section = text[text.index(f'<table id="{table}"') :].split("</table>")[0]
        assert section.count("<tr>") == 1 + len(ATTACKS)
        for each in result.evaluations:
            for mean in getattr(each, measure).values():
                assert f"<b>{mean.value:.{digits}f}</b> <small>{mean.lower:.{digits}f}–" in section
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
    for what, defense in evaluation.HEADLINE.items():
        worst = result.named(result.worst[what])
        assert logged[f"udc/{what}/psnr"] == pytest.approx(worst.psnr[defense].value)
        assert f"udc/{what}/ssim" in logged
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
    assert [stage.reused for stage in other.stages.values()] == [True] * 4 + [False]


def test_an_interrupted_job_goes_on_to_the_same_figures(done, tmp_path, monkeypatch):
    """Stopped in the middle of the fine-tuning, then in the middle of the attacks."""
    config, summary, folder = done
    shutil.copytree(folder / "mlruns", tmp_path / "mlruns")
    tracking = replace(config.tracking, uri=f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    config = replace(config, work_dir=str(tmp_path / "work"), tracking=tracking)
    monkeypatch.chdir(tmp_path)

    def stop(*_, **__):
        raise KeyboardInterrupt

    for module, name, finished in (
        (networks, "finetune_restoration", 3),
        (evaluation, "simba", 4),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stop)
            with pytest.raises(KeyboardInterrupt):
                certdef.run(config, progress=False)
        assert len(list(config.workspace.glob("*/result.json"))) == finished
    resumed = certdef.run(config, progress=False)
    assert [stage.reused for stage in resumed.stages.values()] == [True] * 4 + [False]
    assert result_of(resumed).evaluations == result_of(summary).evaluations


def test_the_fine_tuning_starts_from_the_trained_network_and_changes_it(done):
    from certdef.models.storage import load_model

    before, after = (
        load_model(done[1].stages[name].path / "model") for name in ("udc-restoration", "udc-finetuned")
    )
    assert isinstance(after, RestorationNetwork)
    first, second = (torch.cat([w.flatten() for w in each.parameters()]) for each in (before, after))
    assert not torch.equal(first, second)
    assert (first - second).norm() < 0.5 * first.norm()


def test_pictures_are_those_of_the_first_test_crops(done):
    with np.load(done[1].stages["udc"].path / "examples.npz") as examples:
        images = {name: torch.from_numpy(examples[name]) for name in examples}
    assert all(each.shape == (5, 1, 16, 16) for each in images.values())
    assert (images["attacked"] - images["degraded"]).abs().max() <= 4 / 255 + 1e-6
    attacked, restored = (psnr(images[name], images["truth"]) for name in ("attacked_restored", "restored"))
    assert (attacked < restored).all()


def test_mean_with_its_interval():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert Mean.of(values) == pytest.approx(
        (2.5, 2.5 - 1.96 * 1.29099 / 2, 2.5 + 1.96 * 1.29099 / 2), abs=1e-4
    )


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
