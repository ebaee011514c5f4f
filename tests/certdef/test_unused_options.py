"""Options that were changed and that nothing reads."""

import warnings
from dataclasses import replace

import pytest

from certdef import pipeline
from certdef.config.job import ConfigError, RunConfig, preset_names
from certdef.config.load import known_keys, load_config
from certdef.config.purifiers import own_names
from certdef.report.unused_options import (
    PURIFIER_SECTIONS,
    SELECTION,
    SOFT_LABELS,
    UnusedOption,
    unused_options,
)

# The purifiers that depend on each section, as the sections' documentation says.
USERS = {
    "nim": {"de3", "de3-simmim", "mim", "reversal"},
    "gs": {"gs", "ncis"},
    "blind_spot": {"ncis", "blind-spot"},
    "reversal": {"reversal"},
    "diffusion": {"one-step", "diffpure", "uad-rs", "agdm"},
}
CHANGED = {
    "nim": {"nim__epochs": 7},
    "gs": {"gs__sigma": 0.9},
    "blind_spot": {"blind_spot__epochs": 7},
    "reversal": {"reversal__epochs": 7},
    "diffusion": {"diffusion__epochs": 7},
}


def keys(lines):
    return [line.partition(" is ")[0] for line in lines]


@pytest.mark.parametrize("preset", preset_names())
def test_a_preset_has_no_unused_option(preset):
    assert unused_options(load_config(preset)) == []


@pytest.mark.parametrize("section", PURIFIER_SECTIONS)
def test_a_section_is_read_where_a_purifier_depends_on_it(section):
    changed = load_config(**CHANGED[section])
    for purifier in own_names():
        config = replace(changed, purifier=purifier)
        assert bool(unused_options(config)) == (purifier not in USERS[section]), (purifier, section)


CASES = [
    ({"diffusion__t": 50, "purifier": "one-step"}, ["diffusion.t"]),
    ({"diffusion__t": 50, "purifier": "diffpure"}, []),
    ({"diffusion__grid": [10, 20], "purifier": "uad-rs"}, []),
    ({"diffusion__epochs": 5, "diffusion__pretrained": "x", "purifier": "one-step"}, ["diffusion.epochs"]),
    ({"blind_spot__iterations": 2, "purifier": "blind-spot"}, ["blind_spot.iterations"]),
    ({"reversal__tasks": ["rotation"], "nim__epochs": 7, "purifier": "reversal"}, ["nim.epochs"]),
    ({"surrogate__model": "nim", "nim__epochs": 7, "purifier": "gs"}, []),
    ({"gs__passes": 2, "purifier": "python:not.there:factory"}, ["gs.passes"]),  # nothing is imported
    ({"gs__passes": 2, "ladder__systems": ["gs"]}, ["gs.passes", "ladder.systems"]),
    ({"gs__passes": 2, "ladder__systems": ["gs"], "ladder__enabled": True}, []),
    ({"attack__sigma_255": 50.0, "purifier": "gs"}, ["attack.sigma_255"]),
    ({"surrogate__rounds": 3}, ["surrogate.rounds"]),
    ({"surrogate__rounds": 3, "surrogate__strategy": "margin"}, []),
    ({"surrogate__features": "nim", "surrogate__strategy": "margin"}, ["surrogate.features"]),
    ({"surrogate__unlabelled_weight": 0.5}, ["surrogate.unlabelled_weight"]),
    ({"certify__backend": "loky", "certify__workers": 3, "certify__scheduler": "x"}, ["certify.scheduler"]),
    ({"data__root": "x", "data__audit_images": 5}, ["data.root", "data.audit_images"]),
    ({"target__uri": "m.onnx", "target__kind": "cnn"}, ["target.kind"]),
    ({"target__uri": "m.onnx", "target__canary_every": 0, "ledger__canary": 5}, ["ledger.canary"]),
    ({"preset": "udc", "target__uri": "m.onnx", "udc__epochs": 3}, ["target.uri"]),
    ({"preset": "udc", "diffusion__guidance": 5.0, "diffusion__epochs": 9}, ["diffusion.guidance"]),
    (
        {"preset": "ducd-fashion-mnist", "ladder__enabled": True, "gs__passes": 2},
        ["gs.passes", "ladder.enabled"],
    ),
    ({"udc__size": 16, "ducd__candidates": 5}, ["ducd.candidates", "udc.size"]),
]


@pytest.mark.parametrize(("values", "unused"), CASES, ids=[str(values) for values, _ in CASES])
def test_unused_options_are_found_and_only_they(values, unused):
    assert keys(unused_options(load_config(**values))) == unused


def test_a_verb_may_read_more_or_less():
    config = load_config(purifier="gs", nim__epochs=7, surrogate__rounds=3)
    assert keys(unused_options(config)) == ["surrogate.rounds", "nim.epochs"]
    assert keys(unused_options(config, "pretrain")) == ["surrogate.rounds"]
    assert keys(unused_options(config, "budgets")) == ["nim.epochs"]
    keep = load_config(nim__keep=0.1, surrogate__model="nim")
    assert keys(unused_options(keep)) == []
    assert keys(unused_options(keep, "pretrain")) == ["nim.keep"]
    assert keys(unused_options(replace(keep, purifier="gs"))) == ["nim.keep"]
    leaves = load_config(nim__keep=0.1, seed=3)
    assert keys(unused_options(leaves, "leaves")) == ["nim.keep"]
    assert keys(unused_options(config, "serve")) == ["surrogate.rounds", "purifier", "nim.epochs"]


def test_the_rules_name_options_that_exist():
    known = set(known_keys())
    assert {*SELECTION, *SOFT_LABELS, *PURIFIER_SECTIONS} <= known


def test_a_password_is_not_shown():
    (line,) = unused_options(load_config("udc", target__uri="https://me:hunter2@host/invocations"))
    assert "hunter2" not in line


def test_a_job_from_python_warns():
    config = replace(load_config(surrogate__rounds=3), data=replace(RunConfig().data, name="mnist"))
    with (
        pytest.warns(UnusedOption, match=r"surrogate\.rounds is 3"),
        pytest.raises(ConfigError, match="unknown data set"),
    ):
        pipeline.distill(config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConfigError, match="unknown data set"):
            pipeline.budgets(config, [100], ["margin"])
