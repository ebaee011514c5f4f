"""How often the bare target's answer changes by chance, as configured."""

from __future__ import annotations

from dataclasses import dataclass

ALL = "all"


@dataclass(frozen=True)
class RobustnessConfig:
    """The bare target, average case: the corruptions that certdef robustness proves it under. The risk is certify.alpha.

    Args:
        corruptions: What may happen to an image: all, or a list of noise, brightness, contrast, gamma, blur, motion-blur,
            shift, rotation, jpeg and 8-bit, each alone (at a mild strength) or with a strength, as noise=0.1, jpeg=50,
            several one after the other as gamma=0.3+jpeg=50, or python:package.module:function for a law of your own,
            function(images (1, C, H, W), generator). A strength is the far end of what is drawn: sigma of noise, a change of
            brightness, 1 + a factor of contrast and gamma, pixels of blur, motion and shift, degrees, the worst JPEG quality.
        q: Prove that at most this share of the draws changes the answer.
        draws: Draws of a corruption for an image, at most, each a query; unset, three times as many as an image takes whose
            answer never changes (66 for q = 0.1 at certify.alpha 0.001).
        images: Held-out images, the first ones; each is asked about under every corruption.
    """

    corruptions: tuple[str, ...] | str = ALL
    q: float = 0.1
    draws: int | None = None
    images: int = 50
