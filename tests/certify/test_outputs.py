"""A base classifier may hand out its scores in an output with several parts; where any may be meant it is refused."""

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import certify

Pair = namedtuple("Pair", "features scores")


@dataclass
class Output:
    loss: float
    logits: torch.Tensor


class Network(torch.nn.Module):
    """A linear classifier of four classes, whose logits (N, 4) come in some form."""

    def __init__(self, form: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.form = torch.nn.Linear(64, 4), form

    def forward(self, images: torch.Tensor) -> Any:
        return self.form(self.layer(images.flatten(1)))


def features(scores: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(scores), 9)


FORMS: dict[str, Callable[[torch.Tensor], Any]] = {
    "data class": lambda z: Output(0.1, z),
    "named tuple": lambda z: Pair(features(z), z),
    "dictionary": lambda z: {"scores": z, "hidden": features(z)},
    "dictionary of one": lambda z: {"out": z},
    "dictionary of other names": lambda z: {"a": features(z), "b": z},
    "tuple": lambda z: (z, features(z)),
    "tuple, second": lambda z: (features(z), z),
    "labels and scores": lambda z: (z.argmax(1), z.softmax(1)),
    "list of rows": list,
    "list of one": lambda z: [z],
    "tuple with a loss": lambda z: (torch.tensor(1.0), z),
    "tuple with nothing": lambda z: (z, None),
    "tuple with a dictionary": lambda z: (z, {"aux": z}),
    "sparse": lambda z: z.to_sparse(),
}


def votes(network: Network) -> list[Any]:
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    made = certify.SmoothedClassifier(network, certify.Gaussian(0.25), 4).certify(images, n=64, n0=8)
    return [list(each.counts) for each in made]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_the_scores_are_found_in_an_output(form: Any) -> None:
    assert votes(Network(form)) == votes(Network(lambda z: z))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda z: (z, z), r"a tuple with 0 \(\d+, 4\), 1 \(\d+, 4\), expected an array .*: pick that part"),
        (lambda z: {"a": z, "b": z}, r"a dict with a \(\d+, 4\), b"),
        (lambda z: None, r"a NoneType, expected an array"),
        (lambda z: "cat", r"a str, expected an array"),
        (lambda z: (), r"got shape \(0,\): check num_classes=4"),
        (lambda z: z.sum(), r"got shape \(\): check num_classes=4"),
        (lambda z: z.argmax(1).float(), r"labels must be integers, got torch.float32"),
        (lambda z: z.to(torch.complex64), r"a Tensor, expected an array"),
        (lambda z: z.t(), r"got shape \(4, \d+\): check num_classes=4"),
    ],
)
def test_what_may_be_any_of_several_parts_is_refused(form: Any, message: str) -> None:
    with pytest.raises(certify.CertifyError, match=message):
        votes(Network(form))
