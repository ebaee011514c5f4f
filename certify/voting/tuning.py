"""Which arithmetic is fastest for a torch module: measured for a second or two before the first vote, and then fixed.

bfloat16, another memory format and compiled kernels round differently, so they make a slightly different base classifier.
A certificate holds for one base classifier: the choice is made once, on noisy images that no vote uses, and is recorded
(``VoteEngine.arithmetic``); who resumes takes the recorded one, whatever the clock would say then. A candidate whose
answers follow the batch is left out, so that counts still do not depend on it; so is one that answers something else.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from certify.errors import CertifyError, check_positive
from certify.noise.base import NoiseLaw
from certify.voting.base_classifier import eval_mode, input_dtype
from certify.voting.checks import check_images, resolve_device
from certify.voting.chunks import hash32
from certify.voting.engine import GROUP, VoteEngine, filled_up
from certify.voting.tally import as_tensor

PLAIN = "plain"
CANDIDATES: dict[str, dict[str, Any]] = {
    "channels_last": {"channels_last": True},
    "bfloat16": {"autocast": "bfloat16"},
    "bfloat16 channels_last": {"autocast": "bfloat16", "channels_last": True},
}
ROUNDS = 2  # timings of each candidate, in turn; the fastest counts, as other work only slows one down
CALLS = 4 + (len(CANDIDATES) + 1) * (2 + ROUNDS)  # of the module, at most, on ``rows`` images each
FEWEST = 4  # noisy images a call
WORTH = 1.1  # times as fast as the plain engine; less is not worth other rounding
CLOSE = 0.05  # mean difference from the plain answers, as a share of their spread
ROUNDING = 1e-4  # what float32 may make of another batch, as a share of the spread


@dataclass(frozen=True)
class Tuned:
    """The fastest arithmetic, and what was tried.

    Attributes:
        engine: The engine with it.
        rates: Images a second of each candidate that may be used.
        left_out: Why each other candidate may not.
    """

    engine: VoteEngine
    rates: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


class Computed(nn.Module):
    """A module that computes as an engine says: float32 images (B, C, H, W) in, the module's answers in float32 out.

    For a part of a base classifier, e.g. a denoiser before a target that keeps its own arithmetic.
    """

    def __init__(self, module: nn.Module, engine: VoteEngine) -> None:
        super().__init__()
        self.module, self.engine = torch.compile(module) if engine.compile else module, engine

    def forward(self, images: Tensor) -> Tensor:
        batch = images if self.engine.autocast is None else filled_up(images)
        with self.engine.precision(batch.device):
            answers = self.module(batch.contiguous(memory_format=self.engine.layout))
        return answers[: len(images)].float()


def fastest_engine(
    base: nn.Module,
    images: Any,
    noise: NoiseLaw,
    *,
    engine: VoteEngine | None = None,
    seconds: float = 2.0,
    compile: bool = False,
) -> Tuned:
    """Measure which of float32, bfloat16 autocast, either memory format, a quarter of the batch and torch.compile is fastest.

    Args:
        base: (B, C, H, W) float32 noisy images -> scores, labels or images. Not changed.
        images: (N, C, H, W) in [0, 1]; a few are enough.
        noise: Added to them.
        engine: What the choice starts from; its seed draws the noise, its device is used.
        seconds: About how long to measure; a slow module gets four images a call at least.
        compile: Try torch.compile on the fastest too, which takes a minute or more of its own.

    Raises:
        CertifyError: The base is no torch module, or bad arguments.
    """
    if not isinstance(base, nn.Module):
        raise CertifyError(
            f"an engine is chosen for a torch module, got {type(base).__name__}: pass VoteEngine()"
        )
    check_positive("seconds", seconds)
    images, engine = check_images(images), engine or VoteEngine()
    engine = replace(engine, device=resolve_device(base, engine.device))
    device = torch.device(engine.device or "cpu")
    generator = torch.Generator(device).manual_seed(hash32(f"{engine.seed}:engine"))

    def draw(rows: int) -> Tensor:
        chosen = images[torch.arange(rows) % len(images)].to(device)
        return noise.perturb(chosen, generator)

    with torch.no_grad(), eval_mode(base):
        return _Measurement(base, engine, draw, seconds).choose(compile)


class _Measurement:
    """The candidates on the same noisy images."""

    def __init__(
        self, base: nn.Module, engine: VoteEngine, draw: Callable[[int], Tensor], seconds: float
    ) -> None:
        self.engine, self.dtype = engine, input_dtype(base)
        self.modules: dict[bool, Any] = {False: base}  # by whether it is compiled
        few = draw(FEWEST)
        self._answer(engine, few)  # the first call sets up what later ones use
        most = seconds / CALLS / max(self._seconds(engine, few) / FEWEST, 1e-9)
        self.noisy = draw(max(FEWEST, min(engine.batch_size, int(most))))
        self.plain = self._answer(engine, self.noisy)
        self.usable: dict[str, VoteEngine] = {PLAIN: engine}
        self.left_out: dict[str, str] = {}

    def choose(self, compile: bool) -> Tuned:
        for name, fields in CANDIDATES.items():
            self._admit(name, replace(self.engine, **fields))
        rates = self._rates(self.usable)
        best = self._best(rates)
        if compile:
            self.modules[True] = torch.compile(self.modules[False])
            name = "compile" if best == PLAIN else f"{best} compile"
            if self._admit(name, replace(self.usable[best], compile=True)):
                rates |= self._rates({name: self.usable[name]})
                best = self._best(rates)
        chosen = self.usable[best]
        quarter = replace(chosen, batch_size=max(1, chosen.batch_size // 4))
        if len(self.noisy) == chosen.batch_size >= 4 * FEWEST:
            sizes = self._rates({"whole": chosen, "quarter": quarter})
            rates[f"{best}, batch {quarter.batch_size}"] = sizes["quarter"]
            if sizes["quarter"] > WORTH * sizes["whole"]:
                chosen = quarter
        return Tuned(chosen, rates, self.left_out)

    def _best(self, rates: dict[str, float]) -> str:
        fastest = max(rates, key=lambda name: rates[name])
        return fastest if rates[fastest] > WORTH * rates[PLAIN] else PLAIN

    def _admit(self, name: str, engine: VoteEngine) -> bool:
        """Note a candidate as usable, or why it is not."""
        try:
            together = self._answer(engine, self.noisy)
            half = len(self.noisy) // 2
            parts = self.noisy.split(-(-half // GROUP) * GROUP if half >= GROUP else half + 1)
            apart = torch.cat([self._answer(engine, part) for part in parts])
        except Exception as error:  # a module is foreign code, a compiler too
            self.left_out[name] = (
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
            return False
        spread = float(self.plain.std()) or 1.0
        reason = ""
        if not together.isfinite().all() or float((together - self.plain).abs().mean()) > CLOSE * spread:
            reason = "it answers something else"
        elif float((together - apart).abs().max()) > ROUNDING * spread:
            reason = "its answers follow the batch"
        if reason:
            self.left_out[name] = reason
        else:
            self.usable[name] = engine
        return not reason

    def _rates(self, engines: dict[str, VoteEngine]) -> dict[str, float]:
        """Images a second of each, in turn, so that other work on the machine meets all of them."""
        best = dict.fromkeys(engines, float("inf"))
        for _ in range(ROUNDS):
            for name, engine in engines.items():
                best[name] = min(best[name], self._seconds(engine, self.noisy))
        return {name: len(self.noisy) / max(taken, 1e-9) for name, taken in best.items()}

    def _seconds(self, engine: VoteEngine, noisy: Tensor) -> float:
        start = time.perf_counter()
        for part in noisy.split(engine.batch_size):
            self._answer(engine, part)
        if noisy.is_cuda:
            torch.cuda.synchronize(noisy.device)
        return time.perf_counter() - start

    def _answer(self, engine: VoteEngine, noisy: Tensor) -> Tensor:
        """Scores, labels or images, as float32."""
        module = self.modules[engine.compile]
        with engine.precision(noisy.device):
            answers = module(noisy.to(self.dtype, memory_format=engine.layout, copy=True))
        return as_tensor(answers, len(noisy)).float()
