"""The vote engine: the same counts however the work is cut, and refusals that name the fault."""

import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from certify import (
    CertifyError,
    Gaussian,
    SmoothedClassifier,
    Uniform,
    certify_splitting,
    certify_stratified,
    nim_noise,
)
from certify.voting.checks import check_images
from certify.voting.chunks import ESTIMATION, SELECTION, chunks
from certify.voting.engine import VoteEngine

K = 4


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 6 * 6, K))


@pytest.fixture
def images():
    return torch.rand((5, 3, 6, 6), generator=torch.Generator().manual_seed(1))


def votes(classify, images, n=700, *, noise=None, stage=ESTIMATION, indices=None, seed=7, **options):
    indices = range(len(images)) if indices is None else indices
    how = {"stage": stage, "first": options.pop("first", 0), "progress": options.pop("progress", None)}
    engine = VoteEngine(seed=seed, **options)
    return engine.count(classify, images, noise or nim_noise(), K, n, indices=indices, **how)


class Recorder:
    """A label-only classifier that remembers the batches it was given."""

    def __init__(self):
        self.batches = []

    def __call__(self, x):
        self.batches.append(x.clone())
        return (x.mean(dim=(1, 2, 3)) * 100).long() % K


def test_counts_do_not_depend_on_the_batch(model, images):
    expected = votes(model, images)
    assert expected.dtype == np.int64
    assert expected.shape == (5, K)
    assert np.all(expected.sum(axis=1) == 700)
    for batch_size in (1, 100, 256, 300, 1000, 5000):
        small = images[:2] if batch_size == 1 else images
        assert np.array_equal(votes(model, small, batch_size=batch_size), expected[: len(small)])


def test_counts_do_not_depend_on_the_other_images_or_a_resume(model, images):
    expected = votes(model, images, indices=[3, 1, 4, 15, 9])
    order = [4, 0, 2]
    assert np.array_equal(votes(model, images[order], indices=[9, 3, 4]), expected[order])


def test_a_count_can_be_continued(model, images):
    expected = votes(model, images, chunk_size=64)
    parts = votes(model, images, 192, chunk_size=64) + votes(model, images, 508, chunk_size=64, first=192)
    assert np.array_equal(parts, expected)
    with pytest.raises(CertifyError, match="first must be a multiple of chunk_size=64, got 100"):
        votes(model, images, 100, chunk_size=64, first=100)


def test_seed_stage_and_index_change_the_draws(images):
    draws = []
    for options in ({}, {"seed": 8}, {"stage": SELECTION}, {"indices": [99]}):
        recorder = Recorder()
        votes(recorder, images[:1], 64, **options)
        draws.append(recorder.batches[0])
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


def test_chunks_of_an_image_never_share_a_seed():
    seeds = [
        [part.seed for stage in range(3) for part in chunks([i], 0, 500, stage=stage, seed=0, chunk_size=1)]
        for i in range(200)
    ]
    assert all(len(set(own)) == 1500 for own in seeds)
    assert all(0 <= seed < 2**32 for own in seeds for seed in own)


def test_the_images_get_the_noise_of_the_law(images):
    recorder = Recorder()
    votes(recorder, images[:1], 4096, noise=Uniform(0.25), batch_size=4096)
    noise = torch.cat(recorder.batches) - images[:1]
    assert recorder.batches[0].dtype == torch.float32
    assert noise.abs().max() <= 0.25 + 1e-6
    assert noise.mean().abs() < 5e-3
    assert noise.std().item() == pytest.approx(0.25 / 3**0.5, rel=0.01)
    assert len(torch.unique(noise[:, 0, 0, 0])) > 4000  # a fresh draw each


def test_batches_are_full_and_never_larger(images):
    recorder = Recorder()
    votes(recorder, images, 100, batch_size=250, chunk_size=50)
    assert [len(batch) for batch in recorder.batches] == [250, 250]
    recorder = Recorder()
    votes(recorder, images, 100, batch_size=30, chunk_size=100)
    assert max(len(batch) for batch in recorder.batches) == 30


def test_a_call_is_one_chunk_of_one_image_when_batch_and_chunk_agree(images):
    recorder = Recorder()
    votes(recorder, images[:2], 70, batch_size=32, chunk_size=32, noise=Gaussian(1e-6))
    assert [len(batch) for batch in recorder.batches] == [32, 32, 6, 32, 32, 6]
    for number, batch in enumerate(recorder.batches):
        assert torch.allclose(batch, images[number // 3].expand_as(batch), atol=1e-4)


def test_scores_labels_and_arrays_agree(model, images):
    expected = votes(model, images)
    assert np.array_equal(votes(lambda x: model(x).argmax(1), images), expected)
    assert np.array_equal(votes(lambda x: model(x).argmax(1).numpy().astype(np.int32), images), expected)
    assert np.array_equal(votes(lambda x: model(x).detach().numpy(), images.numpy()), expected)


def test_modules_vote_in_eval_mode_and_are_put_back(images):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(108))
    model.append(torch.nn.Linear(108, K))
    model.train()
    model[2].eval()
    running = model[2].running_mean.clone()
    first = votes(model, images, 50)
    assert np.array_equal(first, votes(model, images, 50))
    assert [part.training for part in model] == [True, True, False, True]
    assert torch.equal(model[2].running_mean, running)

    def broken(module, args):
        raise RuntimeError("out of memory")

    model.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        votes(model, images, 50)
    assert model.training


def test_one_infinite_score_names_a_class(images):
    scores = torch.tensor([-torch.inf, 0.0, torch.inf, 1.0])
    assert votes(lambda x: scores.repeat(len(x), 1), images[:1], 64).tolist() == [[0, 0, 64, 0]]


class Output(dict):
    """What libraries return: a dictionary whose entries are attributes too."""

    @property
    def logits(self):
        return self["logits"]


def test_outputs_with_logits_and_lists_are_read(model, images):
    expected = votes(model, images, 300)
    forms = (
        lambda z: {"logits": z, "hidden": None},
        lambda z: Output(logits=z),
        lambda z: SimpleNamespace(logits=z, aux_logits=None),
        lambda z: z.tolist(),
        lambda z: z.argmax(1).tolist(),
    )
    for form in forms:
        assert np.array_equal(votes(lambda x, form=form: form(model(x).detach()), images, 300), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_module_gets_its_input_in_its_own_dtype(dtype, model, images):
    """The noise is drawn and added in float32; the cast is the classifier's first step."""
    model.to(dtype)
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    counts = votes(model, images, 300)
    assert {batch.dtype for batch in seen} == {dtype}
    assert np.array_equal(votes(lambda x: model(x.to(dtype)), images, 300), counts)


def test_read_only_and_rounded_images():
    """Memory that torch may not write to is copied without a warning; a refusal shows a rounding error."""
    pixels = np.random.default_rng(0).random((2, 3, 6, 6), np.float32)
    expected = check_images(pixels)
    pixels.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(check_images(pixels), expected)
    above = np.full((1, 1, 2, 2), np.nextafter(np.float32(1), np.float32(2)))
    with pytest.raises(CertifyError, match=r"from 1\.00000011\d* to 1\.00000011"):
        check_images(above)


# --- what a function holds, and whether it labels each image by itself -----------------------------------------


def trained_on_batches():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
    return model.extend([torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(64, K)]).train()


class Holder:
    """A callable object that keeps its model in an attribute."""

    def __init__(self, model):
        self.parts = {"models": [model]}

    def __call__(self, x):
        return self.parts["models"][0](2 * x - 1)

    def scores(self, x):
        return self(x)


GLOBAL = trained_on_batches()


def by_global(x):
    return GLOBAL(2 * x - 1)


def through(model, x):
    return model(2 * x - 1)


def by_default(x, model=GLOBAL):
    return model(2 * x - 1)


def by_closure(model):
    def classify(x):
        return next(model(part) for part in (2 * x - 1,))

    return lambda x: classify(x)


WAYS = {
    "closure": by_closure(GLOBAL),
    "global": by_global,
    "partial": partial(through, GLOBAL),
    "default": by_default,
    "object": Holder(GLOBAL),
    "method": Holder(GLOBAL).scores,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_module_that_a_function_holds_votes_in_eval_mode_and_is_put_back(way, images):
    classify, running = WAYS[way], GLOBAL[1].running_mean.clone()
    GLOBAL[2].eval()
    first = votes(classify, images, 300, batch_size=64)
    assert np.array_equal(votes(classify, images, 300, batch_size=512), first)
    assert torch.equal(GLOBAL[1].running_mean, running)
    assert [part.training for part in GLOBAL] == [True, True, False, True, True, True]


class Hidden:
    """A model where the search does not find it."""

    __slots__ = ("model",)

    def __init__(self, model):
        self.model = model

    def __call__(self, x):
        return self.model(x)


def centered(x):
    """A function of the whole batch without any module."""
    return (x - x.mean(0)).flatten(1)[:, :K]


@pytest.mark.parametrize("base", [Hidden(trained_on_batches()[:4].append(torch.nn.Linear(64, K))), centered])
def test_a_classifier_whose_answers_follow_the_batch_is_refused(base, images):
    """Unchecked, its counts depend on the batch size; checked, it is refused before the first vote."""
    counts = [
        [
            c.counts
            for c in SmoothedClassifier(base, Gaussian(0.25), K, recheck=0, batch_size=size).certify(
                images, n=256
            )
        ]
        for size in (64, 1024)
    ]
    assert counts[0] != counts[1]
    for call in (
        lambda: SmoothedClassifier(base, Gaussian(0.25), K).certify(images, n=256),
        lambda: SmoothedClassifier(base, Gaussian(0.25), K).predict(images, n=256),
        lambda: certify_stratified(SmoothedClassifier(base, nim_noise(), K), images, n=256),
        lambda: certify_splitting(base, (images * 255).round() / 255, 0.2, K),
    ):
        with pytest.raises(
            CertifyError, match="differently beside other images: put its modules in eval mode"
        ):
            call()


@pytest.mark.parametrize("kind", ["module", "half precision", "random"])
def test_the_check_takes_48_answers_once_and_lets_honest_classifiers_pass(kind, model, images):
    draws = torch.Generator().manual_seed(0)
    answer = {
        "module": model,
        "half precision": lambda x: model(x.bfloat16().float()),
        "random": lambda x: torch.rand(len(x), K, generator=draws),
    }[kind]
    seen = []

    def base(x):
        seen.append(len(x))
        return answer(x)

    smoothed = SmoothedClassifier(base, Gaussian(0.25), K)
    for _ in range(2):
        smoothed.certify(images[:1], n0=100, n=256)
    extra = sum(seen) - 2 * 356
    assert extra == (64 if kind == "random" else 48)  # what draws for itself is asked once more
    seen.clear()
    SmoothedClassifier(base, Gaussian(0.25), K, batch_size=2).certify(images[:1], n0=10, n=64)
    assert sum(seen) == 74  # in batches of two there is nothing to compare


def test_one_batch_is_counted_as_it_is(images):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.9), torch.nn.Linear(108, K)).train()
    counts = VoteEngine().count_batch(model, images, K)
    assert model.training
    assert counts.tolist() == torch.bincount(model.eval()(images).argmax(1), minlength=K).tolist()
    with pytest.raises(CertifyError, match="got 9"):
        VoteEngine().count_batch(lambda x: np.full(len(x), 9), images, K)


def test_the_global_generator_is_left_alone(model, images):
    before = torch.get_rng_state()
    votes(model, images, 50)
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_counts_draws(model, images):
    class Bar:
        done = 0

        def update(self, amount):
            self.done += amount

    bar = Bar()
    votes(model, images, 700, progress=bar)
    assert bar.done == 5 * 700


@pytest.mark.parametrize(
    ("output", "word"),
    [
        (lambda x: torch.full((len(x),), K), f"got {K}"),
        (lambda x: np.full(len(x), -3), "got -3"),
        (lambda x: torch.full((len(x), K), float("nan")), "NaN"),
        (lambda x: torch.full((len(x), K), -torch.inf), "-inf for all"),
        (lambda x: torch.tensor([torch.inf, 0, torch.inf, 1]).repeat(len(x), 1), "infinite ones for several"),
        (lambda x: (torch.zeros(len(x), K), torch.zeros(len(x), K)), "a tuple with 0 ("),
        (lambda x: {"a": torch.zeros(len(x), K), "b": torch.zeros(len(x), K)}, "a dict with a ("),
        (lambda x: torch.zeros(len(x), K + 1), "num_classes"),
        (lambda x: torch.zeros(len(x)), "integers"),
        (lambda x: torch.zeros(len(x), dtype=torch.bool), "integers"),
        (lambda x: torch.zeros(1, dtype=torch.int64), "shape"),
    ],
)
def test_bad_answers_are_refused_at_the_first_batch(output, word, images):
    calls = []

    def classify(x):
        calls.append(len(x))
        return output(x)

    with pytest.raises(CertifyError) as caught:
        votes(classify, images, batch_size=100, chunk_size=50)
    assert word in str(caught.value)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"images": torch.rand(3, 6, 6)}, "shape (3, 6, 6)"),
        ({"images": torch.rand(0, 3, 6, 6)}, "non-empty"),
        ({"images": torch.zeros(2, 3, 6, 6, dtype=torch.uint8)}, "255"),
        ({"images": torch.full((1, 3, 6, 6), 1.5)}, "1.5"),
        ({"images": torch.full((1, 3, 6, 6), float("nan"))}, "nan"),
        ({"indices": [1]}, "indices"),
        ({"indices": [1, 1, 2, 3, 4]}, "distinct"),
        ({"n": 0}, "n must"),
        ({"batch_size": 0}, "batch_size"),
        ({"chunk_size": 2.5}, "chunk_size"),
        ({"device": "meta"}, "device"),
    ],
)
def test_bad_arguments_are_refused_before_any_vote(change, word, model, images):
    calls = []
    model.register_forward_pre_hook(lambda module, args: calls.append(1))
    with pytest.raises(CertifyError) as caught:
        votes(model, change.pop("images", images), **change)
    assert word in str(caught.value)
    assert not calls


def test_prefetched_batches_give_the_same_votes(images):
    recorder, ahead = Recorder(), Recorder()
    expected = votes(recorder, images, batch_size=300)
    assert np.array_equal(votes(ahead, images, batch_size=300, prefetch=True), expected)
    assert len(ahead.batches) == len(recorder.batches)
    with pytest.raises(CertifyError, match="got 9"):
        votes(lambda x: np.full(len(x), 9), images, prefetch=True)


def test_channels_last_and_autocast_reach_the_model_and_leave_the_noise_in_float32(images):
    torch.manual_seed(0)
    seen = []

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Conv2d(3, K, 3), torch.nn.AdaptiveAvgPool2d(1))

        def forward(self, x):
            seen.append((x.is_contiguous(memory_format=torch.channels_last), x.dtype, self.body[0](x).dtype))
            return self.body(x).flatten(1)

    model = Model()
    plain = votes(model, images, 2000)
    fast = votes(model, images, 2000, channels_last=True, autocast=torch.bfloat16)
    assert seen[0] == (False, torch.float32, torch.float32)
    assert seen[-1] == (True, torch.float32, torch.bfloat16)
    assert np.abs(plain - fast).max() < 100
    assert np.all(fast.sum(axis=1) == 2000)


MEMORY = r"""
import re, sys, torch
from certify import Gaussian
from certify.voting.engine import VoteEngine
torch.set_num_threads(2)
model = torch.nn.Sequential(torch.nn.AvgPool2d(32), torch.nn.Flatten(), torch.nn.Linear(3 * 49, 5))
image = torch.rand(1, 3, 224, 224)
n, kept, hoard = int(sys.argv[1]), int(sys.argv[2]), []
def classify(batch):
    hoard.append(torch.ones(len(batch) * kept, dtype=torch.uint8))
    return model(batch)
count = lambda n: VoteEngine().count(classify, image, Gaussian(0.25), 5, n, indices=[0], stage=1)
# Not ru_maxrss: a new program inherits that from the process that started it.
peak = lambda: int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
count(1)
before = peak()
count(n // 4)
few = peak()
assert count(n).sum() == n
print((few - before) / 2**20, (peak() - few) / 2**20)
"""


def gibibytes(n: int, kept: int = 0) -> tuple[float, float]:
    """What a quarter of n votes take beyond the model, and what n take beyond that; the classifier keeps bytes a vote."""
    command = [sys.executable, "-c", MEMORY, str(n), str(kept)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    few, more = map(float, done.stdout.split())
    return few, more


def of_100_000(few: float, more: float, n: int) -> float:
    """The peak of 100,000 votes, if each takes what those of n did that came after the first quarter."""
    return few + 100_000 * more / (n - n // 4)


@pytest.mark.acceptance
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_large_images_take_less_than_a_gibibyte_beyond_the_model_however_many_the_votes():
    few, more = gibibytes(2048)
    assert few > 0.1  # something was measured
    assert of_100_000(few, more, 2048) < 1.0
    assert (
        of_100_000(*gibibytes(1024, kept=10_000), 1024) > 1.0
    )  # the planted fault: 2% of a noisy image is kept


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_hundred_thousand_votes_of_a_large_image_take_less_than_a_gibibyte():
    assert 0.1 < sum(gibibytes(100_000)) < 1.0


def test_on_the_grid_image_plus_noise_is_exact():
    """Moving the image by whole gray levels moves what the model sees by exactly as much, which plain float32
    addition does not do.
    """
    levels = torch.arange(0, 192).reshape(1, 3, 8, 8)
    moved = levels + 61

    def seen(image, **options):
        recorder = Recorder()
        votes(recorder, (image / 255).float(), 500, noise=Gaussian(0.5), indices=[0], **options)
        return torch.cat(recorder.batches).double()

    fine = 255 * 1024
    at_rest, shifted = ((seen(image, grid=255) * fine).round() for image in (levels, moved))
    assert torch.equal(shifted - at_rest, torch.full_like(at_rest, 61 * 1024))
    plain = seen(moved) - seen(levels)
    assert len(torch.unique(plain)) > 2  # the planted fault: ordinary addition rounds
    assert (at_rest / fine - seen(levels)).abs().max() < 0.6 / fine + 1e-6
    with pytest.raises(CertifyError, match="multiples of 1/255"):
        votes(Recorder(), torch.full((1, 3, 6, 6), 0.123), 10, grid=255)
