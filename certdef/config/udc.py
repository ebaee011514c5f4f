"""The UDC job as configured: a restoration under a display, attacked, purified and fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class UDCConfig:
    """UDC: restore photographs taken through a display, attack the restoration, purify, fine-tune (Song et al., arXiv 2402.13629).

    The purifier is DiffPure; its network, reverse steps and grid of t are those of `diffusion`.

    Args:
        enabled: Do this job in the place of the main one. It has no target, no query and no certificate.
        size: Side of the gray crops of natural photographs, in pixels, even.
        crops: Crops that everything is trained and chosen on.
        test_crops: Crops of other photographs that every figure is measured on.
        width: Channels of the restoration network.
        depth: Its residual blocks.
        epochs: Passes over the crops, each time under another noise.
        batch_size: Crops a step.
        learning_rate: Peak rate of AdamW.
        finetune_epochs: Passes over the crops of each fine-tuning: the defense's, and its two controls'.
        finetune_learning_rate: Peak rate of AdamW there.
        longest: Largest t that the diffusion network is trained on.
        choice_crops: Training crops, clean and attacked, that t is chosen on.
        clean_loss: Largest loss of mean PSNR on clean crops that a chosen t may cost, in dB, before fine-tuning.
        eps_255: L-infinity budgets of the attacks (8-bit levels).
        pgd_steps: Steps of PGD.
        cw_steps: Steps of the C&W-like attack.
        simba_queries: Queries of an image of the SimBA-like attack.
        seeds: Starts of PGD, and noise draws of the purifier, that figures are averaged over.
        adaptive_crops: Test crops attacked through the purifier too, at the first budget; the headline is measured on these.
        adaptive_eot: Noise draws a step of that attack: most of the job's time is adaptive_crops times these.
    """

    enabled: bool = False
    size: int = 32
    crops: int = 2_000
    test_crops: int = 68
    width: int = 32
    depth: int = 4
    epochs: int = 12
    batch_size: int = 32
    learning_rate: float = 2e-3
    finetune_epochs: int = 6
    finetune_learning_rate: float = 1e-3
    longest: int = 150
    choice_crops: int = 64
    clean_loss: float = 0.5
    eps_255: tuple[float, ...] = (4.0, 8.0)
    pgd_steps: int = 20
    cw_steps: int = 40
    simba_queries: int = 200
    seeds: int = 3
    adaptive_crops: int = 12
    adaptive_eot: int = 20
