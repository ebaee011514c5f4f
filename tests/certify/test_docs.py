"""The example of docs/certify.md runs as it stands, in fewer than 15 lines."""

import re
from pathlib import Path

import pytest
import torch

import certify
import surrogates

DOC = Path(__file__).parents[2] / "docs" / "certify.md"


@pytest.mark.acceptance
def test_the_example_runs_and_is_short(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example, *_ = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.S)
    assert len([line for line in example.splitlines() if line.strip()]) < 15
    exec(compile(example, str(DOC), "exec"), {})
    assert "| model | 6 |" in capsys.readouterr().out
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 7


def test_the_example_of_a_guide_runs():
    """The lines of the document, with a model, a denoiser and a ledger behind their names."""
    _, example, _ = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.S)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(20 * torch.eye(10, 64))
    image = torch.zeros(1, 8, 8)
    image[0, 0, 3] = 1.0
    paid = surrogates.open_target(model, num_classes=10)
    names = {"certify": certify, "noise": certify.nim_noise(), "image": image, "surrogate": model}
    names |= {"paid": paid, "denoiser": lambda noisy: noisy.clamp(0, 1)}
    exec(compile(example, str(DOC), "exec"), names)
    assert names["certificate"].prediction == 3
    assert names["certificate"].method == "guided"
    assert names["certificate"].subject == "target"


def test_the_example_of_a_new_version_runs(tmp_path, monkeypatch):
    """The lines of the document, with two versions of a model behind their names."""
    monkeypatch.chdir(tmp_path)
    *_, example = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.S)
    v1, v2 = (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10, bias=False)) for _ in range(2))
    with torch.no_grad():
        v1[1].weight.copy_(20 * torch.eye(10, 64))
        v2[1].weight.copy_(v1[1].weight + 0.1 * torch.randn(10, 64, generator=torch.manual_seed(0)))
    images = torch.zeros(2, 1, 8, 8)
    images[:, 0, 0, 3] = 1.0
    names = {"certify": certify, "noise": certify.Gaussian(0.3), "images": images, "v1": v1, "v2": v2}
    exec(compile(example, str(DOC), "exec"), names)
    assert [each.prediction for each in names["certificates"]] == [3, 3]
    assert all(each.n0 + each.n < 200 for each in names["certificates"])
