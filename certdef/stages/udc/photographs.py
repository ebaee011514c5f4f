"""UDC, the images: natural photographs, and what a camera under a display sees of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certdef.config.job import RunConfig
from certdef.data.named import data_root
from certdef.data.natural import natural_crops
from certdef.data.sets import Splits
from certdef.restoration import Display, under_display
from certdef.stages.job import Job

DISPLAY = Display()
TEST_SOURCE = "cbsd68"  # shares no photograph with the training crops
SEEDS = 1_000  # of one job, which no other job has


@dataclass(frozen=True)
class Photographs:
    """Training and test photographs, and the same through the display: each (N, 1, S, S) in [0, 1], on the job's device."""

    truth: Tensor
    degraded: Tensor
    test_truth: Tensor
    test_degraded: Tensor


def load_photographs(config: RunConfig, progress: Callable[..., Any]) -> Splits:
    """Crops of natural photographs: the pool to train on, the held-out ones to measure on. They have one class.

    Raises:
        ConfigError: The folder of the photographs is missing, or the crops do not fit.
    """
    root, udc = data_root(config.data), config.udc
    truth = natural_crops(root, 1, udc.size, udc.crops, seed_of(config, 0)).numpy()
    test = natural_crops(root, 1, udc.size, udc.test_crops, seed_of(config, 1), source=TEST_SOURCE).numpy()
    none, no_labels = truth[:0], np.zeros(0, np.int64)
    labels = np.zeros(len(test), np.int64)
    return Splits("natural", ("photograph",), none, no_labels, truth, test, labels, none, no_labels)


def photographs_through_display(job: Job) -> Photographs:
    """The job's photographs, and what the camera sees of them."""
    truth, test = (torch.from_numpy(part).to(job.device) for part in (job.data.pool, job.data.heldout_images))
    degraded = under_display(truth, generator(job, 0), DISPLAY)
    return Photographs(truth, degraded, test, under_display(test, generator(job, 1), DISPLAY))


def seed_of(config: RunConfig, number: int) -> int:
    """A seed of its own for each purpose of a job."""
    return SEEDS * config.seed + number


def generator(job: Job, number: int) -> torch.Generator:
    """A generator on the job's device, seeded for one purpose."""
    return torch.Generator(job.device).manual_seed(seed_of(job.config, number))
