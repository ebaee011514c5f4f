"""One bisection for every bound that has no closed form."""

from collections.abc import Callable


def largest(holds: Callable[[float], bool], low: float, high: float, steps: int = 60) -> float:
    """The largest number in [low, high) at which ``holds`` is still True, from below; it holds at ``low``."""
    for _ in range(steps):
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
