"""The one training loop: it learns, repeats itself, resumes to the same bits, and averages, stops and fails as it says."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from surrogates import SurrogateError
from surrogates.distillation.training import Average, Training, fit

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = Training(epochs=6, batch_size=16, learning_rate=1e-2)
ROWS = torch.rand(50, 8, generator=torch.Generator().manual_seed(1))


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 8)
        )


def denoising(model, rows, *, generator):
    noisy = rows + 0.1 * torch.randn(rows.shape, generator=generator, device=rows.device)
    return (model(noisy) - rows).square().mean()


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def trained(training=SHORT, loss=denoising, data=ROWS, **options):
    model = network()
    return model, fit(model, data, loss, training, **options)


def test_it_learns_and_is_left_in_eval_mode():
    model, history = trained(Training(epochs=40, batch_size=16, learning_rate=1e-2))
    assert len(history) == 40
    assert history[-1] < 0.5 * history[0]
    assert not model.training


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    one, two, three = (trained(seed=seed)[0] for seed in (3, 3, 4))
    assert same(one, two)
    assert not same(one, three)
    assert torch.equal(before, torch.get_rng_state())


def test_every_row_is_seen_once_an_epoch_and_the_mean_loss_is_that_of_rows():
    seen = []

    def loss(model, rows, numbers, *, generator):
        seen.append(numbers)
        return numbers.float().mean() + 0 * model(rows).sum()

    _, history = trained(
        Training(epochs=2, batch_size=16, learning_rate=1e-9), loss, (ROWS, torch.arange(50))
    )
    for epoch in (seen[:4], seen[4:]):
        assert torch.equal(torch.cat(epoch).sort().values, torch.arange(50))
        assert min(len(batch) for batch in epoch) >= 12  # even parts
    assert history == pytest.approx([24.5, 24.5])


def test_the_rate_rises_linearly_and_falls_as_a_cosine():
    training = Training(epochs=1, batch_size=1, learning_rate=1.0, warmup=0.1)
    rates = [training.rate(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 90)) for step in range(90)])
    assert Training(epochs=1, batch_size=1, learning_rate=1.0, warmup=0).rate(0, 1) == 1


def test_averaged_weights_are_those_of_the_formula():
    path = []

    def watched(model, rows, *, generator):
        path.append(model[0].weight.detach().double().clone())
        return denoising(model, rows, generator=generator)

    plain, _ = trained(loss=watched)
    path = [*path[1:], plain[0].weight.double()]  # after each step
    average = network()[0].weight.double()
    for step, weight in enumerate(path):
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    model, _ = trained(Training(6, 16, 1e-2, ema=0.9))
    assert torch.allclose(model[0].weight.double(), average, atol=1e-6)
    assert not same(model, plain)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_an_interrupted_training_ends_at_the_same_weights(ema, tmp_path):
    training = Training(6, 16, 1e-2, ema=ema)

    class Stop(Exception):
        pass

    def stop_at_four(epochs):
        for epoch in epochs:
            if epoch == 4:
                raise Stop
            yield epoch

    unbroken, history = trained(training)
    with pytest.raises(Stop):
        trained(training, checkpoint=tmp_path / "c.pt", progress=stop_at_four)
    resumed = network(seed=7)
    assert fit(resumed, ROWS, denoising, training, checkpoint=tmp_path / "c.pt") == history
    assert same(resumed, unbroken)
    finished = network(seed=8)
    fit(finished, ROWS, denoising, training, checkpoint=tmp_path / "c.pt")
    assert same(finished, unbroken)
    with pytest.raises(SurrogateError, match="other settings"):
        trained(training, seed=1, checkpoint=tmp_path / "c.pt")


def test_the_last_epoch_is_saved_whatever_the_number_of_epochs(tmp_path):
    training = Training(41, 64, 1e-3)  # a checkpoint every second epoch
    _, history = trained(training, checkpoint=tmp_path / "c.pt")
    epochs = []

    def noted(remaining):
        epochs.extend(remaining)
        return remaining

    assert trained(training, checkpoint=tmp_path / "c.pt", progress=noted)[1] == history
    assert epochs == []


def test_an_average_is_read_as_older_checkpoints_keep_it():
    kept = network(seed=5)
    average = Average(network(), 0.9)
    average.load_state_dict({"step": 7, "weights": dict(kept.state_dict())})
    assert same(average.model, kept)


class Stopping:
    """Keeps the weights of epoch 2 and ends after epoch 3."""

    def __init__(self):
        self.weights, self.epochs = {}, []

    def observe(self, model, epoch):
        self.epochs.append(epoch)
        if epoch == 2:
            self.weights = {name: value.clone() for name, value in model.state_dict().items()}

    def ends_before(self, epoch):
        return epoch > 3

    def state_dict(self):
        return {"weights": self.weights}

    def load_state_dict(self, state):
        self.weights = state["weights"]


@pytest.mark.parametrize("ema", [None, 0.9])
def test_early_stopping_chooses_the_weights(ema, tmp_path):
    stopping = Stopping()
    model, history = trained(Training(6, 16, 1e-2, ema=ema), stopping=stopping, checkpoint=tmp_path / "c.pt")
    assert stopping.epochs == [0, 1, 2, 3]
    assert len(history) == 4
    assert all(torch.equal(value, stopping.weights[name]) for name, value in model.state_dict().items())
    resumed = network(seed=9)
    again = fit(
        resumed,
        ROWS,
        denoising,
        Training(6, 16, 1e-2, ema=ema),
        stopping=Stopping(),
        checkpoint=tmp_path / "c.pt",
    )
    assert again == history
    assert same(resumed, model)


def test_an_order_that_is_not_parallel_trains_in_each_process(monkeypatch):
    class Alone(Training):
        def order(self, seed, device):
            order = super().order(seed, device)
            order.parallel = False
            return order

    plain, _ = trained()
    monkeypatch.setenv("WORLD_SIZE", "2")  # without a process group accelerate would wait for the other
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert same(trained(Alone(6, 16, 1e-2))[0], plain)
    with pytest.raises(ImportError):
        trained()


def test_the_bar_shows_the_loss():
    class Bar:
        shown: list = []  # noqa: RUF012

        def __init__(self, epochs):
            self.epochs = epochs

        def __iter__(self):
            return iter(self.epochs)

        def set_postfix(self, loss):
            self.shown.append(float(loss))

    _, history = trained(progress=Bar)
    assert Bar.shown == pytest.approx(history, rel=1e-3)


def test_mixed_precision_keeps_the_weights_in_float32():
    kinds = set()

    def loss(model, rows, *, generator):
        kinds.add(model[0](rows).dtype)
        return denoising(model, rows, generator=generator)

    model, mixed = trained(Training(6, 16, 1e-2, precision="bfloat16"), loss)
    assert kinds == {torch.bfloat16}
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert mixed == pytest.approx(trained()[1], rel=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_on_a_gpu(precision):
    model, mixed = trained(Training(40, 16, 1e-2, precision=precision), device="cuda")
    _, exact = trained(Training(40, 16, 1e-2), device="cuda")
    assert mixed[-1] == pytest.approx(exact[-1], rel=0.1)
    assert next(model.parameters()).dtype == torch.float32


BAD = {
    "epochs": (0, "epochs must be a positive integer, got 0"),
    "batch_size": (1.5, "batch_size must be a positive integer, got 1.5"),
    "learning_rate": (math.inf, "learning_rate must be positive"),
    "warmup": (1.0, "warmup is a share"),
    "ema": (1.0, "ema must be a decay"),
    "precision": ("half", "precision must be one of float32, bfloat16, float16"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings(name):
    value, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        Training(**{"epochs": 1, "batch_size": 1, "learning_rate": 1e-3} | {name: value})


def test_bad_calls():
    with pytest.raises(ValueError, match=r"data has lengths \[50, 49\]"):
        trained(data=(ROWS, ROWS[1:]))
    with pytest.raises(ValueError, match="float16 needs a CUDA device, got cpu"):
        trained(Training(1, 16, 1e-2, precision="float16"))
    with pytest.raises(ValueError, match="lower learning_rate, now 1e"):
        trained(Training(6, 16, 1e25))


SCRIPT = """
import sys, torch
from torch import nn
from surrogates.distillation.training import Training, fit

torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 1))  # the last one unused
rows = torch.rand(51, 8, generator=torch.Generator().manual_seed(1))
shares = []

def loss(model, rows, *, generator):
    shares.append(len(rows))
    return (model[:3](rows) - rows).square().mean()

history = fit(model, rows, loss, Training(6, 17, 1e-2, ema=0.9), checkpoint=sys.argv[1])
rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
if rank == 0:
    torch.save({"weights": model.state_dict(), "history": history, "shares": shares}, sys.argv[2])
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_end_at_the_weights_of_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    clean = {
        key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    found = []
    for count in (1, 2):
        launch = (
            ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if count == 2 else []
        )
        out = tmp_path / f"{count}.pt"
        done = subprocess.run(
            [sys.executable, *launch, str(script), str(tmp_path / f"checkpoint{count}.pt"), str(out)],
            capture_output=True,
            text=True,
            timeout=300,
            env=clean | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        found.append(torch.load(out, weights_only=True))
    one, two = found
    assert set(one["shares"]) == {17}
    assert set(two["shares"]) == {9}  # process 0's share of 17 rows: uneven, and still the same weights
    assert two["history"] == pytest.approx(one["history"], rel=1e-5)
    for name, value in one["weights"].items():
        assert torch.allclose(value, two["weights"][name], atol=1e-5), name
