"""The ladder on two processes: each share is attacked as by itself, and the shares make one evaluation in the images' order."""

from dataclasses import replace

import psutil
import pytest
import torch
from torch import nn

from certdef.attacks import threat_ladder
from certdef.attacks.processes import APART, evaluate_on_processes, together
from certdef.attacks.system import System
from tests.certdef.test_ladder import SETTINGS, Noise
from tests.trained import digits_mlp

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = replace(SETTINGS, square_queries=0, decision_queries=0, steps=2, eot=2, resubmissions=2, processes=2)


@pytest.fixture(scope="module")
def system():
    model, images, labels = digits_mlp()
    return System(model, Noise(0.05)), images[:9], labels[:9]


def test_two_processes_are_two_evaluations_side_by_side(system):
    system, images, labels = system
    found = evaluate_on_processes(system, images, labels, FEW, seed=3)
    shares = [
        threat_ladder.evaluate(system, images[part], labels[part], FEW, seed=seed)
        for part, seed in ((slice(5), 3), (slice(5, 9), 3 + APART))
    ]
    assert [each.name for each in found] == [each.name for each in shares[0]]
    for whole, first, second in zip(found, *shares, strict=True):
        assert whole.right == first.right + second.right
        assert (whole.queries, whole.gradients) == (
            first.queries + second.queries,
            first.gradients + second.gradients,
        )
        assert whole.robust_accuracy == sum(whole.right) / 9
    assert found[-1].name == "worst_case"


class Fails(nn.Module):
    """Works in the process that made it alone."""

    def __init__(self):
        super().__init__()
        self.home = psutil.Process().pid

    def forward(self, images):
        if psutil.Process().pid != self.home:
            raise RuntimeError("no such device")
        return images


def test_an_error_elsewhere_is_raised_here_and_no_process_stays(system):
    system, images, labels = system
    with pytest.raises(RuntimeError, match="no such device"):
        evaluate_on_processes(replace(system, purifier=Fails()), images, labels, FEW)
    # loky's tracker of named semaphores is one of the interpreter's own and ends with it
    left = [
        each
        for each in psutil.Process().children(recursive=True)
        if "tracker" not in " ".join(each.cmdline())
    ]
    assert not left


def test_one_process_is_the_evaluation_itself_and_threads_are_as_before(system):
    system, images, labels = system
    one = replace(FEW, processes=1)
    threads = torch.get_num_threads()
    assert evaluate_on_processes(system, images, labels, one) == threat_ladder.evaluate(
        system, images, labels, one
    )
    assert torch.get_num_threads() == threads


def test_shares_that_were_attacked_differently_are_no_evaluation(system):
    system, images, labels = system
    found = threat_ladder.evaluate(system, images[:2], labels[:2], replace(FEW, processes=1))
    with pytest.raises(ValueError, match="one process"):
        together([found, found[:-2]])
