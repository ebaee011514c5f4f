"""Every purifier by name: what it does, where it is published, and against whom it was proposed. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One published purifier.

    Args:
        line: What it does.
        source: Paper.
        threat: The attacker that it was proposed against; the ladder says what is left against stronger ones.
        networks: What is trained or given before it works.
        denoiser: What stands between the noise and the classifier when it is certified; unset, nothing.
    """

    line: str
    source: str
    threat: str
    networks: tuple[str, ...] = ()
    denoiser: str | None = None


_NIM = "You et al., NeurIPS 2023, arXiv 2302.01056"
_NCIS = "Cha et al., WACV 2024, arXiv 2106.11644"
_BLIND = "knows the classifier, not that a purifier is there"
_GRAY = "knows the classifier; one noise draw differentiated, no expectation over draws"

CATALOGUE: dict[str, Entry] = {
    "de3": Entry(
        "De^3: noise, then the decoder of a masked autoencoder trained on noisy images", _NIM, _GRAY, ("nim",), "the NIM"
    ),
    "de3-simmim": Entry(
        "De^3 on an encoder with a linear head (NIM-SimMIM)", _NIM, _GRAY, ("nim-simmim",), "the NIM"
    ),
    "mim": Entry(
        "the masked baseline of De^3: the same autoencoder, trained on masks in the place of noise",
        "He et al., CVPR 2022, arXiv 2111.06377", _GRAY, ("mim",), "the autoencoder",
    ),
    "gs": Entry("Gaussian smoothing, repeated", _NCIS, _BLIND, (), "the smoothing"),
    "ncis": Entry(
        "NCIS: Gaussian smoothing, restored by a network that is blind to the pixel it restores", _NCIS, _BLIND,
        ("blind_spot",), "smoothing and network",
    ),
    "blind-spot": Entry(
        "a blind-spot network trained on noisy images alone", "Batson, Royer, ICML 2019, arXiv 1901.11365; network of " + _NCIS,
        _BLIND, ("blind_spot_noisy",), "the network",
    ),
    "reversal": Entry(
        "moves the image until self-supervised tasks on the classifier's features fit again",
        "Lawhon, Mao, Yang 2022, arXiv 2204.03714; Mao et al., ICCV 2021", _BLIND, ("denoiser", "classifier", "tasks"),
    ),
    "one-step": Entry(
        "one step of a diffusion model at the image's own noise level", "Carlini et al., ICLR 2023, arXiv 2206.10550",
        "any L2 attacker, where it is certified", ("diffusion",), "one diffusion step",
    ),
    "diffpure": Entry(
        "DiffPure: diffuse to a step t, then the whole reverse chain", "Nie et al., ICML 2022, arXiv 2205.07460",
        "knows classifier and purifier, with gradients through the chain", ("diffusion",), "one diffusion step",
    ),
    "uad-rs": Entry(
        "UAD-RS: DiffPure at the step that brings purified features nearest to clean ones", "Yu et al. 2023, arXiv 2307.16865",
        _BLIND, ("classifier", "diffusion", "uad_step"), "one diffusion step",
    ),
    "agdm": Entry(
        "AGDM: DiffPure guided by the latent space of an adversarially trained network", "Lin et al., arXiv 2403.16067",
        "knows classifier and purifier", ("robust", "diffusion"), "one diffusion step",
    ),
}  # fmt: skip

TITLES = {"de3": "De^3"}


def title(name: str) -> str:
    """A purifier's name as tables and pictures print it."""
    return TITLES.get(name, name)
