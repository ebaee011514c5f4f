"""The threat ladder on several processes: each attacks its share of the images, and the shares make one evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import certify
from certdef.attacks import threat_ladder
from certdef.attacks.evaluation import WORST_CASE, AttackEvaluation, single_attacks, worst_case
from certdef.attacks.system import System
from certdef.config.attacks import LadderConfig
from certify.voting.parallel import processes

APART = 1_000  # between the seeds of two shares: more than a user tries in a row


def evaluate_on_processes(
    system: System,
    images: Tensor,
    labels: Tensor,
    settings: LadderConfig,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable | None = None,
) -> list[AttackEvaluation]:
    """threat_ladder.evaluate on `settings.processes` processes of this computer, this one among them.

    The images are shared out in equal parts. Each part is attacked as an evaluation of its own is: its noise is drawn from a seed of its own,
    the better of two gradients and the learned proxy are found on its own images. So the figures are those of another draw than with
    one process. Torch's threads are shared out too. A target is attacked by one process, since its queries are paid.

    Args:
        system: Travels to the other processes by pickle.
        images, labels, settings, seed, device: As in `evaluate`.
        progress: Wraps the attacks on this process's part, which is the largest.
    """
    count = min(settings.processes, len(images)) if isinstance(system.classifier, nn.Module) else 1
    if count == 1:
        return threat_ladder.evaluate(
            system, images, labels, settings, seed=seed, device=device, progress=progress
        )
    shares = [*zip(images.tensor_split(count), labels.tensor_split(count), strict=True)]
    with _threads(max(1, torch.get_num_threads() // count)) as threads, processes(count - 1) as pool:
        others = [
            pool.submit(_share, threads, system, *share, settings, seed + APART * number, str(device))
            for number, share in enumerate(shares[1:], 1)
        ]
        own = threat_ladder.evaluate(
            system, *shares[0], settings, seed=seed, device=device, progress=progress
        )
        return together([own, *(each.result() for each in others)])


def together(shares: Sequence[Sequence[AttackEvaluation]]) -> list[AttackEvaluation]:
    """One evaluation of every attack from those of the shares, in the order of the images; the worst case over all of them.

    Raises:
        ValueError: The shares were not attacked alike.
    """
    if len({tuple(each.name for each in share) for share in shares}) > 1:
        raise ValueError("the shares of the images were not attacked alike: evaluate with one process")
    found = [_joined(parts) for parts in zip(*shares, strict=True) if parts[0].name != WORST_CASE]
    return [*found, worst_case(found)] if single_attacks(found) else found


def _joined(parts: Sequence[AttackEvaluation]) -> AttackEvaluation:
    first = parts[0]
    if first.accuracy is None:
        return first
    right = tuple(each for part in parts for each in part.right)
    low, high = certify.binomial_interval(sum(right), len(right))
    return AttackEvaluation(
        first.name,
        first.knows,
        first.eps,
        [sum(right) / len(right), float(low), float(high)],
        right,
        sum(part.queries for part in parts),
        sum(part.gradients for part in parts),
    )


def _share(
    threads: int,
    system: System,
    images: Tensor,
    labels: Tensor,
    settings: LadderConfig,
    seed: int,
    device: str,
) -> list[AttackEvaluation]:
    torch.set_num_threads(threads)
    return threat_ladder.evaluate(system, images, labels, settings, seed=seed, device=device)


@contextmanager
def _threads(count: int) -> Iterator[int]:
    """So many torch threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)
