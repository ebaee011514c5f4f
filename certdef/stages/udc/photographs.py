"""UDC, the images: natural photographs, and what a camera under a display sees of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from certdef.config.job import ConfigError, RunConfig
from certdef.data.named import data_root
from certdef.data.natural import natural_crops, numbered_crops
from certdef.data.sets import Splits
from certdef.restoration import Display, under_display
from certdef.stages.job import Job

DISPLAY = Display()
TEST_SOURCE = "cbsd68"  # shares no photograph with the training crops
SEEDS = 1_000  # of one job, which no other job has


@dataclass(frozen=True)
class Photographs:
    """Training and test crops, and the same through the display: each (N, 1, S, S) in [0, 1], on the job's device.

    Attributes:
        truth: What is trained and chosen on.
        degraded: The same as the camera sees it.
        test_truth: Crops of other photographs.
        test_degraded: The same as the camera sees it.
        test_photographs: Number of the photograph that each test crop is cut from, (N,).
    """

    truth: Tensor
    degraded: Tensor
    test_truth: Tensor
    test_degraded: Tensor
    test_photographs: NDArray[np.int64]


def load_photographs(config: RunConfig, progress: Callable[..., Any]) -> Splits:
    """Crops of natural photographs: the pool to train on, the held-out ones to measure on. They have one class.

    Raises:
        ConfigError: The folder of the photographs is missing, the crops do not fit, or all test crops are of one photograph.
    """
    root, udc = data_root(config.data), config.udc
    truth = natural_crops(root, 1, udc.size, udc.crops, seed_of(config, 0)).numpy()
    seed = seed_of(config, 1)
    crops, numbers = numbered_crops(root, 1, udc.size, udc.test_crops, seed, source=TEST_SOURCE)
    if len(np.unique(numbers)) < 2:
        raise ConfigError(f"all test crops are of one photograph of {TEST_SOURCE}: an interval needs two")
    test, none, no_labels = crops.numpy(), truth[:0], np.zeros(0, np.int64)
    labels = np.zeros(len(test), np.int64)
    images = ("natural", ("photograph",), none, no_labels, truth, test, labels, none, no_labels)
    return Splits(*images, heldout_photographs=numbers)


def photographs_through_display(job: Job) -> Photographs:
    """The job's photographs, and what the camera sees of them."""
    truth, test = (torch.from_numpy(part).to(job.device) for part in (job.data.pool, job.data.heldout_images))
    degraded = under_display(truth, generator(job, 0), DISPLAY)
    numbers = job.data.heldout_photographs
    assert numbers is not None
    return Photographs(truth, degraded, test, under_display(test, generator(job, 1), DISPLAY), numbers)


def seed_of(config: RunConfig, number: int) -> int:
    """A seed of its own for each purpose of a job."""
    return SEEDS * config.seed + number


def generator(job: Job, number: int) -> torch.Generator:
    """A generator on the job's device, seeded for one purpose."""
    return torch.Generator(job.device).manual_seed(seed_of(job.config, number))
