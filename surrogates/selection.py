"""Which images of a pool to ask about."""

import torch

from surrogates.errors import SurrogateError


def select_random(pool_size: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Return `count` distinct indices (count,) int64 drawn uniformly from range(pool_size); CPU generator."""
    if not 1 <= count <= pool_size:
        raise SurrogateError(f"count must be in [1, {pool_size}], the size of the pool, got {count}")
    return torch.randperm(pool_size, generator=generator)[:count]
