"""Patches: an attack that finds the best one, certificates that it never breaks, and inpainters that see nothing hidden."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from certdef.attacks.candidates import margin
from certdef.attacks.patch import MaskedVote, best_places, patch_attack
from certdef.config.job import DataConfig
from certdef.data.dead_leaves import dead_leaves
from certdef.data.sets import load_data
from certdef.models.classifiers import build_classifier, train_classifier
from certdef.purifiers import MIM, MIMShape, pretrain_nim
from certdef.purifiers.networks.inpainting import DenoisedFill, MaskedFill
from certdef.purifiers.networks.nim import nim_training
from certdef.purifiers.networks.shipped import shipped_denoiser
from certify.threats.fills import FILLS, cover, gray, mean
from certify.threats.masks import CoveringMasks
from certify.threats.patches import MaskedClassifier

pytestmark = pytest.mark.usefixtures("one_thread")


# --- the attack -------------------------------------------------------------------------------------------------


def linear():
    """Two classes, images (12, 2, 6, 6), and their labels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 2))
    return model, torch.rand(12, 2, 6, 6), torch.arange(12) % 2


def test_the_best_patch_of_a_linear_classifier_is_found():
    model, images, labels = linear()
    attacked = patch_attack(model, images, labels, patch=(2, 3), places=1, seed=0)
    weight = (model[1].weight[1] - model[1].weight[0]).detach().reshape(2, 6, 6)
    toward = torch.where(labels == 0, 1.0, -1.0)
    best = torch.full((12,), -torch.inf)
    for top in range(5):
        for left in range(4):
            at = images.clone()
            place = (slice(None), slice(top, top + 2), slice(left, left + 3))
            at[(slice(None), *place)] = (toward[:, None, None, None] * weight[place] > 0).float()
            best = torch.maximum(best, margin(model(at), labels))
    assert torch.allclose(margin(model(attacked), labels), best, atol=1e-5)


def test_only_one_patch_of_each_image_changes_and_pixels_stay_pixels():
    model, images, labels = linear()
    attacked = patch_attack(model, images, labels, patch=(2, 3), places=3, steps=4, seed=0)
    assert 0 <= attacked.min() <= attacked.max() <= 1
    for changed in (attacked != images).any(dim=1):
        rows, columns = changed.nonzero().unbind(dim=1)
        assert rows.max() - rows.min() < 2
        assert columns.max() - columns.min() < 3
    assert torch.equal(attacked, patch_attack(model, images, labels, patch=(2, 3), places=3, steps=4, seed=0))


def test_places_are_apart_and_never_more_than_there_are():
    model, images, labels = linear()
    places = best_places(lambda at: margin(model(at), labels), images, (3, 3), 4)
    assert len(places) == 4
    for one in range(4):
        assert all(int(place[0].sum()) == 9 for place in places)
        assert not any(torch.equal(places[one][0], places[other][0]) for other in range(one))
    assert len(best_places(lambda at: margin(model(at), labels), images, (6, 6), 4)) == 1


@cache
def digits():
    """A classifier of the digits that was trained with masks, held-out images and labels."""
    data = load_data(DataConfig(), 0)
    hidden = CoveringMasks.over((8, 8), (2, 2), 3).hidden
    generator = torch.Generator().manual_seed(0)

    def hide(model, images, labels):
        first, second = torch.randint(len(hidden), (2, len(images)), generator=generator)
        fill = (gray, mean)[int(torch.randint(2, (), generator=generator))]
        return cover(images, hidden[first] | hidden[second], fill)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_classifier("mlp", data.image_shape, 10)
    where = {"epochs": 40, "seed": 0, "device": torch.device("cpu")}
    train_classifier(model, data.target_images, data.target_labels, perturb=hide, **where)
    return model, torch.from_numpy(data.heldout_images[:60]), torch.from_numpy(data.heldout_labels[:60])


@pytest.mark.acceptance
@pytest.mark.parametrize("fill", ["gray", "mean"])
def test_no_attack_breaks_a_certificate(fill):
    model, images, labels = digits()
    masks = CoveringMasks.over((8, 8), (2, 2), 3)
    system = MaskedClassifier(model, masks, 10, fill=fill)
    certificates = system.certify(images, known_class=labels.numpy())
    certified = torch.tensor([not each.abstained for each in certificates])
    assert certified.float().mean() > 0.25
    vote = MaskedVote(model, masks, FILLS[fill])
    for victim in (model, vote):
        attacked = patch_attack(victim, images, labels, patch=(2, 2), steps=20, places=6, seed=0)
        with torch.no_grad():
            right = model(attacked).argmax(dim=1) == labels
        defended = torch.from_numpy(system.predict(attacked)) == labels
        assert bool(defended[certified].all())
        if victim is model:  # the attack is one: without masks it breaks images that are certified with them
            assert not bool(right[certified].all())
            assert right.float().mean() < 0.7 * defended.float().mean()


# --- inpainting -------------------------------------------------------------------------------------------------


def untrained(**sizes):
    torch.manual_seed(0)
    return MIM(
        MIMShape((3, 16, 16), patch_size=4, width=16, depth=1, heads=2, decoder_width=16, **sizes)
    ).eval()


INPAINTERS = {
    "mim": lambda: MaskedFill(untrained()),
    "simmim": lambda: MaskedFill(untrained(decoder_depth=0)),
    "leaves": lambda: DenoisedFill(shipped_denoiser()),
}


@pytest.mark.acceptance
@pytest.mark.parametrize("name", INPAINTERS)
def test_an_inpainter_sees_no_hidden_pixel_and_changes_no_other(name):
    fill, generator = INPAINTERS[name](), torch.Generator().manual_seed(0)
    images, others = torch.rand((2, 6, 3, 16, 16), generator=generator)
    masks = CoveringMasks.over((16, 16), (3, 3), 3)
    hidden = masks.hidden[:6] | masks.hidden[3:]
    where = hidden[:, None].expand_as(images)
    with torch.no_grad():
        covered = cover(images, hidden, fill)
        assert torch.equal(covered, cover(torch.where(where, others, images), hidden, fill))
        seen = torch.where(where, images, others)  # what is seen, though, decides
        assert not torch.equal(covered[where], cover(seen, hidden, fill)[where])
    assert torch.equal(covered[~where], images[~where])


def test_a_patch_of_the_autoencoder_that_is_hidden_in_part_is_not_seen_at_all():
    model = untrained()
    images = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    hidden = torch.zeros((1, 16, 16), dtype=torch.bool)
    hidden[0, 3:5, 3:5] = True  # a corner of each of four patches
    four = torch.zeros((1, 16), dtype=torch.bool)
    four[0, [0, 1, 4, 5]] = True
    with torch.no_grad():
        assert torch.equal(MaskedFill(model)(images, hidden), model.fill_in(images, four).clamp(0, 1))
        everything = torch.ones((1, 16, 16), dtype=torch.bool)
        assert (MaskedFill(model)(images, everything) == 0.5).all()


def error(images, hidden, fill):
    """Root mean square over the hidden pixels."""
    with torch.no_grad():
        wrong = cover(images, hidden, fill) - images
    return float(wrong.square()[hidden[:, None].expand_as(images)].mean().sqrt())


def test_the_shipped_denoiser_fills_better_than_the_mean():
    images = torch.from_numpy(dead_leaves(4, 32, 7)).float() / 255
    hidden = CoveringMasks.over((32, 32), (3, 3), 5).hidden[[0, 6, 12, 18]]
    leaves = error(images, hidden, DenoisedFill(shipped_denoiser()))
    assert leaves < 0.9 * error(images, hidden, mean) < 0.9 * error(images, hidden, gray)


def test_the_trained_autoencoder_fills_better_than_the_mean():
    data = load_data(DataConfig(), 0)
    torch.manual_seed(0)
    model = MIM(MIMShape((1, 8, 8), patch_size=2, width=32, depth=2, heads=4, decoder_width=32, ratio=0.5))
    pretrain_nim(model, torch.from_numpy(data.pool), None, nim_training(12, 32, 0.02))
    images = torch.from_numpy(data.heldout_images[:40])
    hidden = CoveringMasks.over((8, 8), (2, 2), 3).hidden[np.arange(40) % 9]
    assert error(images, hidden, MaskedFill(model)) < 0.9 * error(images, hidden, mean)
