"""Networks of purifiers in a job: what decides their weights, and nothing else; saved models of older versions open."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import certdef
from certdef import pipeline
from certdef.config.job import ConfigError, SigmaLaw
from certdef.config.purifiers import own_names
from certdef.models import storage
from certdef.models.classifiers import build_classifier
from certdef.purifiers import build
from certdef.purifiers.networks.blind_spot import DENOISER, RESTORER
from certdef.purifiers.networks.denoisers import MASKED, NIM_MAE, NIM_SIMMIM
from certdef.purifiers.networks.diffusion import DIFFUSION
from certdef.purifiers.networks.robust import ROBUST
from certdef.purifiers.networks.tasks import HEADS
from certdef.purifiers.registry import find_purifier
from certdef.stages.networks import (
    Defended,
    NetworkResult,
    Trained,
    network_key,
    network_stage,
    pretrain_denoiser,
    pretrained,
    train_network,
)
from certdef.stages.purifier import Purifier, check_purifier, prepare_purifier
from certdef.tracking.legacy import Legacy
from tests.conftest import TINY

SHAPE = (1, 8, 8)
LAW = SigmaLaw()
ALONE = (NIM_MAE, NIM_SIMMIM, MASKED, RESTORER, DENOISER, DIFFUSION)
WITH_CLASSIFIER = (HEADS, ROBUST)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def job(store, tmp_path):
    config = certdef.load_config(
        work_dir=str(tmp_path / "w"), tracking__uri=store, **TINY | {"nim__epochs": 2}
    )
    with pipeline.open_job(config, progress=False) as job:
        yield job


def fingerprints(job, specs=ALONE, defended=None) -> list[str]:
    return [
        network_stage(job, spec, LAW if spec.laws != "none" else None, defended).fingerprint for spec in specs
    ]


def changed(job, **sections):
    """The same job under another configuration."""
    parts = {
        name: replace(getattr(job.config, name), **values) if isinstance(values, dict) else values
        for name, values in sections.items()
    }
    return replace(job, config=replace(job.config, **parts))


@pytest.fixture
def surrogate(job):
    """Two surrogates, as stages."""
    classifier = build_classifier("mlp", SHAPE, 10).eval()
    return [
        Defended(classifier, job.stage("surrogate", certdef.stages.SurrogateResult, number))
        for number in (1, 2)
    ]


class TestWhatDecidesTheWeights:
    def test_not_target_budget_held_out_images_version_or_later_use(self, job, monkeypatch):
        before = fingerprints(job)
        fewer = replace(
            job.data, heldout_images=job.data.heldout_images[:10], heldout_labels=job.data.heldout_labels[:10]
        )
        assert fingerprints(replace(job, data=fewer)) == before
        other = changed(
            job,
            target={"uri": "models:/another/1", "num_classes": 10},
            ledger={"training": 200},
            surrogate={"epochs": 3},
            certify={"n": 300, "alpha": 0.01},
            attack={"eps": (0.2,), "sigma_255": 30.0},
            diffusion={"t": 50, "steps": 2, "grid": (1,), "guidance": 3.0, "robust_epochs": 9},
            blind_spot={"iterations": 3, "crops": 7},
        )
        assert fingerprints(other) == before
        monkeypatch.setattr(certdef, "__version__", "9.9")
        assert fingerprints(job) == before

    def test_pool_seed_device_configuration_and_law(self, job):
        before = fingerprints(job)
        assert len(set(before)) == len(ALONE)
        pool = replace(job.data, pool=1 - job.data.pool)
        for other in (
            replace(job, data=pool),
            changed(job, seed=1),
            replace(job, device=torch.device("cuda")),
        ):
            assert not set(fingerprints(other)) & set(before)
        nim = [fingerprints(changed(job, nim={"epochs": 3}))[at] == before[at] for at in range(len(ALONE))]
        assert nim == [False, False, False, True, True, True]
        smoothing = [
            fingerprints(changed(job, gs={"sigma": 2.0}))[at] == before[at] for at in range(len(ALONE))
        ]
        assert smoothing == [True, True, True, False, True, True]
        wider = network_stage(job, NIM_MAE, replace(LAW, scale_255=6.0))
        assert wider.fingerprint != before[0]

    def test_only_networks_that_see_the_classifier_depend_on_it(self, job, surrogate):
        one, two = (fingerprints(job, WITH_CLASSIFIER, defended) for defended in surrogate)
        assert not set(one) & set(two)
        assert fingerprints(job, ALONE, surrogate[0]) == fingerprints(job, ALONE, surrogate[1])

    def test_the_auxiliary_network_depends_on_t_where_it_sees_diffused_images(self, job, surrogate):
        """Version 0.1.0 diffused nothing: its network is that of robust_diffused=False, under its old name."""
        plain, later = ({"t": t, "robust_diffused": False} for t in (100, 50))
        names = [
            fingerprints(changed(job, diffusion=each), [ROBUST], surrogate[0])[0]
            for each in (plain, later, {"t": 100}, {"t": 50})
        ]
        assert names[0] == names[1]
        assert len(set(names)) == 3
        legacy = [
            Legacy(changed(job, diffusion={"robust_diffused": each}).config, "cpu", "sqlite://")
            for each in (False, True)
        ]
        assert legacy[0].fingerprint("robust") is not None
        assert legacy[1].fingerprint("robust") is None
        assert legacy[0].fingerprint("purifier-agdm") != legacy[1].fingerprint("purifier-agdm")
        assert legacy[0].fingerprint("diffusion") == legacy[1].fingerprint("diffusion")

    def test_photographs_and_pretrained_weights_do_not_depend_on_the_pool(self, job, photographs):
        natural = changed(photographs, diffusion={"pretrained": "somewhere"})
        specs = (RESTORER, DENOISER, DIFFUSION)
        before = fingerprints(natural, specs)
        other = replace(natural, data=replace(job.data, pool=1 - job.data.pool))
        assert fingerprints(other, specs) == before
        assert not set(fingerprints(job, specs)) & set(before)


@pytest.fixture
def photographs(job, tmp_path):
    """A job whose blind-spot network is trained on natural photographs."""
    (tmp_path / "root" / "natural").mkdir(parents=True)
    write_photographs(tmp_path / "root", seed=0)
    data = {"root": str(tmp_path / "root")}
    return changed(job, data=data, blind_spot={"images": "natural", "crops": 20, "epochs": 1, "blocks": 1})


def write_photographs(root, seed: int):
    levels = np.random.default_rng(seed).integers(0, 256, (3, 60, 60), dtype=np.uint8)
    np.savez(root / "natural" / "train400_gray180.npz", x=levels)


class TestFiles:
    """What a network is trained on outside of the configuration decides its weights too, by its contents."""

    def test_photographs(self, photographs):
        root = Path(photographs.config.data.root)
        first = train_network(photographs, RESTORER)
        assert train_network(photographs, RESTORER).stage.reused
        write_photographs(root, seed=1)
        other = train_network(photographs, RESTORER)
        assert not other.stage.reused
        assert other.stage.path != first.stage.path
        weights = [next(each.network.parameters()) for each in (first, other)]
        assert not torch.equal(*weights)
        write_photographs(root, seed=0)
        assert train_network(photographs, RESTORER).stage.path == first.stage.path

    def test_a_network_of_version_0_1_is_taken_for_the_photographs_of_its_first_use(self, photographs):
        """Its key was without them. Its fingerprint stays, and with it the receipts of votes behind it."""
        now = network_stage(photographs, RESTORER, None)
        key = network_key(photographs, RESTORER, None)
        old = photographs.stage(RESTORER.stage, NetworkResult, *key, kind=RESTORER.stage)
        assert old.fingerprint != now.fingerprint
        trained = train_network(photographs, RESTORER).stage
        assert trained.path == now.path
        trained.path.rename(old.path)
        for name in ("stage.json", "result.json"):  # as version 0.1 left it
            plain = json.loads((old.path / name).read_text())
            (old.path / name).unlink()
            if name == "result.json":
                (old.path / name).write_text(
                    json.dumps({key: plain[key] for key in plain if key not in ("files", "sha256")})
                )
        found = train_network(photographs, RESTORER).stage
        assert (found.reused, found.path, found.fingerprint) == (True, old.path, old.fingerprint)
        write_photographs(Path(photographs.config.data.root), seed=1)
        assert not train_network(photographs, RESTORER).stage.reused
        write_photographs(Path(photographs.config.data.root), seed=0)
        assert train_network(photographs, RESTORER).stage.path == old.path

    def test_pretrained_weights_in_a_folder_or_a_file(self, job, tmp_path):
        folder = tmp_path / "unet"
        folder.mkdir()
        weights = folder / "model.safetensors"
        for named, spec in (
            (changed(job, diffusion={"pretrained": str(folder)}), DIFFUSION),
            (changed(job, nim={"encoder": "vit_tiny_patch16_224", "weights": str(weights)}), NIM_MAE),
        ):
            seen = set()
            for content in (b"one", b"two", b"one"):
                weights.write_bytes(content)
                seen.add(network_stage(named, spec, LAW if spec is NIM_MAE else None).fingerprint)
            assert len(seen) == 2


def test_a_network_is_found_again_under_another_label_and_another_target(job):
    _, stage = pretrain_denoiser(job, LAW)
    assert (stage.name, stage.reused) == ("nim", False)
    renamed = changed(job, certify={"laws": (SigmaLaw("wide", scale_255=6.0), SigmaLaw("gamma"))})
    other = changed(renamed, target={"kind": "cnn"}, data={"heldout_images": 300})
    network, again = pretrain_denoiser(other, SigmaLaw("gamma"))
    assert (again.name, again.reused, again.path) == ("nim-gamma", True, stage.path)
    assert list(stage.path.parent.glob("nim-*")) == [stage.path]
    known = pretrained(other, SigmaLaw("gamma"))
    images = torch.rand(2, *SHAPE)
    assert torch.equal(network(images), known(images))
    assert pretrained(other, SigmaLaw("wide", scale_255=6.0)) is None


def test_a_purifier_depends_on_the_surrogate_only_where_it_is_given_it(job, surrogate):
    def kept(name):
        small = changed(job, reversal={"epochs": 1, "tasks": ("rotation",)}, certify={"laws": (LAW,)})
        parts = [prepare_purifier(small, name, each.classifier, each.stage) for each in surrogate]
        return [part.stages[-1].path for part in parts]

    assert len(set(kept("de3"))) == 1
    assert len(set(kept("reversal"))) == 2


class TestDenoiserKey:
    """Receipts of paid votes are kept under what identifies the denoiser, and nothing else."""

    def purifier(self, job, name, law="nim", **settings):
        stages = {
            role: job.stage(role, certdef.stages.NetworkResult, law)
            for role in ("nim", "diffusion", "blind_spot")
        }
        networks = {role: Trained(torch.nn.Identity(), stage) for role, stage in stages.items()}
        roles = [network.role for network in find_purifier(name).networks(job.config)]
        shared = {role: networks[role] for role in roles if role in networks}
        spec = find_purifier(name)
        return Purifier(spec, spec.settings(job.config) | settings, "nim", shared=shared)

    def key(self, job, name, **options):
        return self.purifier(job, name, **options).denoiser_key()

    def test_no_denoiser_has_no_key(self, job):
        assert self.key(job, "reversal") == "none"

    def test_the_noise_of_the_defense_does_not_count_and_that_of_the_network_does(self, job):
        assert self.key(job, "de3", sigma=0.1) == self.key(job, "de3", sigma=0.2)
        assert self.key(job, "de3", law="wide") != self.key(job, "de3")

    def test_one_diffusion_step_is_the_same_behind_every_diffusion_purifier(self, job):
        assert len({self.key(job, name) for name in ("one-step", "diffpure", "uad-rs", "agdm")}) == 1
        assert self.key(job, "diffpure", t=7) == self.key(job, "diffpure")

    def test_a_smoothing_counts_with_its_settings(self, job):
        assert self.key(job, "gs", sigma=2.0) != self.key(job, "gs")
        assert len({self.key(job, "ncis", **each) for each in ({}, {"passes": 2}, {"iterations": 2})}) == 3


# What version 0.1.0 wrote into model.json, one entry for each class of network.
NETWORKS = {
    "nim": {
        "type": "NIM",
        "image_shape": [1, 8, 8],
        "patch_size": 4,
        "width": 16,
        "depth": 1,
        "heads": 2,
        "decoder_width": 16,
        "decoder_depth": 1,
        "decoder_heads": None,
        "class_token": False,
    },
    "mim": {
        "type": "MIM",
        "image_shape": [1, 8, 8],
        "patch_size": 4,
        "width": 16,
        "depth": 1,
        "heads": 2,
        "decoder_width": 16,
        "decoder_depth": 1,
        "decoder_heads": None,
        "class_token": False,
        "ratio": 0.75,
    },
    "blind_spot": {"type": "BlindSpotNetwork", "image_shape": [1, 8, 8], "filters": 8, "blocks": 2},
    "diffusion": {
        "type": "DiffusionNetwork",
        "image_shape": [1, 8, 8],
        "channels": [8],
        "blocks": 1,
        "patch": 2,
        "schedule": "linear",
        "unet": None,
        "scheduler": None,
    },
    "tasks": {
        "type": "TaskNetwork",
        "image_shape": [1, 8, 8],
        "features": 256,
        "tasks": ["rotation"],
        "hidden": 128,
        "embedding": 16,
        "temperature": 0.2,
        "views": 4,
        "bank": 4,
        "grid": 2,
        "sigma": 0.3,
        "seed": 0,
    },
    "classifier": {"type": "classifier", "model": "mlp", "image_shape": [1, 8, 8], "num_classes": 10},
    "restoration": {"type": "RestorationNetwork", "image_shape": [1, 8, 8], "width": 8, "depth": 1},
}
NETWORKS |= {"nim-simmim": NETWORKS["nim"] | {"decoder_depth": 0}, "blind_spot_noisy": NETWORKS["blind_spot"]}
NETWORKS |= {"robust": NETWORKS["classifier"], "denoiser": NETWORKS["nim"]}
CHAIN = {"t": 20, "steps": 2}
PURIFIERS = {
    "de3": ({"sigma": 0.3}, ["nim"]),
    "de3-simmim": ({"sigma": 0.3}, ["nim-simmim"]),
    "mim": ({"sigma": 0.3}, ["mim"]),
    "gs": ({"kernel": 5, "sigma": 0.7, "passes": 1}, []),
    "ncis": ({"kernel": 5, "sigma": 0.7, "passes": 1, "iterations": 1}, ["blind_spot"]),
    "blind-spot": ({}, ["blind_spot_noisy"]),
    "reversal": ({"tasks": ["rotation"], "eps": 0.1, "steps": 2, "step": 2 / 255}, ["classifier", "tasks"]),
    "one-step": ({}, ["diffusion"]),
    "diffpure": (CHAIN, ["diffusion"]),
    "uad-rs": (CHAIN, ["classifier", "diffusion"]),
    "agdm": (CHAIN | {"scale": 10.0}, ["robust", "diffusion"]),
}


def write_model(folder, described: dict, **spec) -> None:
    """A saved model as version 0.1.0 left it; the weights are those of untrained networks."""
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps(spec | {"networks": described, "certdef": "0.1.0"}))
    for name, arguments in described.items():
        weights = {key: value.contiguous() for key, value in storage.rebuilt(arguments).state_dict().items()}
        save_file(weights, folder / f"{name}.safetensors")


class TestSavedByVersion010:
    def test_every_name_is_among_them(self):
        assert set(own_names()) - {"de3-leaves", "none"} == set(PURIFIERS)  # these came later

    @pytest.mark.parametrize("name", PURIFIERS)
    def test_purifiers(self, name, tmp_path):
        settings, roles = PURIFIERS[name]
        described = {role: NETWORKS[role] for role in roles}
        write_model(tmp_path / "p", described, kind="purifier", purifier=name, settings=settings)
        module = storage.load_model(tmp_path / "p")
        with torch.inference_mode():
            purified = module(torch.rand(2, *SHAPE))
        assert purified.shape == (2, *SHAPE)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_networks(self, name, tmp_path):
        write_model(tmp_path / "n", {"network": NETWORKS[name]}, kind="network")
        network = storage.load_model(tmp_path / "n")
        assert type(network).__name__ in (NETWORKS[name]["type"], "Classifier")
        storage.save_network(tmp_path / "again", network)
        kept = json.loads((tmp_path / "again" / "model.json").read_text())["networks"]["network"]
        assert kept == NETWORKS[name]

    def test_a_certified_classifier(self, tmp_path):
        described = {"surrogate": NETWORKS["classifier"], "nim": NETWORKS["nim"]}
        spec = {
            "kind": "certified",
            "purifier": "de3",
            "settings": {"sigma": 0.3},
            "law": asdict(LAW) | {"shape": [25.0]},
        }
        more = {
            "image_shape": [1, 8, 8],
            "num_classes": 10,
            "classes": list("0123456789"),
            "defaults": {"n": 100},
        }
        write_model(tmp_path / "c", described, **spec | more)
        certificates, _ = storage.load_model(tmp_path / "c").certify(np.zeros((1, *SHAPE), np.float32), n0=20)
        assert len(certificates) == 1


def test_a_file_does_not_say_what_is_imported(tmp_path):
    for kind in ("Popen", "certdef.purifiers.networks.nim.NIM", "Tensor", "nn"):
        (tmp_path / "model.json").write_text(
            json.dumps({"kind": "network", "networks": {"network": {"type": kind}}})
        )
        with pytest.raises(ConfigError, match=f"unknown network {kind!r}"):
            storage.load_model(tmp_path)


def test_a_purifier_that_is_not_known_is_refused(tmp_path):
    (tmp_path / "model.json").write_text(
        json.dumps({"kind": "purifier", "purifier": "magic", "settings": {}, "networks": {}})
    )
    with pytest.raises(ConfigError, match="unknown purifier 'magic'"):
        storage.load_model(tmp_path)
    with pytest.raises(ConfigError, match="unknown purifier 'magic'"):
        build.purifier("magic", {}, {})
    with pytest.raises(ConfigError, match="unknown purifier 'magic'"):
        check_purifier(
            replace(certdef.load_config(), purifier="magic"), SHAPE, build_classifier("mlp", SHAPE, 10)
        )
