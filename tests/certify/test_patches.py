"""Patches: the masks cover, fills are blind, and no patch at all breaks a certificate of an adversarial classifier."""

from itertools import product

import numpy as np
import pytest
import torch

from certify import CertifyError
from certify.threats.fills import cover, gray, mean
from certify.threats.masks import CoveringMasks, patch_size
from certify.threats.patches import MaskedClassifier

# --- masks ------------------------------------------------------------------------------------------------------


def uncovered(masks):
    """At how many places no mask hides the patch whole."""
    whole = torch.nn.functional.avg_pool2d(masks.hidden[:, None].double(), masks.patch, 1) == 1
    return int((~whole.any(dim=0)).sum())


@pytest.mark.acceptance
def test_every_patch_is_hidden_by_one_mask():
    seen = 0
    for height, width in ((1, 6), (5, 5), (7, 8), (7, 11)):
        for h, w, a_side in product(range(1, height + 1), range(1, width + 1), (1, 2, 3, 6, 20)):
            masks = CoveringMasks.over((height, width), (h, w), a_side)
            assert not uncovered(masks), masks
            assert len(masks.boxes) <= a_side**2
            seen += 1
    for size, patch, a_side in product((28, 32), (1, 2, 3, 4, 5, 7), (2, 3, 4, 6)):
        assert not uncovered(CoveringMasks.over((size, size), (patch, patch), a_side))
    assert seen > 800


def test_the_check_of_covering_sees_masks_that_do_not():
    masks = CoveringMasks.over((8, 8), (2, 2), 3)
    assert uncovered(smaller(masks))


def smaller(masks):
    """A planted fault: the same masks, one row shorter."""
    return CoveringMasks(
        masks.size, masks.patch, tuple((top, left, h - 1, w) for top, left, h, w in masks.boxes)
    )


def test_one_mask_hides_all_and_as_many_as_places_hide_no_more_than_the_patch():
    assert CoveringMasks.over((8, 8), (2, 2), 1).hidden.all()
    assert CoveringMasks.over((8, 8), (2, 2), 7).hidden[0].sum() == 4


def test_pairs_are_all_and_begin_with_those_that_hide_most():
    masks = CoveringMasks.over((8, 8), (2, 2), 3)
    pairs = masks.pairs
    assert {tuple(pair) for pair in pairs} == {(i, j) for i in range(9) for j in range(i, 9)}
    shown = [int((masks.hidden[i] | masks.hidden[j]).sum()) for i, j in pairs]
    assert shown == sorted(shown, reverse=True)


def test_a_patch_as_users_write_it():
    assert patch_size("3x5", (28, 28)) == (3, 5)
    assert patch_size("5%", (28, 28)) == (7, 7)  # 39.2 pixels
    assert patch_size("25%", (28, 28)) == (14, 14)
    assert patch_size("100%", (32, 32)) == (32, 32)
    for wrong in ("3", "0x3", "0%", "5 %", "x", "-1x2", "1e9%%"):
        with pytest.raises(CertifyError, match="try 3x3 or 5%"):
            patch_size(wrong, (28, 28))
    for large in ("29x1", "101%"):
        with pytest.raises(CertifyError, match="larger than the image of 28x28"):
            patch_size(large, (28, 28))
    with pytest.raises(CertifyError, match="larger than the image"):
        CoveringMasks.over((8, 8), (9, 1))


# --- fills ------------------------------------------------------------------------------------------------------


def peeking(images, hidden):
    return images


@pytest.mark.parametrize("fill", [gray, mean, peeking])
def test_a_fill_cannot_see_what_is_hidden_nor_change_what_is_seen(fill):
    generator = torch.Generator().manual_seed(0)
    images, others = torch.rand((2, 5, 3, 8, 8), generator=generator)
    hidden = torch.rand((5, 8, 8), generator=generator) < 0.4
    where = hidden[:, None].expand_as(images)
    changed = torch.where(where, others, images)
    assert not torch.equal(changed, images)
    covered = cover(images, hidden, fill)
    assert torch.equal(covered, cover(changed, hidden, fill))
    assert torch.equal(covered[~where], images[~where])


def test_the_mean_is_that_of_the_seen_pixels_of_a_channel():
    images = torch.rand((1, 2, 4, 4), generator=torch.Generator().manual_seed(0))
    hidden = torch.zeros((1, 4, 4), dtype=torch.bool)
    hidden[0, :2] = True
    expected = images[0, :, 2:].flatten(1).mean(dim=1)
    assert torch.allclose(cover(images, hidden, mean)[0, :, 0, 0], expected, atol=0.5 / 255 + 1e-6)
    everything = torch.ones((1, 4, 4), dtype=torch.bool)
    assert cover(images, everything, mean).isfinite().all()


def test_a_fill_of_another_shape_is_refused():
    with pytest.raises(CertifyError, match="a fill must return finite images of shape"):
        cover(
            torch.zeros(1, 1, 4, 4),
            torch.zeros((1, 4, 4), dtype=torch.bool),
            lambda images, hidden: images[0],
        )


# --- certificates -----------------------------------------------------------------------------------------------


class Table:
    """A classifier that knows some images and answers all others at random, never with the right class."""

    def __init__(self, right, known, seed):
        self.right, self.seed = right, seed
        self.known = {image.numpy().tobytes() for image in known}
        self.queries = 0

    def __call__(self, images):
        self.queries += len(images)
        return torch.tensor([self.label(image.numpy().tobytes()) for image in images])

    def label(self, pixels):
        if pixels in self.known:
            return self.right
        drawn = np.random.default_rng([self.seed, *pixels[::3]]).integers(2)
        return (self.right + 1 + int(drawn)) % 3


def adversary(image, masks, seed, pairs=None):
    """The worst classifier that a certificate allows: right on what the certificate asks, wrong on all else."""
    asker = MaskedClassifier(lambda images: images, masks, 3)
    return Table(0, asker.masked(image, masks.pairs if pairs is None else pairs), seed)


def attacks(image, patch, levels=(0.0, 1.0)):
    """Every image that differs from one (1, H, W) within a patch, at these levels."""
    (height, width), (h, w) = image.shape[1:], patch
    for top, left in product(range(height - h + 1), range(width - w + 1)):
        for content in product(levels, repeat=h * w):
            attacked = image.clone()
            attacked[0, top : top + h, left : left + w] = torch.tensor(content).reshape(h, w)
            yield attacked


CASES = [
    ((1, 6), (1, 2), 2),
    ((1, 7), (1, 2), 6),
    ((4, 4), (2, 2), 2),
    ((4, 5), (1, 3), 3),
    ((5, 4), (2, 1), 6),
]


def broken(size, patch, a_side, seed, fault=None, fill="gray"):
    """How many attacks change the answer to a certified image, of an adversarial classifier."""
    image = torch.randint(2, (1, *size), generator=torch.Generator().manual_seed(seed)).float()
    masks = CoveringMasks.over(size, patch, a_side)
    masks = smaller_in_width(masks) if fault == "masks" else masks
    single = np.stack([np.arange(len(masks.boxes))] * 2, axis=1)
    table = adversary(image, masks, seed, single if fault == "pairs" else None)
    system = MaskedClassifier(table, masks, 3, fill=fill)
    if fault == "pairs":
        system._pairs = single
    (certificate,) = system.certify(image[None])
    assert certificate.prediction == 0
    attacked = torch.stack(list(attacks(image, patch))).unique(dim=0)
    return int((system.predict(attacked) != 0).sum())


def smaller_in_width(masks):
    boxes = tuple((top, left, h, w - 1) for top, left, h, w in masks.boxes)
    return CoveringMasks(masks.size, masks.patch, boxes)


@pytest.mark.acceptance
@pytest.mark.parametrize(("size", "patch", "a_side"), CASES)
def test_no_patch_at_all_changes_a_certified_answer(size, patch, a_side):
    for seed in range(2):
        assert broken(size, patch, a_side, seed) == 0


@pytest.mark.acceptance
@pytest.mark.parametrize("fault", ["masks", "pairs"])
def test_the_brute_force_sees_planted_faults(fault):
    assert broken((4, 4), (2, 2), 2, 0, fault) > 0
    assert broken((1, 7), (1, 2), 3, 0, fault) > 0


def brightness(images):
    """Three classes by the mean: smooth enough that some images are certified and others are not."""
    return (images.mean(dim=(1, 2, 3)) * 3).long().clamp(max=2)


@pytest.mark.acceptance
def test_every_certificate_of_a_whole_space_of_images_holds():
    masks = CoveringMasks.over((1, 7), (1, 1), 4)
    system = MaskedClassifier(brightness, masks, 3)
    images = torch.tensor(list(product((0.0, 1.0), repeat=7))).reshape(-1, 1, 1, 7)
    certificates = system.certify(images)
    certified = [not each.abstained for each in certificates]
    assert 0.1 < np.mean(certified) < 0.9
    # an independent statement of the certificate: all pairs, by hand
    hidden = masks.hidden[:, 0].numpy()
    for image, each in zip(images[:, 0, 0].numpy(), certificates, strict=True):
        answers = set()
        for i, j in product(range(len(hidden)), repeat=2):
            pixels = np.where(hidden[i] | hidden[j], np.float32(round(0.5 * 255) / 255), image)
            answers.add(min(int(np.float32(pixels.mean()) * 3), 2))
        assert (len(answers) == 1) == (not each.abstained)
    for image, each in zip(images, certificates, strict=True):
        if not each.abstained:
            attacked = torch.stack(list(attacks(image, (1, 1), (0.0, 0.3, 1.0)))).unique(dim=0)
            assert set(system.predict(attacked)) == {each.prediction}


def test_a_certificate_asks_every_pair_and_stops_at_the_first_that_disagrees():
    masks = CoveringMasks.over((8, 8), (2, 2), 3)
    image = torch.rand((1, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    table = Table(1, MaskedClassifier(brightness, masks, 3).masked(image[0], masks.pairs), 0)
    (certificate,) = MaskedClassifier(table, masks, 3).certify(image)
    assert (certificate.prediction, certificate.radius, certificate.n) == (1, 4.0, 45)
    assert certificate.counts == (0, 45, 0)
    assert table.queries == 45 + 8  # 4 images were asked twice, to see whether it repeats itself
    assert (certificate.threat, certificate.alpha, certificate.n0) == ("patch", 0.0, 0)
    assert certificate.noise["patch"] == [2, 2]
    (known,) = MaskedClassifier(table, masks, 3).certify(image, known_class=[2])
    assert known.abstained
    assert (known.n, known.radius, known.selected) == (1, 0.0, 2)


def test_the_surrogate_orders_the_pairs_and_decides_nothing():
    masks = CoveringMasks.over((8, 8), (2, 2), 3)
    image = torch.rand((1, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    asker = MaskedClassifier(brightness, masks, 3)
    bad = asker.masked(image[0], masks.pairs[30:31])[0]
    table = Table(0, asker.masked(image[0], masks.pairs), 0)
    table.known.remove(bad.numpy().tobytes())

    def surrogate(images):
        suspects = torch.stack([(each == bad).all() for each in images]).float()
        return torch.stack([1 - suspects, suspects, torch.zeros(len(images))], dim=1)

    (plain,) = MaskedClassifier(table, masks, 3).certify(image)
    (guided,) = MaskedClassifier(table, masks, 3, surrogate=surrogate).certify(image, known_class=[0])
    (misled,) = MaskedClassifier(table, masks, 3, surrogate=lambda x: -surrogate(x)).certify(image)
    assert plain.abstained
    assert guided.abstained
    assert misled.abstained
    assert guided.n == 1
    assert plain.n == 31  # 1 + 2 + 4 + 8 + 16: with the pair that disagrees
    assert sum(plain.counts) - plain.counts[0] == 1


def test_inference_answers_the_majority_where_no_second_round_agrees():
    masks = CoveringMasks.over((1, 6), (1, 2), 2)
    image = torch.tensor([[[[0.0, 1.0, 0.0, 1.0, 1.0, 0.0]]]])
    assert MaskedClassifier(lambda x: torch.full((len(x),), 2), masks, 3).predict(image)[0] == 2


def test_a_classifier_that_does_not_repeat_itself_is_refused():
    generator = torch.Generator().manual_seed(0)
    masks = CoveringMasks.over((8, 8), (2, 2), 3)
    system = MaskedClassifier(lambda x: torch.randint(3, (len(x),), generator=generator), masks, 3)
    with pytest.raises(CertifyError, match="answers the same image differently"):
        system.certify(torch.zeros(1, 1, 8, 8))


def test_bad_input_is_refused_with_a_remedy():
    masks = CoveringMasks.over((8, 8), (2, 2), 3)
    with pytest.raises(CertifyError, match="fill must be one of gray, mean"):
        MaskedClassifier(brightness, masks, 3, fill="grey")
    with pytest.raises(CertifyError, match="the masks are for 8x8"):
        MaskedClassifier(brightness, masks, 3).certify(torch.zeros(1, 1, 9, 8))
    with pytest.raises(CertifyError, match=r"labels must be in \[0, 3\)"):
        MaskedClassifier(lambda x: torch.full((len(x),), 3), masks, 3).certify(torch.zeros(1, 1, 8, 8))
