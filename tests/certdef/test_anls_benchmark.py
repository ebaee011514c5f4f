"""What the ANLS benchmark compares: a distance class by class, and choices judged on other images."""

import numpy as np
import pytest
import torch

from benchmarks.anls import DISTANCES, Outcome, class_distance, distances, halves, judge
from certdef.purifiers.uad_rs import frechet

pytestmark = pytest.mark.usefixtures("one_thread")
CENTERS = torch.tensor([[0.0, 0.0, 0.0], [6.0, 0.0, 0.0], [0.0, 6.0, 0.0]])


def drawn(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features around the centers of three classes, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(count) % 3
    return CENTERS[classes] + torch.randn(count, 3, generator=generator), classes


def test_two_classes_that_change_places_are_seen_class_by_class_alone():
    (first, classes), (second, others) = drawn(300, 0), drawn(300, 1)
    swapped = torch.tensor([1, 0, 2])[classes]
    assert frechet(first, second) < 0.1
    assert abs(class_distance(first, classes, second, others)) < 0.1
    assert class_distance(first, swapped, second, others) > 0.9 * (2 / 3) * 36
    # By the classifier's own predictions the change is not seen either: they have moved with the features.
    assert abs(class_distance(CENTERS[swapped] + first - CENTERS[classes], swapped, second, others)) < 0.1


def test_classes_of_a_second_purification_show_what_changes_by_chance():
    """A third of the images end in another class, each purification by itself."""
    (features, labels), (clean, clean_labels) = drawn(600, 0), drawn(600, 1)
    draws = np.random.default_rng(0)
    once, again = ((labels + torch.from_numpy(draws.integers(3, size=600) == 0)) % 3 for _ in range(2))
    purified = Outcome(features - CENTERS[labels] + CENTERS[once], once, again)
    found = distances(purified, labels, Outcome(clean, clean_labels, clean_labels), clean_labels)
    assert abs(found["predicted"]) < 0.2
    assert found["across"] > 2
    assert found["true"] > 2


def test_few_images_a_class_do_not_look_far_away():
    """The squared distance of means of few images is large by chance; what is expected is taken off."""
    found = [class_distance(*drawn(12, seed), *drawn(600, 99), shrinkage=0.0) for seed in range(200)]
    covariances = [
        frechet(
            torch.cat([x[c == k] - x[c == k].mean(0) for k in range(3)]),
            drawn(600, 99)[0] - CENTERS[drawn(600, 99)[1]],
            0.0,
        )
        for x, c in (drawn(12, seed) for seed in range(200))
    ]
    means = np.array(found) - np.array(covariances)
    assert abs(means.mean()) < 4 * means.std() / 200**0.5 + 0.02
    assert (
        10 * abs(means.mean()) < 3 * 3 / 12
    )  # what was taken off: three classes, three dimensions, 12 images


def test_a_class_that_the_reference_lacks_is_left_out():
    (first, classes), (second, others) = drawn(300, 0), drawn(300, 1)
    known = others != 2
    distance = class_distance(first, classes, second[known], others[known])
    assert abs(distance) < 0.1


def test_the_halves_change_places():
    (one, two), (three, four) = halves(11, 0)
    assert set(one) == set(four)
    assert set(two) == set(three)
    assert sorted([*one, *two]) == list(range(11))


def test_a_choice_is_judged_on_the_other_half():
    """At 10 the choosing images look clean and the judging ones are wrong; at 20 it is the other way round."""
    features, labels = drawn(200, 0)
    clean, clean_labels = drawn(300, 1)
    choosing, judging = np.arange(100), np.arange(100, 200)
    wrong = (labels + 1) % 3
    far = torch.cat([features[:100], features[100:] + 50]), torch.cat([labels[:100], wrong[100:]])
    near = torch.cat([features[:100] + 50, features[100:]]), torch.cat([wrong[:100], labels[100:]])
    at = {10: Outcome(*far, far[1]), 20: Outcome(*near, near[1])}
    judged = judge(at, labels, Outcome(clean, clean_labels, clean_labels), clean_labels, choosing, judging)
    assert judged["chosen"] == dict.fromkeys((*DISTANCES, "labels"), 10)
    assert judged["regret"] == dict.fromkeys((*DISTANCES, "labels"), 1) | {"any": 0.5}
    assert judged["best"] == 20
