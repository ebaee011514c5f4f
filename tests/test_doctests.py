"""The examples of docstrings: they say what they do, and the main names have one."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import certdef
import certify
import surrogates

HERE = Path(__file__).parents[1]
# Every module with an example: none is forgotten.
MODULES = sorted(
    path.relative_to(HERE).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for room in ("certify", "surrogates", "certdef")
    for path in (HERE / room).rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
HAVE_ONE = (
    certify.Brightness,
    certify.Certificates,
    certify.Gaussian,
    certify.Laplace,
    certify.Records.of,
    certify.SmoothedClassifier,
    certify.Uniform,
    certify.binomial_interval,
    certify.binomial_lower_bound,
    certify.certify_votes,
    certify.curves.certified_accuracy,
    certify.nim_noise,
    surrogates.Bill,
    surrogates.Fidelity,
    surrogates.QueryLedger,
    surrogates.open_target,
    certdef.load_config,
    certdef.plot,
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_say_what_they_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = import_module(name)
    names = (
        vars(certify) | vars(surrogates) | vars(module)
    )  # what `from certify import *` has, as a reader would
    failed, tried = doctest.testmod(module, extraglobs=names, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried
    assert not failed


@pytest.mark.parametrize("thing", HAVE_ONE, ids=lambda thing: thing.__qualname__)
def test_the_main_names_have_an_example(thing: object) -> None:
    assert "Examples:" in thing.__doc__
    assert doctest.DocTestParser().get_examples(thing.__doc__)


def test_a_wrong_example_fails() -> None:
    [planted] = doctest.DocTestFinder().find(type("Planted", (), {"__doc__": ">>> 1 + 1\n3"}), "planted")
    assert doctest.DocTestRunner(verbose=False).run(planted, out=lambda _: None).failed == 1
