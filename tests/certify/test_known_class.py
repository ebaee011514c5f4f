"""The class is given: no selection votes, the whole of alpha for the claim that it wins, and labeled as such."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import binom

import certify
from certify import (
    ABSTAIN,
    CertifyError,
    Gaussian,
    RecordLog,
    SmoothedClassifier,
    certify_parallel,
    certify_votes,
    nim_noise,
    read_records,
    recertify,
)

ALPHA, N = 0.05, 60
METHODS = ["fixed", "two_sided", "sequential", "group_sequential", "group_sequential_two_sided"]


def claim(known: int, k: int) -> bool:
    """Whether k of N votes for class 0, the others for class 1, certify the class that is given."""
    counts = np.array([k, N - k])
    return not certify.core.certify(
        np.zeros(2, np.int64), counts, Gaussian(0.25), ALPHA, known_class=known
    ).abstained


@pytest.mark.acceptance
def test_error_is_at_most_alpha_exactly_and_a_class_named_after_the_votes_is_caught():
    """Neither class wins at p = 1/2, so that every claim is wrong; all votes are counted by their probability."""
    k = np.arange(N + 1)
    weights = binom.pmf(k, N, 0.5)
    given = float(weights @ [claim(0, votes) for votes in k])
    named_after = float(weights @ [claim(int(votes < N - votes), votes) for votes in k])
    assert 0.5 * ALPHA < given <= ALPHA
    assert named_after > 1.5 * ALPHA


def first_wins(shares, seed=0):
    rng = np.random.default_rng(seed)
    asked = []

    def draw(count):
        asked.append(count)
        return np.repeat(np.arange(len(shares)), rng.multinomial(count, shares))

    return draw, asked


@pytest.mark.parametrize("method", METHODS)
def test_all_votes_bound_the_given_class_and_another_winner_is_an_abstention(method):
    options = {"n": 2000, "method": method} | ({"radii": [0, 0.1]} if "sequential" in method else {})
    draw, asked = first_wins([0.9, 0.06, 0.04])
    found = certify_votes(draw, Gaussian(0.25), 3, known_class=0, **options)
    assert (found.prediction, found.selected, found.n0, found.known_class) == (0, 0, 0, True)
    assert sum(asked) == found.n == sum(found.counts)
    assert found.radius >= 0.1
    for loser in (1, 2):
        draw, asked = first_wins([0.9, 0.06, 0.04])
        found = certify_votes(draw, Gaussian(0.25), 3, known_class=loser, **options)
        assert (found.prediction, found.selected, found.radius) == (ABSTAIN, loser, 0)
    if method == "group_sequential":
        assert found.n == 32  # hopeless at the first look
    draw, asked = first_wins([0.9, 0.06, 0.04])
    assert not certify_votes(draw, Gaussian(0.25), 3, n0=7, **options).known_class
    assert asked[0] == 7


def smoothed(**options):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(3, 12))
        model[1].bias.zero_()
    return SmoothedClassifier(model, nim_noise(), 3, **options)


IMAGES = torch.rand((7, 3, 2, 2), generator=torch.Generator().manual_seed(1))
CLASSES = [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("method", METHODS)
def test_the_same_votes_as_without_labels_however_they_are_packed(method):
    options = {"n": 800, "method": method} | ({"radii": [0, 0.05]} if "sequential" in method else {})
    found = smoothed().certify(IMAGES, known_class=CLASSES, **options)
    assert [each.selected for each in found] == CLASSES
    for batch_size in (32, 300):
        again = smoothed(batch_size=batch_size).certify(IMAGES, known_class=CLASSES, **options)
        assert again == found
    part = smoothed().certify(IMAGES[2:5], known_class=CLASSES[2:5], indices=[2, 3, 4], **options)
    assert part == found[2:5]
    free = smoothed().certify(IMAGES, **options)
    for ours, theirs in zip(found, free, strict=True):
        if theirs.selected == ours.selected:
            assert (ours.counts, ours.radius, ours.prediction) == (
                theirs.counts,
                theirs.radius,
                theirs.prediction,
            )


def test_workers_get_their_own_classes():
    options = {"n": 200, "known_class": np.array(CLASSES)}
    parallel = certify_parallel(smoothed(), IMAGES, workers=1, shard=3, **options)
    assert parallel == smoothed().certify(IMAGES, **options)
    with pytest.raises(CertifyError, match="known_class must be"):
        certify_parallel(smoothed(), IMAGES, known_class=[0, 1])


def test_selection_votes_are_not_drawn():
    class Bar:
        done = 0

        def update(self, amount):
            self.done += amount

    bar = Bar()
    smoothed().certify(IMAGES, n0=100, n=300, known_class=CLASSES, progress=bar)
    assert bar.done == 7 * 300


def recorded(tmp_path, config, known):
    tmp_path.mkdir(exist_ok=True)
    with RecordLog(tmp_path / f"run{known}", config) as log:
        smoothed().certify(
            IMAGES,
            n=500,
            known_class=CLASSES if known else None,
            on_certificate=lambda i, c, s: log.append(i, CLASSES[i], c, s),
        )
    return log


def test_records_and_tables_say_so(tmp_path):
    log = recorded(tmp_path, {"n0": 0, "known_class": True}, True)
    records = read_records(log.path)
    assert records.known_class
    assert records.n0.tolist() == [0] * 7
    curve = certify.curves.certified_accuracy(records, [0, 0.1])
    assert "| model (class known) | 7 |" in certify.curves.table({"model": curve})
    assert np.array_equal(recertify(records, nim_noise(), 0.001).radius, records.radius)
    assert recertify(records, nim_noise(), 0.001).known_class
    free = recorded(tmp_path, {"known_class": False, "bound": "a word of the caller's"}, False)
    assert not read_records(free.path).known_class
    assert "known_class" not in free.path.read_text().splitlines()[1]
    with pytest.raises(CertifyError, match="known_class is False, but True in the header"):
        recorded(tmp_path / "other", {"known_class": True}, False)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"known_class": 1}, "known_class"),
        ({"n0": 100}, "n0 = 100"),
        ({"selected": -1, "predict": -1, "radius": 0.0, "correct": 0}, "for class -1"),
        ({"known_class": False}, "only one has a known class"),
    ],
)
def test_records_that_contradict_themselves_are_refused(tmp_path, change, word):
    log = recorded(tmp_path, {}, True)
    rows = [json.loads(line) for line in log.path.read_text().splitlines()]
    for row in rows:
        del row["crc32"]
    rows[3] |= change
    log.path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    with pytest.raises(CertifyError, match=word):
        read_records(log.path)


@pytest.mark.parametrize("known", [[0, 1], [0.0] * 7, [3] * 7, [-1] * 7, "abc", [[0]] * 7], ids=repr)
def test_classes_that_are_none_are_refused_before_the_first_vote(known):
    with pytest.raises(CertifyError, match="known_class must be"):
        smoothed().certify(IMAGES, known_class=known)
