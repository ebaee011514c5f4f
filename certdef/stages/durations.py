"""How long a job will take, from a few images through the networks that it will train and use; nothing is kept of it."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from certdef.attacks import gradient
from certdef.config.job import RunConfig
from certdef.config.objects import is_given
from certdef.config.own_target import NONE
from certdef.data.sets import Splits
from certdef.models.classifiers import build_classifier, surrogate_model, train_classifier
from certdef.purifiers.base import NetworkSpec, Parts, Plan, TrainingRun
from certdef.purifiers.registry import find_purifier
from certdef.stages.conditions import Condition, conditions, subjects, unchosen
from certdef.stages.networks import untrained_copy
from certdef.stages.purifier import finetuned_networks, laws_of, untrained_networks
from certdef.stages.students import trains_students
from certify.voting import Computed, fastest_engine
from surrogates.distillation.student import CONSISTENT_VIEWS
from surrogates.distillation.views import number_of_views

ENOUGH = 0.1  # seconds that a measurement takes beyond what happens once
LONG = 2.0  # seconds in which that can be neglected
EPSILON = 1e-6  # seconds
REPEATS = 3
FACTOR = 4  # by which it grows until it does


class Durations:
    """Seconds of the parts of a job, measured on its own images and untrained networks of its own sizes.

    Args:
        config: The job.
        data: Its images.
        classes: Number of classes of the target.
        device: Where networks run.
        query: Seconds that the target takes for a query; None where that is not known.
    """

    def __init__(
        self, config: RunConfig, data: Splits, classes: int, device: torch.device, query: float | None
    ) -> None:
        self.config, self.data, self.device, self.query = config, data, device, query
        self.pool = torch.from_numpy(data.pool)
        self.surrogate: nn.Module | None = None
        if config.surrogate.model != NONE:
            self.surrogate = build_classifier(surrogate_model(config), data.image_shape, classes).eval()
        self.spec = find_purifier(config.purifier)
        self.networks = untrained_networks(
            config, data.image_shape, self.surrogate, self.spec.networks(config)
        )
        given = {"classifier": self.surrogate} if self.spec.sees_classifier and self.surrogate else {}
        generator = torch.Generator(device).manual_seed(config.seed)
        self.parts = Parts(self.spec.settings(config), self.networks | given, generator)
        self.every = [*self.networks.values(), *([self.surrogate] if self.surrogate else [])]
        for network in self.every:
            network.to(device)

    def memory(self) -> dict[str, int]:
        """Bytes that the largest batch of a part takes, beyond the networks, by the option that sets it."""
        image = torch.from_numpy(self.data.heldout_images[:1]).to(self.device)
        passes = [activations(network, image) for network in self.every]
        noisy = (
            max((largest for largest, _ in passes), default=0) + 3 * image.nbytes
        )  # images, noise, and their sum
        found = {"certify.batch_size": self.config.certify.batch_size * noisy}
        if any(spec.laws == "each" for spec in self.spec.networks(self.config)):
            # forward, and as much again for the gradients
            found["nim.batch_size"] = (
                self.config.nim.batch_size * 2 * max(total for _, total in passes[: len(self.networks)])
            )
        return found

    def of(self, queries: dict[str, int]) -> dict[str, float]:
        """Seconds by part of the job.

        Args:
            queries: Those that it takes, by purpose.
        """
        seconds = {f"train {self.spec.title}": self._networks(), "train the surrogate": self._distillation()}
        if "certification" in queries:
            free, paid = self._votes(queries["certification"])
            seconds |= {"the surrogate's votes": free, "denoise the target's votes": paid}
        if "attack" in queries:
            seconds["attack"] = self._attack()
            seconds["fine-tune the surrogate"] = self._finetuning()
        if self.query is not None:
            seconds["the target's answers"] = self.query * sum(queries.values())
        return {part: value for part, value in seconds.items() if value}

    def _networks(self) -> float:
        """Training of the purifier's networks, each under its laws."""
        seconds = sum(
            self._network(network, len(laws_of(network, self.config)))
            for network in self.spec.networks(self.config)
        )
        places = len(subjects(self.config))  # each may choose a noise of its own
        return seconds + places * sum(
            self._network(network, 1) for network in finetuned_networks(self.config, self.spec)
        )

    def _network(self, spec: NetworkSpec, times: int) -> float:
        if not spec.settings(self.config) or spec.reused(self.config):  # its weights are there
            return 0.0
        short, laws = one_epoch(self.config), laws_of(spec, self.config)

        def train(count: int) -> None:
            config = replace(short, blind_spot=replace(short.blind_spot, crops=count))
            copy = untrained_copy(self.surrogate) if self.surrogate else None
            plan = Plan(
                config, self.data.image_shape, laws[0], self.surrogate, copy, dict(self.parts.networks)
            )
            with tempfile.TemporaryDirectory() as folder:
                checkpoint = Path(folder) / "checkpoint.pt"
                pool = self.pool[:count]
                run = TrainingRun(plan, pool, self.device, checkpoint, silent, train_classifier)
                spec.train(spec.build(plan).to(self.device), run)

        items = len(self.pool) if spec.uses_pool(self.config) else self.config.blind_spot.crops
        epochs = _epochs(spec.settings(self.config)) / max(1, _epochs(spec.settings(short)))
        return times * epochs * items * seconds_each(train, items)

    def _distillation(self) -> float:
        """Training of the surrogate, of its committee, and between rounds."""
        config, surrogate = self.config.surrogate, self.surrogate
        if surrogate is None or is_given(config):
            return 0.0
        images = min(self.config.ledger.training, len(self.pool))

        passes = float(config.epochs * (1 + config.committee)) * (1 + self._students_passes())
        if config.strategy != "random":  # between rounds it trains on what it has by then
            passes += (config.round_epochs or config.epochs) * config.rounds / 2
        return passes * images * self._example(surrogate, images) + self._students_views(images)

    def _example(self, surrogate: Any, most: int) -> float:
        """One of so many images in the training of a surrogate."""

        def train(count: int) -> None:
            labels = np.zeros(count, np.int64)
            network = untrained_copy(surrogate)()
            train_classifier(network, self.data.pool[:count], labels, epochs=1, seed=0, device=self.device)

        return seconds_each(train, most)

    def _students(self) -> list[Condition]:
        """The conditions whose surrogate is trained as it is certified."""
        config = self.config
        if not trains_students(config.surrogate):
            return []
        laws = {law.label for law in config.certify.laws}
        every = conditions(unchosen(config))
        return [each for each in every if each.subject == "surrogate" and each.law in laws]

    def _students_passes(self) -> int:
        """Passes of all of these, for each of the surrogate's."""
        return len(self._students()) * (CONSISTENT_VIEWS if self.config.surrogate.consistency else 1)

    def _students_views(self, images: int) -> float:
        """Seconds that their denoised views take."""
        views = CONSISTENT_VIEWS if self.config.surrogate.consistency else 1
        values = images * math.prod(self.data.image_shape)
        every = number_of_views(values, views, self.config.surrogate.epochs)
        return sum(every * images * self._vote(each) for each in self._students() if each.denoised)

    def _votes(self, paid: int) -> tuple[float, float]:
        """The surrogate's votes, and the work on this computer for the target's."""
        config, free, denoising = self.config.certify, 0.0, 0.0
        every = conditions(self.config)
        draws = min(config.images, len(self.data.heldout_images)) * (config.selection + config.n)
        measured: dict[tuple[str, bool], float] = {}
        for condition in every:
            key = (condition.subject, condition.denoised)
            if key not in measured:
                measured[key] = self._vote(condition)
            if condition.paid:
                denoising += measured[key] * paid / sum(each.paid for each in every)
            else:
                free += measured[key] * draws
        return free, denoising

    def _vote(self, condition: Condition) -> float:
        """One vote: noise, denoiser, and the surrogate where that votes."""
        part = self.spec.denoiser
        steps: list[nn.Module] = []
        if condition.denoised and part is not None:
            steps.append(part.build(self.parts))
        if condition.subject == "surrogate" and self.surrogate:
            steps.append(self.surrogate)
        network: nn.Module = nn.Sequential(*steps).to(self.device).eval()
        image = torch.from_numpy(self.data.heldout_images[:1]).to(self.device)
        if steps and self.config.certify.engine == "auto":
            network = Computed(network, fastest_engine(network, image, condition.noise).engine)

        def vote(count: int) -> None:
            noise = condition.noise.sample((count, *image.shape[1:]), device=self.device)
            with torch.inference_mode():
                network(image + noise).sum().item()

        return seconds_each(vote, self.config.certify.batch_size)

    def _attack(self) -> float:
        """PGD on the surrogate at each eps, and every image through the purifier."""
        config, surrogate = self.config.attack, self.surrogate
        if surrogate is None:
            return 0.0
        images = torch.from_numpy(self.data.heldout_images[: config.images])
        defense = self.spec.build(self.parts).to(self.device).eval()

        def step(count: int) -> None:
            labels = torch.zeros(count, dtype=torch.int64)
            gradient.pgd(surrogate, images[:count], labels, eps=0.01, steps=1, seed=0)

        def purify(count: int) -> None:
            with torch.inference_mode():
                defense(images[:count].to(self.device, copy=True)).sum().item()

        levels = len(config.eps)
        steps = levels * config.steps * seconds_each(step, len(images))
        return len(images) * (steps + (levels + 1) * seconds_each(purify, min(100, len(images))))

    def _finetuning(self) -> float:
        """Purified views of the answered images, and the passes over them."""
        config, surrogate = self.config.surrogate, self.surrogate
        if surrogate is None or not config.finetune_epochs or self.spec.name == NONE:
            return 0.0
        answered = min(self.config.ledger.training, len(self.pool))
        views = number_of_views(answered * math.prod(self.data.image_shape), 1, config.finetune_epochs)
        defense = self.spec.build(self.parts).to(self.device).eval()

        def purify(count: int) -> None:
            with torch.inference_mode():
                defense(self.pool[:count].to(self.device, copy=True)).sum().item()

        each = views * seconds_each(purify, min(100, answered))
        return answered * (each + config.finetune_epochs * self._example(surrogate, answered))


def seconds_each(run: Callable[[int], Any], most: int) -> float:
    """Seconds that one item more takes: of as few items as take long enough to tell, at most so many."""
    few = count = min(2, most)
    first = _seconds(run, few)  # with what happens once in a process
    if first >= LONG:
        return first / few
    once = taken = _seconds(run, few)
    while taken < LONG and count < most and taken - once < ENOUGH:
        count = min(most, FACTOR * count)
        taken = _seconds(run, count)
    if taken >= LONG or count == few:
        return taken / count
    return max(0.0, taken - once) / (count - few)


def _seconds(run: Callable[[int], Any], count: int) -> float:
    """The fastest of a few, and no more than the processor's time: that other programs take is not this job's."""
    fastest = math.inf
    for _ in range(REPEATS):
        started, worked = time.perf_counter(), time.process_time()
        run(count)
        fastest = min(fastest, time.perf_counter() - started, max(EPSILON, time.process_time() - worked))
        if fastest >= LONG:
            break
    return fastest


def one_epoch(config: RunConfig) -> RunConfig:
    """The same job with a single pass in every training of a network."""
    sections = {name: getattr(config, name) for name in ("nim", "blind_spot", "reversal", "diffusion")}
    short: dict[str, Any] = {name: replace(section, epochs=1) for name, section in sections.items()}
    short["nim"] = replace(short["nim"], finetune_epochs=1)
    short["diffusion"] = replace(short["diffusion"], robust_epochs=1)
    return replace(config, **short)


def silent(iterable: Any = None, **_: Any) -> Any:
    """A progress bar that shows nothing."""
    return tqdm(iterable, disable=True)


def _epochs(settings: Any) -> int:
    """The passes that a network's settings name."""
    return int(settings.get("epochs", 1)) if isinstance(settings, dict) else 1


def activations(network: nn.Module, image: torch.Tensor) -> tuple[int, int]:
    """Bytes an image that layers hold at once, at most, and that all of them hold for a gradient."""
    largest, total = 0, 0

    def count(layer: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest, total
        held = [each.nbytes for each in (*inputs, output) if isinstance(each, torch.Tensor)]
        largest = max(largest, sum(held))
        total += held[-1] if held else 0

    leaves = [layer for layer in network.modules() if not any(True for _ in layer.children())]
    hooks = [layer.register_forward_hook(count) for layer in leaves]
    try:
        with torch.inference_mode():
            network.eval()(image)
    finally:
        for hook in hooks:
            hook.remove()
    return largest, total
