"""Purifiers by name: every one is built, saved, read back, and stands in front of a whole job."""

import numpy as np
import pytest
import torch

import certdef
from certdef.attacks.system import draws_noise, passes_gradients
from certdef.cli import main
from certdef.config.job import ConfigError, RunConfig
from certdef.config.purifiers import own_names
from certdef.models import storage
from certdef.models.classifiers import build_classifier
from certdef.purifiers import build
from certdef.purifiers.base import Parts
from certdef.purifiers.registry import find_purifier
from certdef.stages.purifier import untrained_networks
from tests.conftest import TINY, run_once

SHAPE = (1, 8, 8)
NAMES = own_names()
# No network, two trained ones: what CI runs as whole jobs of the ten.
VARIED = {"gs", "agdm"}
DRAW_NOISE = {"de3", "de3-leaves", "de3-simmim", "mim", "diffpure", "uad-rs", "agdm"}
SMALL = {
    "certify__laws": "[{label: nim}]",
    "certify__choose": "off",
    "surrogate__epochs": 2,  # also of the students, which learn behind the purifier: how well is not the point
    "nim__epochs": 4,
    "diffusion__epochs": 2,
    "diffusion__steps": 3,
    "diffusion__choice_images": 40,
    "diffusion__grid": (20, 60),
    "blind_spot__epochs": 2,
    "reversal__epochs": 2,
    "reversal__steps": 3,
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def config() -> RunConfig:
    """Small networks, short chains."""
    nim = {"nim__width": 16, "nim__depth": 1, "nim__heads": 2, "nim__decoder_width": 16}
    others = {"blind_spot__filters": 8, "blind_spot__blocks": 2, "diffusion__channels": (8,)}
    short = {"diffusion__t": 30, "diffusion__steps": 2, "reversal__steps": 2}
    return certdef.load_config(**nim, **others, **short)


@pytest.fixture(scope="module")
def networks(config) -> dict[str, dict[str, torch.nn.Module]]:
    """The untrained networks of each purifier."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = build_classifier("mlp", SHAPE, 10).eval()
        every = {}
        for name in NAMES:
            every[name] = untrained_networks(config, SHAPE, classifier, find_purifier(name).networks(config))
            if find_purifier(name).sees_classifier:
                every[name]["classifier"] = classifier
    for parts in every.values():
        for network in parts.values():
            network.eval()
    return every


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(1))


def built(name, config, networks, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return build.purifier(name, build.settings(name, config), networks[name], generator)


def test_the_names_are_those_of_the_files():
    assert set(NAMES) == {
        "agdm",
        "blind-spot",
        "de3",
        "de3-leaves",
        "de3-simmim",
        "diffpure",
        "gs",
        "mim",
        "ncis",
        "one-step",
        "reversal",
        "uad-rs",
    }
    for name in NAMES:
        spec = find_purifier(name)
        assert spec.name == name
        assert all((spec.about.line, spec.about.source, spec.about.threat, spec.about.papers))


@pytest.mark.parametrize("name", NAMES)
def test_every_purifier_takes_images_and_nothing_else(name, config, networks, images):
    with torch.inference_mode():
        purified = built(name, config, networks)(images)
        again = built(name, config, networks)(images)
    assert purified.shape == images.shape
    assert 0 <= purified.min() <= purified.max() <= 1
    assert torch.equal(purified, again), "the same seed gives another image"
    module = built(name, config, networks)
    assert draws_noise(module, images) == (name in DRAW_NOISE)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_purified_alike_whoever_is_beside_it(name, config, networks, images):
    """Given the same noise: that of the first image is drawn first."""
    others = torch.cat([images[:1], 1 - images[1:]])
    with torch.inference_mode():
        first = built(name, config, networks)(images)[:1]
        beside = built(name, config, networks)(others)[:1]
    assert torch.allclose(first, beside, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_passes_as_declared(name, config, networks, images):
    assert passes_gradients(built(name, config, networks), images) == find_purifier(name).differentiable


@pytest.mark.parametrize("name", NAMES)
def test_what_was_saved_purifies_alike_and_was_never_pickled(name, config, networks, images, tmp_path):
    storage.save_purifier(tmp_path / "p", name, build.settings(name, config), networks[name])
    assert {path.suffix for path in (tmp_path / "p").iterdir()} <= {".safetensors", ".json"}
    restored = storage.load_model(tmp_path / "p")
    for part in restored.modules():
        if getattr(part, "generator", 0) is None:
            part.generator = torch.Generator().manual_seed(5)
    with torch.inference_mode():
        assert torch.equal(restored(images), built(name, config, networks)(images))


@pytest.mark.parametrize("name", NAMES)
def test_a_denoiser_is_a_function_of_the_noisy_image_alone(name, config, networks):
    part = find_purifier(name).denoiser
    denoiser = build.denoiser(name, build.settings(name, config), networks[name])
    assert (denoiser is not None) == (part is not None) == (name != "reversal")
    if part is None or denoiser is None:
        return
    noisy = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        together, alone = denoiser(noisy), torch.cat([denoiser(one[None]) for one in noisy])
        assert torch.equal(denoiser(noisy), together), "it draws noise of its own"
    assert torch.allclose(together, alone, atol=1e-5), "it depends on the rest of the batch"


@pytest.mark.parametrize("name", NAMES)
def test_a_denoiser_depends_on_no_more_than_it_states(name, config, networks):
    """What identifies a denoiser leaves out other settings and networks, so it must do without them."""
    part = find_purifier(name).denoiser
    if part is None:
        return
    settings = build.settings(name, config)
    named = settings if part.settings is None else part.settings
    stated = {key: value for key, value in settings.items() if key in named}
    roles = networks[name] if part.networks is None else part.networks
    part.build(Parts(stated, {role: networks[name][role] for role in roles}))


def test_the_list_names_source_and_attacker(capsys):
    assert main(["purifiers"]) == 0
    listed = capsys.readouterr().out
    for name in NAMES:
        about = find_purifier(name).about
        assert f"\n{name}\n" in "\n" + listed
        assert all(text in listed for text in (about.line, about.source, about.threat))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--purifier", "difpure"], "did you mean 'diffpure'"),
        (
            ["run", "--purifier", "ncis", "--blind_spot.images", "natural", "--data.root", "."],
            "blind_spot.images pool",
        ),
        (
            ["run", "--purifier", "blind-spot", "--blind_spot.images", "natural", "--data.root", "."],
            "blind_spot.images pool",
        ),
        (["run", "--purifier", "de3", "--nim.patch_size", "3"], "does not divide the image 8x8"),
        (["run", "--nim.tile", "9"], "must fit the image 8x8"),
        (["run", "--nim.tile", "6"], "patch_size 4 does not divide the tile 6"),
        (["run", "--nim.tile", "0"], "use a number of pixels"),
        (["run", "--nim.tile", "4", "--surrogate.model", "nim"], "a plain one"),
        (["run", "--nim.tile", "4", "--purifier", "mim"], "sees whole images"),
        (["run", "--nim.weights", "leaves", "--surrogate.model", "nim"], "a plain one"),
        (["run", "--nim.weights", "leaves", "--nim.tile", "4"], "tiles of its own"),
        (["run", "--nim.weights", "leaves", "--purifier", "de3-simmim"], "only the purifier de3"),
        (["run", "--nim.weights", "leaves", "--nim.encoder", "vit_tiny_patch16_224"], "encoder of its own"),
        (["pretrain", "--leaves-epochs", "3"], "it is for --leaves FOLDER"),
        (["run", "--purifier", "reversal", "--reversal.tasks", "[chess]"], "chess"),
        (["run", "--purifier", "gs", "--gs.kernel", "4"], "odd"),
        (["run", "--purifier", "diffpure", "--diffusion.t", "0"], "between 1 and 1000"),
        (["run", "--purifier", "diffpure", "--diffusion.epochs", "0"], "epochs"),
        (["purify", "--purifier", "gs", "--images", "none.npz"], "is no file"),
        (["purify", "--purifier", "gs", "--out", "here/out.npz"], "folder that is there"),
        (["run", "--purifier", "python:mine"], "write python:package.module:factory"),
        (["run", "--purifier", "python:no_such_module:factory"], "No module named 'no_such_module'"),
        (["attack", "--ladder.systems", "[magic]"], "magic is no purifier"),
        (["purifiers", "--all"], "takes none"),
    ],
)
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
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.acceptance] if name in VARIED else [])
        for name in NAMES
        if name != "de3"
    ],
)
def test_every_purifier_stands_in_front_of_a_whole_job(name, migrated_store, folder):
    import mlflow

    budget = {"ledger__evaluation": 10_000}  # the held-out images behind each of them
    config, summary, _ = run_once(folder, migrated_store, purifier=name, **TINY | SMALL | budget)
    front = name if find_purifier(name).denoiser else "none"
    curves = summary.results["certify"]["curves"]
    assert curves[f"target-nim-{front}"]["headline"]
    assert {row["eps"] for row in summary.results["attack"]["rows"]} == {0.0, *config.attack.eps}
    page = summary.report.read_text()
    assert f"target behind {name}" in page or f"<dt>{name}</dt>" in page
    assert "De³" not in page
    assert (
        mlflow.MlflowClient(config.tracking.uri).get_run(summary.run_id).info.run_name
        == f"digits, {name}, seed 0"
    )
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
    with pytest.raises(ConfigError, match="purifier is 'magic': use one of agdm, "):
        certdef.run(certdef.load_config(purifier="magic"))
