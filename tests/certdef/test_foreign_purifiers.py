"""Purifiers of others: registered by an installed package, or a function of the user's own; each is tried before use."""

import importlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

import certdef
from certdef.cli import main
from certdef.config.job import ConfigError
from certdef.config.purifiers import purifier_names
from certdef.models import storage
from certdef.models.classifiers import build_classifier
from certdef.purifiers import trial
from certdef.purifiers.base import Parts
from certdef.purifiers.registry import find_purifier
from certdef.stages.purifier import check_purifier
from tests.conftest import TINY, run_once

SHAPE = (1, 8, 8)
OWN = '''
"""A purifier in one file."""
import torch
from torch import nn


class Median(nn.Module):
    def forward(self, images):
        padded = nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
        patches = padded.unfold(2, 3, 1).unfold(3, 3, 1)
        return patches.flatten(4).median(dim=4).values.clamp(0, 1)


def median():
    """The median of nine pixels."""
    return Median()
'''
PACKAGE = (
    OWN
    + """

class Sharpness(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape, self.weight = shape, nn.Parameter(torch.zeros(()))

    def forward(self, images):
        return torch.lerp(images, Median()(images), self.weight.sigmoid()).clamp(0, 1)


from dataclasses import dataclass

from certdef.purifiers.base import About, Denoiser, NetworkSpec, PurifierSpec


@dataclass(frozen=True)
class Shape:
    image_shape: tuple[int, int, int]


Sharpness.__init__.__annotations__["shape"] = Shape


def train(network, run):
    nn.init.constant_(network.weight, 1.0)
    return [float(run.pool.mean())]


WEIGHT = NetworkSpec("weight", "toy-weight", lambda plan: Sharpness(Shape(plan.image_shape)), train, lambda config: {})

PURIFIER = PurifierSpec(
    "toy-median",
    About("a median", "nobody", "knows nothing", papers=("Tukey. Exploratory Data Analysis. 1977",)),
    lambda parts: parts.networks["weight"],
    networks=lambda config: (WEIGHT,),
    denoiser=Denoiser("the median", lambda parts: parts.networks["weight"]),
)
"""
)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """`python:` reference of a module that lies in a folder of the user's."""
    (tmp_path / "own_purifiers").mkdir()
    (tmp_path / "own_purifiers" / "ranks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "python:own_purifiers.ranks:median"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package that registers a purifier as an entry point."""
    (tmp_path / "toy_purifiers.py").write_text(PACKAGE)
    information = tmp_path / "toy_purifiers-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-purifiers\nVersion: 1.0\n")
    points = "[certdef.purifiers]\ntoy-median = toy_purifiers\ntoy-broken = toy_purifiers:Median\ngs = toy_purifiers\n"
    (information / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return "toy-median"


def settings(folder) -> list[str]:
    return [
        "--quiet",
        f"--work_dir={folder}",
        *(f"--{key.replace('__', '.')}={value}" for key, value in TINY.items()),
    ]


def test_a_function_of_the_users_own_purifies(own, store, tmp_path, capsys):
    command = ["purify", "--purifier", own, "--out", str(tmp_path / "out.npz"), *settings(tmp_path / "w")]
    assert main(command) == 0
    assert f"by {own}" in capsys.readouterr().out
    with np.load(tmp_path / "out.npz") as arrays:
        purified = arrays["images"]
    assert 0 <= purified.min() < purified.max() <= 1
    assert find_purifier(own).about.line == "The median of nine pixels."


def test_a_registered_purifier_trains_its_network_once_and_is_listed(installed, store, tmp_path, capsys):
    assert installed in purifier_names()
    assert find_purifier("gs").about.source.startswith("Cha"), "a package took a name of ours"
    command = [
        "purify",
        "--purifier",
        installed,
        "--out",
        str(tmp_path / "out.npz"),
        *settings(tmp_path / "w"),
    ]
    assert main(command) == 0
    (folder,) = tmp_path.glob("w/toy-weight-*")
    (model,) = tmp_path.glob("w/purifier-toy-median-*/model")
    restored = storage.load_model(model)
    assert restored.weight.item() == 1.0
    assert main(command) == 0
    assert [folder] == list(tmp_path.glob("w/toy-weight-*"))
    assert main(["cite", "--purifier", installed]) == 0
    assert "Tukey. Exploratory Data Analysis. 1977" in capsys.readouterr().out


def test_a_registration_that_holds_no_purifier_is_refused(installed):
    with pytest.raises(ConfigError, match=r"'toy-broken' \(toy_purifiers:Median\) is no PurifierSpec"):
        find_purifier("toy-broken")


@pytest.mark.acceptance
def test_a_function_of_the_users_own_stands_in_front_of_a_whole_job(own, migrated_store, tmp_path):
    _, summary, _ = run_once(tmp_path, migrated_store, purifier=own, **TINY)
    assert summary.results["certify"]["curves"]["target-nim-python-own_purifiers-ranks-median"]["headline"]
    assert own in summary.report.read_text()


def test_other_code_is_another_purifier(tmp_path, monkeypatch):
    """What was certified behind the old code is not found again behind the new one."""
    path, config = tmp_path / "changing.py", certdef.load_config()
    path.write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    settings = find_purifier("python:changing:median").settings
    before = settings(config)
    assert settings(config) == before
    path.write_text(OWN.replace(".median(dim=4).values", ".mean(dim=4)"))
    assert settings(config) != before


class Broken(nn.Module):
    """A purifier that breaks one rule."""

    def __init__(self, purify=lambda images: images.clamp(0, 1)):
        super().__init__()
        self.purify, self.seen = purify, 0

    def forward(self, images):
        return self.purify(images)


class Training(Broken):
    def train(self, mode=True):
        return super().train(True)


class Remembers(Broken):
    def forward(self, images):
        self.seen += 1
        return (images + 0.01 * self.seen).clamp(0, 1)


def in_place(images):
    images.clamp_(0, 1)
    return images.clone()


def fails(images):
    raise RuntimeError("no such size")


RULES = {
    "shape": (lambda: Broken(lambda images: images[..., 1:].clamp(0, 1)), r"returns shape \(5, 1, 8, 7\)"),
    "dtype": (
        lambda: Broken(lambda images: images.double().clamp(0, 1)),
        "returns torch.float64 for torch.float32",
    ),
    "range": (lambda: Broken(lambda images: images), r"returns pixels in \[-.*clamp them"),
    "not a number": (lambda: Broken(lambda images: images * torch.nan), r"returns pixels in \[nan, nan\]"),
    "input": (lambda: Broken(in_place), "modifies its input: work on a copy"),
    "type": (lambda: Broken(lambda images: images.numpy()), "returns a ndarray: return a tensor"),
    "error": (lambda: Broken(fails), r"fails on images of shape \(5, 1, 8, 8\): RuntimeError: no such size"),
    "mode": (Training, "stays in training mode"),
}
DENOISER_RULES = {
    "noise": (
        lambda: Broken(lambda images: (images + 0.1 * torch.randn(images.shape)).clamp(0, 1)),
        "answers the same images differently",
    ),
    "state": (Remembers, "answers the same images differently"),
    "mean of the batch": (
        lambda: Broken(lambda images: (images - images.mean(0)).clamp(0, 1)),
        "depends on the other images of the batch",
    ),
    "place in the batch": (
        lambda: Broken(
            lambda images: (images + 0.1 * torch.arange(len(images)).view(-1, 1, 1, 1)).clamp(0, 1)
        ),
        "depends on the other images of the batch",
    ),
    "batch norm": (
        lambda: nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Sigmoid()),
        "depends on the other images of the batch",
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_purifier_that_breaks_a_rule_is_refused(rule):
    broken, message = RULES[rule]
    with pytest.raises(ConfigError, match=f"purifier 'mine' {message}"):
        trial.check_purifier_module("mine", broken().eval(), SHAPE)
    with pytest.raises(ConfigError, match=f"purifier 'mine' {message}"):
        trial.check_denoiser("mine", lambda: broken().eval(), SHAPE)


@pytest.mark.parametrize("rule", DENOISER_RULES)
def test_a_denoiser_that_breaks_a_rule_is_refused(rule):
    broken, message = DENOISER_RULES[rule]
    trial.check_purifier_module("mine", broken().eval(), SHAPE)  # as a defense alone it may draw noise
    with pytest.raises(ConfigError, match=message):
        trial.check_denoiser("mine", lambda: broken().eval(), SHAPE)


def test_a_denoiser_that_is_another_function_when_it_is_built_again_is_refused():
    draws = np.random.default_rng()

    def build():
        shift = float(draws.uniform(0.1, 0.9))
        return Broken(lambda images: (images + shift).clamp(0, 1)).eval()

    with pytest.raises(ConfigError, match="is another function when it is built again: load fixed weights"):
        trial.check_denoiser("mine", build, SHAPE)


CONVOLUTION = """
from functools import partial
from torch import nn


class Blur(nn.Sequential):
    def __init__(self, width=3):
        super().__init__(nn.Conv2d(1, 1, width, padding=width // 2), nn.Dropout(), nn.Sigmoid())


wide = partial(Blur, 5)
"""


@pytest.mark.parametrize("factory", ["Blur", "wide"])
def test_any_factory_gives_one_function_in_eval_mode(factory, tmp_path, monkeypatch):
    """Weights that are drawn when it is built: what is attacked is what was certified."""
    (tmp_path / "blurs.py").write_text(CONVOLUTION)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"python:blurs:{factory}"
    check_purifier(certdef.load_config(purifier=name), SHAPE, build_classifier("mlp", SHAPE, 10).eval())
    state, spec, images = torch.get_rng_state(), find_purifier(name), torch.rand(2, *SHAPE)
    first, second = spec.build(Parts({})), spec.denoiser.build(Parts({}))
    assert not first.training
    assert torch.equal(first(images), second(images))
    torch.set_rng_state(state)
    spec.build(Parts({}))
    assert torch.equal(state, torch.get_rng_state())


def test_a_purifier_that_keeps_the_rules_passes_and_the_generator_is_left_alone():
    before = torch.get_rng_state()
    trial.check_denoiser("mine", lambda: Broken().eval(), SHAPE)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def factory(): return 3", "is a int: return a torch module"),
        (
            "def other(): pass",
            "cannot be imported: AttributeError: module 'mine_.*' has no attribute 'factory'",
        ),
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("factory = 3", "is a int: name a function that returns a module"),
        ("def factory(path): pass", "cannot be built: TypeError: factory.* missing 1 required"),
        ("def factory(): raise OSError('no\\nweights')", "cannot be built: OSError: no weights$"),
        ("from torch import nn\ndef factory(): return nn.Flatten()", "returns shape"),
    ],
)
def test_it_is_tried_before_anything_is_paid(code, message, tmp_path, monkeypatch):
    module = f"mine_{abs(hash(code))}"
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    config = certdef.load_config(purifier=f"python:{module}:factory")
    with pytest.raises(ConfigError, match=message):
        check_purifier(config, SHAPE, build_classifier("mlp", SHAPE, 10).eval())


LOAD = """
import sys
from certdef.config.job import ConfigError
from certdef.models.storage import load_model
try:
    load_model(sys.argv[1], code=sys.argv[2] if len(sys.argv) > 2 else None)
except ConfigError as error:
    print(error)
print("imported" if "own_purifiers" in sys.modules else "not imported")
"""


def test_a_saved_model_runs_no_code_that_nobody_allowed(own, tmp_path, monkeypatch):
    storage.save_purifier(tmp_path / "model", own, {}, {})

    def load(*code: str) -> str:
        command = [sys.executable, "-c", textwrap.dedent(LOAD), str(tmp_path / "model"), *code]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    refused = load()
    assert f"runs code of yours, {own!r}" in refused
    assert "CERTDEF_ALLOW_CODE=1" in refused
    assert "not imported" in refused
    assert "not imported" in load("python:another:factory")
    assert load(own) == "imported\n"
    monkeypatch.setenv("CERTDEF_ALLOW_CODE", "1")
    assert load() == "imported\n"
