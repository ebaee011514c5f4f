"""Denoisers on tiles: any size, an offset that the noisy image alone decides, the same counts whatever the batch."""

import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy import stats

import certdef
import certify
from certdef.config.job import RunConfig
from certdef.config.purifiers import NIMConfig
from certdef.purifiers.base import Plan
from certdef.purifiers.networks import tiles
from certdef.purifiers.networks.denoisers import NIM_MAE
from certdef.purifiers.networks.nim import NIM, nim_training, pretrain_nim
from certdef.purifiers.networks.tiles import (
    TiledNIM,
    TiledShape,
    Tiling,
    random_squares,
    tile_offsets,
)
from tests.conftest import TINY

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = {"patch_size": 4, "width": 16, "depth": 1, "heads": 2, "decoder_width": 16}


def make(image_shape=(3, 40, 52), tile=16) -> TiledNIM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TiledNIM(TiledShape(image_shape, **SIZES, tile=tile)).eval()


def noisy_images(count=6, shape=(3, 40, 52), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) + 0.25 * torch.randn(count, *shape, generator=generator)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 5), (24, 24), (25, 30), (40, 9)])
def test_what_is_cut_comes_back_to_its_place(height, width):
    offsets = torch.tensor([[0, 0], [3, 9], [255, 77], [1234567, 7654321]])
    planes = torch.rand(4, 2, height, width)
    tiling = Tiling.at(offsets, height, width, window=8)
    cut = tiling.cut(planes)
    assert cut.shape[1:] == (8, 8, 2)
    assert torch.equal(tiling.join(cut), planes)


def test_edges_are_mirrored_and_offsets_shift_the_first_tile():
    planes = torch.arange(16.0).expand(1, 1, 16, 16)  # the column's number
    tiling = Tiling.at(torch.tensor([[0, 3]]), 16, 16, window=8)
    first = tiling.cut(planes)[0, 0, :, 0]
    assert first.tolist() == [3, 2, 1, 0, 1, 2, 3, 4]
    last = tiling.cut(planes)[2, 0, :, 0]
    assert last.tolist() == [13, 14, 15, 14, 13, 12, 11, 10]


def test_an_image_of_one_tile_is_seen_whole():
    model = make((3, 16, 16), 16)
    noisy = noisy_images(2, (3, 16, 16))
    assert torch.equal(model(noisy), model.nim(noisy))


def test_each_image_has_an_offset_of_its_own_and_the_batch_has_no_say():
    model, noisy = make(), noisy_images()
    offsets = tile_offsets(noisy)
    assert len({tuple(each) for each in (offsets % 16).tolist()}) > 3
    alone = torch.cat([model(one[None]) for one in noisy])
    assert torch.allclose(model(noisy), alone, atol=1e-5)
    assert torch.equal(torch.cat([tile_offsets(one[None]) for one in noisy]), offsets)


def test_two_inputs_with_the_same_noisy_image_give_the_same_output():
    """Steps of 1/256 add exactly, so that both sums are one image to the last bit."""
    model, random = make(), torch.Generator().manual_seed(3)
    clean, attacked, noise = (torch.randint(0, 257, (1, 3, 40, 52), generator=random) / 256 for _ in range(3))
    other = (clean - attacked) + noise
    assert not torch.equal(clean, attacked)
    assert torch.equal(clean + noise, attacked + other)
    assert torch.equal(model(clean + noise), model(attacked + other))


@pytest.mark.parametrize("window", [8, 32])
def test_offsets_are_uniform_under_noise(window):
    """Chi-square on 4,096 noisy images: a uniform offset fails with probability 1e-4, one that is read off clean bits must."""
    image = torch.randint(0, 256, (3, 24, 24), generator=torch.Generator().manual_seed(0)) / 255
    draws = torch.randn(4096, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    for sigma, uniform in {0.06: True, 0.25: True, 0.0: False}.items():
        offsets = tile_offsets(image + sigma * draws)
        for axis in (0, 1):
            counts = np.bincount((offsets[:, axis] % window).numpy(), minlength=window)
            assert (stats.chisquare(counts).pvalue > 1e-4) == uniform, (sigma, axis)
    both = tile_offsets(image + 0.25 * draws) % 8
    table = np.bincount((8 * both[:, 0] + both[:, 1]).numpy(), minlength=64)
    assert stats.chisquare(table).pvalue > 1e-4  # rows and columns are independent


def test_every_offset_of_a_large_image_is_as_likely():
    places = Tiling.at(torch.arange(8 * 9)[:, None].expand(-1, 2), 56, 57, 8)
    for below in (places.below, places.right):
        assert np.bincount(below[:, 0].numpy()).tolist() == [9] * 8


@pytest.mark.parametrize("network", ["tiles", "multiscale"])
def test_counts_are_the_same_whatever_the_batch(network):
    from certdef.purifiers.networks.multiscale import MultiscaleNIM, MultiscaleShape

    shape = (3, 40, 52)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = MultiscaleShape(fine=8, half=8, width=16, depth=1, heads=2, blocks=1)
        denoiser = make(shape) if network == "tiles" else MultiscaleNIM(small).eval()
        classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 40 * 52, 3))
    base = torch.nn.Sequential(denoiser, classifier).eval()
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(4))
    counted = []
    for batch_size in (7, 32, 256):
        smoothed = certify.SmoothedClassifier(base, certify.Gaussian(0.25), 3, batch_size=batch_size, seed=3)
        counted.append([each.counts for each in smoothed.certify(images, n0=32, n=128)])
    assert counted[0] == counted[1] == counted[2]
    assert min(np.count_nonzero(row) for row in counted[0]) > 1  # a vote that is not unanimous can differ


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tile": 48}, "must fit the image 40x52"),
        ({"tile": 18}, "does not divide the tile 18"),
        ({"width": 18}, "width 18"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        TiledShape((3, 40, 52), **{**SIZES, "tile": 16, **change})


def test_random_squares_come_from_anywhere():
    images = torch.arange(30.0).reshape(1, 1, 5, 6).repeat(3000, 1, 1, 1)
    squares = random_squares(images, 4, torch.Generator().manual_seed(0))
    assert squares.shape == (3000, 1, 4, 4)
    corners, counts = squares[:, 0, 0, 0].unique(return_counts=True)
    assert corners.tolist() == [0, 1, 2, 6, 7, 8]  # 2 rows, 3 columns
    assert stats.chisquare(counts).pvalue > 1e-4
    assert torch.equal(
        squares[0, 0], images[0, 0].unfold(0, 4, 1).unfold(1, 4, 1)[divmod(int(squares[0, 0, 0, 0]), 6)]
    )


def test_pretraining_on_squares_denoises_larger_images():
    """Stripes: what a tile learns serves the whole image, edges too."""
    columns = torch.arange(24.0)
    phases = torch.linspace(0, 6, 64)[:, None, None, None]
    images = (0.5 + 0.4 * torch.sin(0.8 * columns + phases)).expand(64, 1, 24, 24).contiguous()
    model, noise = make((1, 24, 24), 8), certify.Gaussian(0.25)
    squares = lambda batch, generator: random_squares(batch, 8, generator)  # noqa: E731
    pretrain_nim(model.nim, images, noise, nim_training(60, 16, 6e-2), squares=squares)
    noisy = images + noise.sample(images.shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        error = (model(noisy) - images).square()
    assert error.mean() < 0.4 * (noisy.clamp(0, 1) - images).square().mean()
    assert error[..., :4].mean() < 3 * error.mean()


def test_an_unset_tile_leaves_the_key_and_the_network_as_they_were():
    settings = NIMConfig().settings
    assert settings == {
        name: value
        for name, value in asdict(NIMConfig()).items()
        if name not in ("tile", "keep", "finetune_epochs")
    }
    assert NIMConfig(tile=32).settings == settings | {"tile": 32}
    assert type(NIM_MAE.build(Plan(RunConfig(), (1, 8, 8)))) is NIM


def test_a_whole_job_on_tiles(store, tmp_path):
    """Pre-trained under each law, saved as what it is, and found again."""
    from certdef.models import storage

    config = certdef.load_config(
        **TINY | {"nim__tile": 4, "nim__epochs": 2}, work_dir=str(tmp_path / "w"), tracking__uri=store
    )
    summary = certdef.pretrain(config, progress=False)
    names = [name for name in summary.results if name.startswith("nim")]
    assert len(names) == len(config.certify.laws)
    folder = next((tmp_path / "w").glob("nim-????????????????"))
    network = storage.load_model(folder / "model")
    assert isinstance(network, TiledNIM)
    assert network.shape.tile == 4
    assert network(torch.rand(2, 1, 8, 8)).shape == (2, 1, 8, 8)
    whole = certdef.load_config(
        **TINY | {"nim__epochs": 2}, work_dir=str(tmp_path / "w"), tracking__uri=store
    )
    assert (
        certdef.pretrain(whole, progress=False).stages["nim"].fingerprint != summary.stages["nim"].fingerprint
    )


# Not ru_maxrss: a new program inherits that from the process that started it.
MEMORY = """
import re, torch
from pathlib import Path
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
from certdef.purifiers.networks.{module} import {network}, {shape}
torch.set_num_threads(1)
model = {network}({build}).eval()
with torch.no_grad():
    model(torch.rand(1, 3, 32, 32) if {any_size} else torch.rand(1, 3, 224, 224))
    before = peak()
    model(torch.rand({batch}, 3, 224, 224))
print((peak() - before) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "batch"),
    [
        pytest.param("TiledNIM", 64, marks=pytest.mark.acceptance),
        ("TiledNIM", 256),
        ("MultiscaleNIM", 64),
        ("MultiscaleNIM", 256),
    ],
)
def test_memory_at_224_stays_below_a_gibibyte_and_a_half(network, batch):
    """Beyond the model, with the batch itself and its answer; the processor's peak of a process of its own."""
    tiled = network == "TiledNIM"
    code = MEMORY.format(
        module="tiles" if tiled else "multiscale",
        network=network,
        shape="TiledShape" if tiled else "MultiscaleShape",
        build="TiledShape((3, 224, 224), tile=32)" if tiled else "MultiscaleShape()",
        any_size=not tiled,
        batch=batch,
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < 1.5


def test_the_chunk_bounds_what_is_computed_at_once(monkeypatch):
    model, noisy = make(), noisy_images()
    whole, sizes, reconstruct = model(noisy), [], model.reconstruct
    monkeypatch.setitem(tiles.CHUNK_PIXELS, "cpu", 2 * 40 * 52)
    monkeypatch.setattr(model, "reconstruct", lambda part: (sizes.append(len(part)), reconstruct(part))[1])
    assert torch.allclose(model(noisy), whole, atol=1e-5)
    assert sizes == [2, 2, 2]
