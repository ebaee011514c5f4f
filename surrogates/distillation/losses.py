"""Losses of a student: answers as goals, and the distance of its logits from them."""

import torch
import torch.nn.functional as F

from surrogates.errors import SurrogateError
from surrogates.targets import Answers

_FIRST_IS_AUTO = {
    "labels": ("cross_entropy",),
    "probabilities": ("soft_cross_entropy", "kl", "l1", "cross_entropy"),
    "logits": ("l1", "soft_cross_entropy", "kl", "cross_entropy"),
    "top_k": ("partial", "cross_entropy"),
}
# A probability of 0 was rounded to it; its logarithm must not rule the L1 distance.
SMALLEST_PROBABILITY = 1e-6
LOSSES = ("l1", "soft_cross_entropy", "kl", "cross_entropy", "partial")


def check_loss(loss: str, output_kind: str) -> str:
    """Return the loss, or the one that suits the answers when it is "auto".

    Raises:
        SurrogateError: A loss that does not fit such answers.
    """
    allowed = _FIRST_IS_AUTO[output_kind]
    if loss != "auto" and loss not in allowed:
        raise SurrogateError(
            f"loss must be 'auto' or one of {', '.join(allowed)} for a target that answers {output_kind}, "
            f"got {loss!r}"
        )
    return allowed[0] if loss == "auto" else loss


def goals_of(answers: Answers, loss: str, output_kind: str) -> torch.Tensor:
    """Return labels (N,) int64, logits (N, K), or probabilities (N, K) that sum to 1, NaN where unknown."""
    if loss == "cross_entropy" or answers.scores is None:
        return torch.from_numpy(answers.labels)
    scores = torch.from_numpy(answers.scores)
    if loss == "l1" and output_kind == "probabilities":
        # Logits up to a constant, which is chosen to center them.
        scores = scores.clamp_min(SMALLEST_PROBABILITY).log()
        return scores - scores.mean(dim=1, keepdim=True)
    if loss == "l1":
        return scores
    if output_kind == "logits":
        return scores.softmax(dim=1)
    scores = scores.clamp_min(0)  # published probabilities are rounded; NaN stays NaN
    total = scores.nansum(dim=1, keepdim=True).clamp_min(1e-12)
    if loss == "partial":
        # Part of the mass may be elsewhere, but where all classes are known nothing is.
        whole = ~scores.isnan().any(dim=1, keepdim=True)
        return torch.where(whole | (total > 1), scores / total, scores)
    return scores / total


def distance(loss: str, logits: torch.Tensor, goals: torch.Tensor) -> torch.Tensor:
    """Mean distance of logits (N, K) from goals (N,) or (N, K).

    Args:
        loss: l1 matches logits (DUCD, arXiv 2408.10647); soft_cross_entropy and kl differ by the goals' entropy.
    """
    if loss == "l1":
        return F.l1_loss(logits, goals)
    if loss == "kl":
        return F.kl_div(logits.log_softmax(dim=1), goals, reduction="batchmean")
    if loss == "partial":
        return _partial(logits, goals)
    return F.cross_entropy(logits, goals)


def consistency(views: torch.Tensor, weight: float, entropy: float) -> torch.Tensor:
    """How far a student's predictions on noisy views of the same images are from one another: a scalar, the images' mean.

    weight * mean over views of KL(q || p_v) + entropy * H(q), where p_v is the prediction on a view and q their mean
    (Jeong & Shin, NeurIPS 2020, arXiv 2006.04062). A smoothed classifier that predicts the same under all noise has a large
    radius; the entropy keeps q from being flat.

    Args:
        views: Logits (V, N, K), one set a view.
        weight: Of the divergence; 5 to 20 in the paper.
        entropy: Weight of the mean prediction's entropy; 0.5 in the paper.
    """
    log_p = views.log_softmax(dim=2)
    mean = log_p.exp().mean(dim=0)
    log_mean = mean.clamp_min(1e-20).log()
    divergence = (mean * (log_mean - log_p)).sum(dim=2).mean()
    return weight * divergence - entropy * (mean * log_mean).sum(dim=1).mean()


def pseudo_goals(loss: str, members: list[torch.Tensor]) -> torch.Tensor:
    """Return the goals (N, K) that several students' logits (N, K) give together: mean logits for l1, else mean probabilities."""
    if loss == "l1":
        return torch.stack(members).mean(dim=0)
    return torch.stack([logits.softmax(dim=1) for logits in members]).mean(dim=0)


def _partial(logits: torch.Tensor, goals: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over the known classes and one lump of all others, whose goals are NaN."""
    known = ~goals.isnan()
    log_p = logits.log_softmax(dim=1)
    given = torch.where(known, goals, 0.0)
    rest = (1 - given.sum(dim=1)).clamp_min(0)
    lump = known.all(dim=1)
    log_rest = log_p.masked_fill(known & ~lump[:, None], -torch.inf).logsumexp(dim=1)
    # A row without a lump has rest 0; its log_rest is finite, so that no gradient is NaN.
    return -((given * log_p).sum(dim=1) + torch.where(lump, 0.0, rest * log_rest)).mean()
