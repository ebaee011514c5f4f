"""The catalogue of purifiers: every name is built, saved, read back, and stands in front of a whole job."""

import numpy as np
import pytest
import torch

import certdef
from certdef.cli import main
from certdef.config.job import ConfigError, RunConfig
from certdef.models import storage
from certdef.models.classifiers import build_classifier
from certdef.purifiers import build
from certdef.purifiers.catalogue import CATALOGUE
from certdef.purifiers.networks.blind_spot import BlindSpotNetwork, BlindSpotShape
from certdef.purifiers.networks.diffusion import DiffusionNetwork, DiffusionShape
from certdef.purifiers.networks.nim import MIM, NIM, MIMShape, NIMShape
from certdef.purifiers.networks.tasks import TaskNetwork, TaskShape
from tests.conftest import TINY, run_once

SHAPE = (1, 8, 8)
SMALL = {
    "diffusion__epochs": 2, "diffusion__steps": 3, "diffusion__choice_images": 40, "diffusion__grid": (20, 60),
    "blind_spot__epochs": 2, "reversal__epochs": 2, "reversal__steps": 3,
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def networks() -> dict[str, torch.nn.Module]:
    """One untrained network of each kind."""
    sizes = {"width": 16, "depth": 1, "heads": 2, "decoder_width": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {
            "nim": NIM(NIMShape(SHAPE, **sizes)),
            "denoiser": NIM(NIMShape(SHAPE, **sizes)),
            "nim-simmim": NIM(NIMShape(SHAPE, **sizes, decoder_depth=0)),
            "mim": MIM(MIMShape(SHAPE, **sizes)),
            "blind_spot": BlindSpotNetwork(BlindSpotShape(SHAPE, 8, 2)),
            "blind_spot_noisy": BlindSpotNetwork(BlindSpotShape(SHAPE, 8, 2)),
            "classifier": build_classifier("mlp", SHAPE, 10),
            "robust": build_classifier("mlp", SHAPE, 10),
            "tasks": TaskNetwork(TaskShape(SHAPE, 256, RunConfig().reversal.tasks, bank=4)),
            "diffusion": DiffusionNetwork(DiffusionShape(SHAPE, channels=(8,))),
        }
    return {name: network.eval() for name, network in made.items()}


def made_of(name: str, networks: dict) -> dict:
    return {need: networks[need] for need in CATALOGUE[name].networks if need in networks}


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_purifier_takes_images_and_nothing_else(name, networks, tmp_path):
    config = certdef.load_config(diffusion__t=30, diffusion__steps=2, reversal__steps=2)
    settings, parts = build.settings(name, config), made_of(name, networks)
    images = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    module = build.purifier(name, settings, parts, torch.Generator().manual_seed(5))
    with torch.inference_mode():
        purified = module(images)
    assert purified.shape == images.shape
    assert 0 <= purified.min() <= purified.max() <= 1
    # What was saved purifies alike, and was never pickled.
    storage.save_purifier(tmp_path / "p", name, settings, parts)
    assert {path.suffix for path in (tmp_path / "p").iterdir()} <= {".safetensors", ".json"}
    restored = storage.load_model(tmp_path / "p")
    for part in restored.modules():
        if getattr(part, "generator", 0) is None:
            part.generator = torch.Generator().manual_seed(5)
    with torch.inference_mode():
        assert torch.equal(restored(images), purified)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_denoiser_is_a_function_of_the_noisy_image_alone(name, networks):
    denoiser = build.denoiser(name, build.settings(name, RunConfig()), made_of(name, networks))
    assert (denoiser is not None) == (CATALOGUE[name].denoiser is not None)
    if denoiser is None:
        return
    noisy = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        together, alone = denoiser(noisy), torch.cat([denoiser(one[None]) for one in noisy])
        assert torch.equal(denoiser(noisy), together), "it draws noise of its own"
    assert torch.allclose(together, alone, atol=1e-5), "it depends on the rest of the batch"


def test_the_list_names_source_and_attacker(capsys):
    assert main(["purifiers"]) == 0
    shown = capsys.readouterr().out
    for name, entry in CATALOGUE.items():
        assert f"\n{name}\n" in "\n" + shown
        assert all(text in shown for text in (entry.line, entry.source, entry.threat))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--purifier", "difpure"], "did you mean 'diffpure'"),
        (["run", "--purifier", "ncis", "--blind_spot.images", "natural", "--data.root", "."], "blind_spot.images pool"),
        (["run", "--purifier", "blind-spot", "--blind_spot.images", "natural", "--data.root", "."], "blind_spot.images pool"),
        (["run", "--purifier", "de3", "--nim.patch_size", "3"], "does not divide the image 8x8"),
        (["run", "--purifier", "reversal", "--reversal.tasks", "[chess]"], "chess"),
        (["run", "--purifier", "gs", "--gs.kernel", "4"], "odd"),
        (["run", "--purifier", "diffpure", "--diffusion.t", "0"], "between 1 and 1000"),
        (["run", "--purifier", "diffpure", "--diffusion.epochs", "0"], "epochs"),
        (["purify", "--purifier", "gs", "--images", "none.npz"], "is no file"),
        (["purify", "--purifier", "gs", "--out", "here/out.npz"], "folder that is there"),
        (["purifiers", "--all"], "takes none"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_before_any_query(arguments, words, store, tmp_path, capsys):
    extra = [] if arguments[0] == "purifiers" else ["--quiet", "--work_dir", str(tmp_path / "w")]
    assert main([*arguments, *extra]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("w/target-*/result.json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One work directory for all purifiers: target, surrogate and shared networks are made once."""
    return tmp_path_factory.mktemp("purifiers")


@pytest.mark.slow
@pytest.mark.acceptance
@pytest.mark.parametrize("name", [name for name in CATALOGUE if name != "de3"])
def test_every_purifier_stands_in_front_of_a_whole_job(name, migrated_store, folder):
    import mlflow

    config, summary, _ = run_once(folder, migrated_store, purifier=name, **TINY | SMALL)
    front = name if CATALOGUE[name].denoiser else "none"
    curves = summary.results["certify"]["curves"]
    assert curves[f"target-nim-{front}"]["headline"]
    assert {row["eps"] for row in summary.results["attack"]["rows"]} == {0.0, *config.attack.eps}
    page = summary.report.read_text()
    assert f"target behind {name}" in page or f"<dt>{name}</dt>" in page
    assert "De³" not in page
    assert mlflow.MlflowClient(config.tracking.uri).get_run(summary.run_id).info.run_name == f"digits, {name}"
    # The purifier is a model of its own in MLflow: the one that the attack met.
    images = np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32)
    mlflow.set_tracking_uri(config.tracking.uri)
    purified = mlflow.pyfunc.load_model(summary.results[f"purifier-{name}"]["uri"]).predict(images)
    assert purified.shape == images.shape
    assert 0 <= purified.min() <= purified.max() <= 1


def test_purify_writes_the_images_of_a_file(store, tmp_path, capsys):
    random = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", images=random.integers(0, 256, (5, 8, 8), dtype=np.uint8))
    settings = [f"--{key.replace('__', '.')}={value}" for key, value in TINY.items()]
    command = ["purify", "--purifier", "gs", "--quiet", "--work_dir", str(tmp_path / "w"), *settings]
    assert main([*command, "--images", str(tmp_path / "mine.npz"), "--out", str(tmp_path / "out.npz")]) == 0
    assert "purified    5 images by gs" in capsys.readouterr().out
    with np.load(tmp_path / "out.npz") as arrays:
        purified = arrays["images"]
    assert purified.shape == (5, 1, 8, 8)
    assert purified.dtype == np.float32
    np.savez(tmp_path / "large.npz", images=random.random((2, 9, 9)))
    assert main([*command, "--images", str(tmp_path / "large.npz")]) == 2
    assert "have shape (1, 9, 9): the job's are (1, 8, 8)" in capsys.readouterr().err


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match="certdef purifiers lists them"):
        certdef.run(certdef.load_config(purifier="magic"))
