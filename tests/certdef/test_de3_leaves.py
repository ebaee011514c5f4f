"""The shipped denoiser: read from the package, trained again to the same bytes, fine-tuned on a pool, in front of a job."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import certdef
from certdef.cli import main
from certdef.config.job import ConfigError, RunConfig
from certdef.config.noise_laws import noise_law
from certdef.data.dead_leaves import dead_leaves
from certdef.models import storage
from certdef.models.classifiers import build_classifier
from certdef.purifiers import build
from certdef.purifiers.networks import shipped
from certdef.purifiers.networks.multiscale import MultiscaleNIM
from certdef.purifiers.networks.shipped import FOLDER, shipped_denoiser
from certdef.report.unused_options import unused_options
from certdef.stages import check_purifier
from certdef.stages.leaves import pretrain_leaves
from tests.conftest import TINY

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"images": 3, "epochs": 4, "progress": False}


def psnr(one, other):
    return float(-10 * (one - other).detach().square().mean(dim=(1, 2, 3)).log10().mean())


def noisy(clean, sigma, seed=0):
    return clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))


class TestPackage:
    def test_the_folder_is_as_storage_writes_it(self):
        assert {path.name for path in FOLDER.iterdir()} == {"model.json", "network.safetensors"}
        stored, ours = storage.load_model(FOLDER), shipped_denoiser()
        assert isinstance(stored, MultiscaleNIM)
        assert all(
            torch.equal(a, b)
            for a, b in zip(stored.state_dict().values(), ours.state_dict().values(), strict=True)
        )
        assert shipped.WEIGHTS.stat().st_size < 6e6
        assert not ours.training

    def test_whoever_builds_it_has_weights_of_his_own(self):
        torch.manual_seed(3)
        state = torch.get_rng_state()
        one = shipped_denoiser()
        assert torch.equal(torch.get_rng_state(), state)
        with torch.no_grad():
            for weight in one.parameters():
                weight.zero_()
        assert any(weight.any() for weight in shipped_denoiser().parameters())

    def test_what_was_changed_is_refused(self, tmp_path, monkeypatch):
        folder = tmp_path / "leaves"
        shutil.copytree(FOLDER, folder)
        monkeypatch.setattr(shipped, "FOLDER", folder)
        shipped_denoiser()
        shipped._read.cache_clear()
        weights = bytearray((folder / "network.safetensors").read_bytes())
        weights[-1] ^= 1
        (folder / "network.safetensors").write_bytes(weights)
        with pytest.raises(ConfigError, match=r"was changed after it was written: install certdef again"):
            shipped_denoiser()
        (folder / "model.json").unlink()
        with pytest.raises(ConfigError, match="is missing: install certdef again"):
            shipped_denoiser()

    def test_setup_ships_it(self):
        data = Path("setup.cfg") if Path("setup.cfg").is_file() else Path(__file__).parents[2] / "setup.cfg"
        assert "purifiers/weights/*/*" in data.read_text()


class TestDenoiser:
    def test_it_denoises_what_it_was_trained_for(self):
        clean = torch.from_numpy(dead_leaves(6, 48, seed=99)) / 255
        for sigma in (0.12, 0.25):
            given = noisy(clean, sigma)
            denoised = build.denoiser("de3-leaves", {"sigma": 0.1}, {"leaves": shipped_denoiser()})(given)
            assert psnr(denoised, clean) > psnr(given.clamp(0, 1), clean) + 4, sigma
            gray = clean.mean(dim=1, keepdim=True)
            given = noisy(gray, sigma)
            assert psnr(shipped_denoiser()(given), gray) > psnr(given.clamp(0, 1), gray) + 3, sigma

    @pytest.mark.acceptance
    def test_it_denoises_photographs(self, data_root):
        """Noise of sigma .12 and .25 leaves 18.9 and 13.3 dB."""
        files = sorted((data_root / "natural" / "cbsd68").glob("*.j*g"))[:8]
        crops = [np.asarray(Image.open(file).convert("RGB"))[100:196, 100:196] for file in files]
        clean = torch.from_numpy(np.stack(crops).transpose(0, 3, 1, 2)).float() / 255
        with torch.inference_mode():
            for sigma, least in {0.12: 27.0, 0.25: 24.0}.items():
                assert psnr(shipped_denoiser()(noisy(clean, sigma)), clean) > least, sigma

    def test_the_dial_is_that_of_de3(self):
        config = certdef.load_config(purifier="de3-leaves", attack__sigma_255=51.0)
        assert build.settings("de3-leaves", config) == {"sigma": 0.2, "keep": 0.05}
        images = torch.rand(2, 3, 24, 40)
        purifier = build.purifier(
            "de3-leaves", {"sigma": 0.2}, {"leaves": shipped_denoiser()}, torch.Generator().manual_seed(1)
        )
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
        assert torch.equal(purifier(images), shipped_denoiser()(images + 0.2 * noise))

    @pytest.mark.parametrize(
        ("purifier", "shape", "words"),
        [
            ("de3-leaves", (4, 16, 16), "got 4 channels of 16x16"),
            ("de3-leaves", (3, 16, 7), "at least 8x8 pixels"),
            ("de3", (2, 16, 16), "got 2 channels of 16x16"),
        ],
    )
    def test_images_that_it_does_not_take_are_refused_before_a_query(self, purifier, shape, words):
        config = certdef.load_config(purifier=purifier, nim__weights="leaves" if purifier == "de3" else None)
        with pytest.raises(ConfigError, match=words):
            check_purifier(config, shape, build_classifier("mlp", shape, 3))


class TestTrainedAgain:
    def test_a_seed_decides_every_byte(self, tmp_path):
        line = pretrain_leaves(RunConfig(seed=4, threads=1, device="cpu"), tmp_path / "one", **SMALL)
        assert "3 dead-leaves images, seed 4" in line
        pretrain_leaves(RunConfig(seed=4, threads=1, device="cpu"), tmp_path / "two", **SMALL)
        pretrain_leaves(RunConfig(seed=5, threads=1, device="cpu"), tmp_path / "other", **SMALL)
        assert {path.name for path in (tmp_path / "one").iterdir()} == {"model.json", "network.safetensors"}
        one, two, other = (
            [(tmp_path / name / file).read_bytes() for file in ("network.safetensors", "model.json")]
            for name in ("one", "two", "other")
        )
        assert one == two
        assert one[0] != other[0]
        assert storage.read_spec(tmp_path / "one")["training"]["epochs"] == 4
        assert isinstance(storage.load_model(tmp_path / "one"), MultiscaleNIM)

    def test_an_interrupted_training_ends_at_the_same_bytes(self, tmp_path, monkeypatch):
        from certdef.stages import leaves

        config = RunConfig(threads=1, device="cpu")
        pretrain_leaves(config, tmp_path / "whole", **SMALL)

        class Stop(Exception):
            pass

        def stops(iterable, desc="", **_):
            for number in iterable:
                if desc == "train on dead leaves" and number == 2:
                    raise Stop
                yield number

        with monkeypatch.context() as patched:
            patched.setattr(leaves, "tqdm", stops)
            with pytest.raises(Stop):
                pretrain_leaves(config, tmp_path / "broken", **SMALL | {"progress": True})
        assert [path.name for path in (tmp_path / "broken").iterdir()] == ["checkpoint.pt"]
        pretrain_leaves(config, tmp_path / "broken", **SMALL)
        whole, resumed = (
            (tmp_path / name / "network.safetensors").read_bytes() for name in ("whole", "broken")
        )
        assert whole == resumed

    def test_the_command_trains_it_and_opens_no_job(self, store, tmp_path, capsys):
        folder = tmp_path / "mine"
        small = ["--leaves-images", "2", "--leaves-epochs", "1", "--threads", "1", "--device", "cpu"]
        assert main(["pretrain", "--leaves", str(folder), *small, "--quiet", "--nim.epochs", "7"]) == 0
        printed = capsys.readouterr()
        assert "1,242,331 weights, 2 dead-leaves images, seed 0" in printed.out
        assert "nim.epochs is 7, which nothing reads: the shipped denoiser" in printed.err
        assert (folder / "model.json").is_file()
        assert not (tmp_path / "runs").exists()

    @pytest.mark.parametrize(("option", "value"), [("--leaves-epochs", "0"), ("--leaves-images", "-1")])
    def test_numbers_out_of_range_are_refused_before_an_image_is_drawn(self, option, value, tmp_path, capsys):
        assert main(["pretrain", "--leaves", str(tmp_path / "x"), "--quiet", option, value]) == 2
        assert "must be a positive integer" in capsys.readouterr().err
        assert not (tmp_path / "x").exists()

    def test_a_file_is_no_folder(self, tmp_path, capsys):
        (tmp_path / "x").write_text("")
        assert main(["pretrain", "--leaves", str(tmp_path / "x"), "--quiet"]) == 2
        assert "is no folder" in capsys.readouterr().err


TUNED = {"nim__weights": "leaves", "nim__epochs": 3, "certify__laws": "[{label: nim}]"}


class TestFineTuning:
    @pytest.fixture
    def config(self, store, tmp_path):
        tuned = TINY | TUNED | {"purifier": "de3"}
        return certdef.load_config(**tuned, work_dir=str(tmp_path / "w"), tracking__uri=store)

    def test_it_starts_from_the_shipped_weights_and_learns_the_pool(self, config, tmp_path):
        """On 8x8 digits, which are no dead leaves: smaller than a crop, gray."""
        summary = certdef.pretrain(config, progress=False)
        network = storage.load_model(next((tmp_path / "w").glob("nim-????????????????")) / "model")
        assert isinstance(network, MultiscaleNIM)
        from certdef.data.sets import load_data

        digits = torch.from_numpy(load_data(config.data, config.seed).heldout_images[:100])
        law = noise_law(config.certify.laws[0])
        given = digits + law.sample(digits.shape, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            before, after = psnr(shipped_denoiser()(given), digits), psnr(network(given), digits)
        assert after > before + 1
        # found again, by its own key
        assert certdef.pretrain(config, progress=False).stages["nim"].reused
        keys = {summary.stages["nim"].fingerprint}
        for other in ({"nim__epochs": 4}, {"nim__weights": None}):
            changed = certdef.load_config(**TINY | TUNED | other)
            keys.add(str(changed.nim.settings))
        assert len(keys) == 3

    def test_sizes_of_the_plain_network_are_named_as_unused(self):
        config = certdef.load_config(nim__weights="leaves", nim__width=32, nim__patch_size=2, nim__epochs=7)
        for verb in ("run", "pretrain"):
            lines = unused_options(config, verb)
            assert [line.partition(" is ")[0] for line in lines] == ["nim.patch_size", "nim.width"], verb

    def test_its_key_has_no_size_of_the_plain_network(self):
        plain = certdef.load_config(nim__weights="leaves").nim.settings
        assert plain == certdef.load_config(nim__weights="leaves", nim__width=32).nim.settings
        assert plain != certdef.load_config(nim__weights="leaves", nim__batch_size=32).nim.settings

    def test_squares_of_larger_images_and_color(self):
        from certdef.purifiers.base import Plan, TrainingRun
        from certdef.purifiers.networks.denoisers import NIM_MAE

        config = certdef.load_config(nim__weights="leaves", nim__epochs=1, nim__batch_size=4)
        plan = Plan(config, (3, 40, 50), config.certify.laws[0])
        network = NIM_MAE.build(plan)
        seen = []
        network.enter.register_forward_hook(lambda module, given, answer: seen.append(tuple(given[0].shape)))
        run = TrainingRun(
            plan, torch.rand(6, 3, 40, 50), torch.device("cpu"), None, lambda x, **_: x, build_classifier
        )
        history = NIM_MAE.train(network, run)
        assert len(history) == 1
        assert seen == [(3, 3, 32, 32)] * 2
        changed = [
            not torch.equal(a, b)
            for a, b in zip(network.parameters(), shipped_denoiser().parameters(), strict=True)
        ]
        assert all(changed)


@pytest.mark.slow
def test_a_registered_model_carries_the_weights(migrated_store, tmp_path, monkeypatch):
    """The whole job, ladder too; then the package's weights are gone, and the model still certifies."""
    import mlflow

    from tests.conftest import run_once

    ladder = {
        "ladder__enabled": True,
        "ladder__systems": ("de3-leaves",),
        "ladder__images": 4,
        "ladder__target_images": 2,
        "ladder__steps": 2,
        "ladder__eot": 2,
        "ladder__square_queries": 0,
        "ladder__decision_queries": 0,
        "ladder__smoothed_images": 0,
        "certify__laws": "[{label: nim}]",
        "certify__choose": "off",
        "surrogate__epochs": 2,  # the students learn behind a slow denoiser: how well is not the point
    }
    config, summary, _ = run_once(tmp_path, migrated_store, purifier="de3-leaves", **TINY | ladder)
    assert summary.results["certify"]["curves"]["target-nim-de3-leaves"]["headline"]
    page = summary.report.read_text()
    assert "de3-leaves" in page
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "nowhere")
    mlflow.set_tracking_uri(config.tracking.uri)
    mlflow.set_registry_uri(config.tracking.uri)
    monkeypatch.chdir(tmp_path)
    model = mlflow.pyfunc.load_model(f"models:/{config.registered_model}/latest")
    images = np.random.default_rng(0).random((1, 1, 8, 8), dtype=np.float32)
    (answer,) = model.predict(images, params={"n0": 10, "n": 50, "alpha": 0.1, "seed": 1})
    assert answer["n"] == 50


class TestKeep:
    """A share of the noise that is left in: nim.keep."""

    def settings(self, **nim):
        from dataclasses import replace

        config = RunConfig(purifier="de3-leaves")
        return build.settings("de3-leaves", replace(config, nim=replace(config.nim, **nim)))

    def test_the_vote_and_the_defense_keep_it(self):
        network, images = (
            shipped_denoiser(),
            torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        )
        draws = noisy(images, 0.2)
        clean = network(draws)
        for keep in (0.0, 0.3):
            settings = self.settings(keep=keep)
            denoised = build.denoiser("de3-leaves", settings, {"leaves": network})(draws)
            assert torch.allclose(denoised, (clean + keep * (draws - clean)).clamp(0, 1), atol=1e-6)
            generator = torch.Generator().manual_seed(4)
            defense = build.purifier("de3-leaves", settings | {"sigma": 0.2}, {"leaves": network}, generator)
            grain = torch.randn(images.shape, generator=torch.Generator().manual_seed(4))
            alone = build.denoiser("de3-leaves", settings, {"leaves": network})(images + 0.2 * grain)
            assert torch.allclose(defense(images), alone, atol=1e-6)

    def test_defaults(self):
        assert self.settings()["keep"] == 0.05
        assert "keep" not in self.settings(keep=0.0)
        assert "keep" not in build.settings("de3", RunConfig())  # its stages keep their names

    def test_it_decides_no_weights(self):
        from dataclasses import replace

        config = RunConfig()
        assert config.nim.settings == replace(config.nim, keep=0.3).settings

    def test_a_share_out_of_range(self, capsys):
        assert main(["run", "--nim.keep", "1"]) == 2
        assert "nim.keep is 1.0: use a share in [0, 1), e.g. 0.05" in capsys.readouterr().err
