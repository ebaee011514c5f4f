import math
import os
import sys
from dataclasses import replace

import pytest
import timm
import torch
from timm.models import _registry

import certify
from certdef.config import load, threads
from certdef.config.checks import failures
from certdef.config.job import CertifyConfig, ConfigError, RunConfig, SurrogateConfig, flatten, preset_names
from certdef.config.load import ALIASES, explain, known_keys, load_config
from certdef.config.names import (
    CHOICES,
    CORRUPTIONS,
    DATA_SETS,
    FILLS,
    TARGET_CHOICES,
    is_choice,
    surely_unknown,
    timm_names,
    unknown_names,
)
from certdef.config.noise_laws import noise_law
from certdef.data.named import NAMED, data_root
from certdef.data.sets import load_data
from certify.threats import fills, population
from certify.voting.parallel import BACKENDS
from surrogates.distillation.losses import LOSSES
from surrogates.distillation.selection import STRATEGIES
from surrogates.distillation.training import PRECISIONS
from surrogates.targets.kinds import OUTPUT_KINDS
from surrogates.targets.layouts import LAYOUTS
from surrogates.targets.pixel_options import COLORS, DTYPES
from surrogates.targets.uris import PROTOCOLS
from tests.test_rooms import loaded_by


def test_defaults_are_the_digits_preset():
    assert load_config("digits") == RunConfig()


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_resolves_to_its_own_name(preset):
    assert load_config(preset).preset == preset


def test_file_then_overrides(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("certify: {n: 3000, alpha: 0.01}\nattack: {eps: [0.05]}\n")
    config = load_config(file=path, certify__n=4000, seed=3)
    assert (config.certify.n, config.certify.alpha, config.attack.eps, config.seed) == (
        4000,
        0.01,
        (0.05,),
        3,
    )
    assert config.certify.n0 == RunConfig().certify.n0


def test_the_printed_file_reads_back_as_the_same_configuration(tmp_path):
    from certdef.cli import as_yaml

    config = load_config("fashion-mnist", certify__alpha=0.01)
    (tmp_path / "all.yaml").write_text(as_yaml(config))
    assert load_config(file=tmp_path / "all.yaml") == config


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("[no, yes]", ["no", "yes"]),
        ("[007, 010, 1.10]", ["007", "010", "1.10"]),
        ("[null, ~, 1e3, 2024-01-01, .inf, 12:30]", ["null", "~", "1e3", "2024-01-01", ".inf", "12:30"]),
        ("[0, '1', cat]", ["0", "1", "cat"]),
        ("{no: 0, 010: 1}", {"no": 0, "010": 1}),
    ],
)
def test_names_are_what_was_written(tmp_path, written, names):
    from certdef.cli import as_yaml

    given = load_config(target__uri="x.yaml", target__classes=written)
    assert given.target.classes == names
    for number, text in enumerate(
        (
            f"target:\n  uri: x.yaml\n  classes: {written}\n",
            f"target.uri: x.yaml\ntarget.classes: {written}\n",
        )
    ):
        (tmp_path / f"{number}.yaml").write_text(text)
        assert load_config(file=tmp_path / f"{number}.yaml").target.classes == names
    (tmp_path / "all.yaml").write_text(as_yaml(given))
    assert load_config(file=tmp_path / "all.yaml").target.classes == names
    if isinstance(names, list):
        columns = load_config(target__uri="x.yaml", target__columns=written).target.columns
        assert columns == names


def test_names_are_taken_as_written_beside_an_alias_and_under_a_short_name(tmp_path):
    (tmp_path / "job.yaml").write_text("target: {uri: x.yaml, quantise: 8, classes: [off, on]}\n")
    assert load_config(file=tmp_path / "job.yaml").target.classes == ["off", "on"]
    parser = load.config_parser("digits")
    for option in (
        ["--classes", "[off, on]"],
        ["--target-classes=[off, on]"],
        ["--target={classes: [off, on]}"],
    ):
        assert load.parse(parser, option).target.classes == ["off", "on"]
    assert load.parse(parser, ["--target.classes+=no", "--target.classes+=x"]).target.classes == ["no", "x"]


BAD = [
    (
        {"target__headers": "v2"},
        "target.headers is v2",
        "use a mapping of texts, e.g. '{X-Model: v2}' or null",
    ),
    (
        {"target__classes": "cat,dog"},
        "target.classes is cat,dog",
        "use a list of texts, e.g. [cat,dog] or a mapping",
    ),
    (
        {"target__classes": "[cat: 0, dog: 1]"},
        "target.classes is [{",
        "use a list of texts, e.g. [cat,dog] or a mapping",
    ),
    ({"certify__radii": []}, "certify.radii", "at least one radius"),
    ({"certify__radii": 0.5}, "certify.radii is 0.5", "use a list, e.g. [0.25, 0.5]"),
    ({"certify__n": 1000.5}, "certify.n is 1000.5", "use a whole number"),
    ({"target__classes": "cat"}, "target.classes is cat", "use a list of texts, e.g. [cat,dog] or a mapping"),
    (
        {"data__resize": "32x32"},
        "data.resize is 32x32",
        "use a whole number or two whole numbers, e.g. [224,224] or null",
    ),
    ({"target__concurrency": "x"}, "target.concurrency is x", "use a whole number or null"),
    ({"target__pixel_range": 255}, "target.pixel_range is 255", "use two numbers, e.g. [0,255] or null"),
    ({"target__classes": "cat"}, "target.classes is cat", "use a list of texts, e.g. [cat,dog] or a mapping"),
    ({"target__headers": "{X: 1}"}, "target.headers is {'X': 1}", "use a mapping of texts"),
    ({"target__mean": "[nan, 0]"}, "target.mean is ['nan', 0]", "use a list of numbers"),
    ({"attack__eps": [0.1, 0.1]}, "attack.eps", "each distance once"),
    (
        {"certify__laws": [{"label": "a", "scale_255": 3}, {"label": "A", "scale_255": 6}]},
        "['a', 'A']",
        "whatever the case",
    ),
    ({"threads": 0}, "threads is 0", "use at least 1"),
    ({"certify__alpha": 2}, "certify.alpha", "0.001"),
    ({"certify__alpha": 0}, "certify.alpha", "0.001"),
    ({"certify__n": 5}, "certify.n", "n=10"),
    ({"certify__nn": 5}, "certify.nn", "'certify.n'"),
    ({"certfy": 5}, "certfy", "'certify'"),
    ({"device": "tpu"}, "tpu", "cpu or cuda"),
    ({"ledger__training": 0}, "ledger.training", "at least 1"),
    ({"ledger__training": 20}, "ledger.training", "first batch"),
    ({"ledger__attack": -1}, "ledger.attack", "at least 1"),
    ({"attack__eps": [8]}, "attack.eps", "8/255"),
    ({"nim__heads": 5}, "nim.heads", "multiple"),
    ({"certify__laws": []}, "certify.laws", "at least one"),
    ({"certify__laws": [{"label": "a", "scale_255": 0}]}, "scale_255", "8-bit"),
    ({"certify__n": "many"}, "certify.n", "many"),
    ({"certify__laws": [{"label": "U(0, 30)"}]}, "'U(0, 30)'", "e.g. U-0-30"),
    ({"certify__laws": [{"label": "sigma=0.25"}]}, "'sigma=0.25'", "e.g. sigma-0.25"),
    ({"certify__laws": [{"label": "a/b"}]}, "'a/b'", "e.g. a-b"),
    ({"certify__laws": [{"label": "../up"}]}, "'../up'", "e.g. up"),
    ({"certify__laws": [{"label": "x" * 51}]}, "xxx", "up to 50 letters"),
    ({"certify__laws": [{"label": ""}]}, "''", "e.g. law"),
    ({"tracking__registered_model": "mine/digits"}, "registered_model", "no name with / or :"),
    ({"preset": "digts"}, "digts", "did you mean 'digits'"),
]


@pytest.mark.parametrize(("values", "name", "remedy"), BAD, ids=[str(case[0]) for case in BAD])
def test_bad_values_are_named_with_a_remedy(values, name, remedy):
    with pytest.raises(ConfigError) as error:
        load_config(**values)
    assert name in str(error.value)
    assert remedy in str(error.value)
    assert "\n" not in str(error.value)


def test_all_unusable_values_are_named_at_once():
    with pytest.raises(ConfigError) as error:
        load_config(device="tpu", certify__alpha=2, nim__heads=5)
    device, alpha, heads = str(error.value).splitlines()
    assert device == "device is 'tpu': use auto, cpu or cuda (did you mean 'cpu'?)"
    assert alpha.startswith("certify.alpha is 2.0: ")
    assert heads.startswith("nim.heads is 5: ")


def test_the_methods_and_the_smallest_n_are_those_of_certify():
    smallest = certify.bounds.smallest_n(0.5000001, 0.01)
    assert load_config(certify__n=smallest, certify__alpha=0.01).certify.n == smallest
    with pytest.raises(ConfigError, match=rf"certify\.n is {smallest - 1}: .* below n={smallest}"):
        load_config(certify__n=smallest - 1, certify__alpha=0.01)
    for method in certify.sampling.METHODS:
        assert load_config(certify__method=method).certify.method == method
    with pytest.raises(ConfigError, match="use one of fixed, two_sided"):
        load_config(certify__method="fixd")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"guide": "decide", "method": "two_sided"}, "certify.guide is 'decide': .* not by method two_sided"),
        ({"guide": "decide", "known_class": True}, "certify.known_class is True: a guide chooses the class"),
        ({"bound": "exact"}, "certify.bound is 'exact': use clopper_pearson or randomized"),
        ({"bound": "randomized"}, "certify.bound is 'randomized': .* --certify.method fixed"),
        ({"bound": "randomized", "method": "fixed", "guide": "decide"}, "certify.bound is 'randomized'"),
    ],
)
def test_kinds_of_certificates_that_do_not_go_together_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        load_config(**{f"certify__{name}": value for name, value in settings.items()})


def test_kinds_of_certificates_that_go_together_are_taken_and_unset_ones_leave_no_trace():
    for method in ("fixed", "group_sequential_two_sided"):
        assert load_config(certify__guide="decide", certify__method=method).certify.stops_early
    options = load_config(
        certify__known_class=True, certify__bound="randomized", certify__method="fixed"
    ).certify
    assert (options.selection, options.stops_early) == (0, False)
    assert {"known_class", "bound"} <= options.settings.keys()
    plain = load_config(certify__method="fixed").certify
    assert not {"known_class", "bound"} & plain.settings.keys()
    assert load_config().certify.method == "group_sequential_two_sided"


@pytest.mark.parametrize(
    ("key", "names"),
    {
        "certify.method": certify.sampling.METHODS,
        "certify.bound": certify.sampling.BOUNDS,
        "certify.backend": BACKENDS,
        "surrogate.strategy": STRATEGIES,
        "surrogate.loss": ("auto", *LOSSES),
        "surrogate.precision": PRECISIONS,
        "nim.precision": PRECISIONS,
        "target.output_kind": OUTPUT_KINDS,
        "target.protocol": PROTOCOLS,
        "target.layout": LAYOUTS,
        "target.dtype": DTYPES,
        "target.color": COLORS,
        "data.name": NAMED,
        "robustness.corruptions": population.CORRUPTIONS,
        "fill": (*fills.FILLS, "mim", "leaves"),
    }.items(),
)
def test_the_names_of_options_are_those_of_what_is_built_by_them(key, names):
    """certify and surrogates import nothing of certdef: both lists are written down."""
    more = {"data.name": DATA_SETS, "robustness.corruptions": CORRUPTIONS, "fill": FILLS}
    assert (CHOICES | TARGET_CHOICES | more)[key] == tuple(names)


def test_every_choice_is_an_option_and_its_default_one_of_the_names():
    values = flatten(RunConfig().to_dict())
    assert all(is_choice(RunConfig(), key) for key in CHOICES)
    assert {*CHOICES, *TARGET_CHOICES} <= values.keys()


def test_timms_models_are_known_without_timm(monkeypatch):
    """Each that timm has, also by its former name, and with the name of weights; and none that it lacks."""
    registered = [*_registry._model_entrypoints]
    assert len(registered) > 1_300
    assert {*timm.list_models()} <= {*timm_names()}
    monkeypatch.delitem(sys.modules, "timm")
    assert [name for name in registered if surely_unknown(name)] == []
    assert not surely_unknown("resnet50.a1_in1k")
    assert all(map(surely_unknown, ("rsenet", "resnet1800", "resnets.a1_in1k", "a(b")))


def test_a_model_that_a_user_has_registered_is_known(monkeypatch):
    assert surely_unknown("registered_by_hand")
    monkeypatch.setitem(_registry._model_entrypoints, "registered_by_hand", torch.nn.Flatten)
    assert not surely_unknown("registered_by_hand")


def test_a_purifier_of_foreign_code_may_bring_models():
    config = replace(RunConfig(), surrogate=SurrogateConfig(model="rsenet"))
    assert len(unknown_names(config)) == 1
    assert unknown_names(replace(config, purifier="python:mine.purifiers:build")) == []


@pytest.mark.parametrize("power", range(2, 30))
def test_the_smallest_n_is_that_of_certify(power):
    for alpha in (2.0**-power, 0.7 * 2.0**-power, 1.3 * 2.0**-power):
        least = certify.bounds.smallest_n(math.nextafter(0.5, 1), alpha)
        config = replace(RunConfig(), certify=CertifyConfig(n=least, alpha=alpha))
        assert "certify" not in failures(config)
        config = replace(config, certify=replace(config.certify, n=least - 1))
        assert f"below n={least}" in failures(config)["certify"][0]


def test_a_preset_is_read_without_torch():
    for preset in preset_names():
        code = f"from certdef.config.load import load_config\nload_config({preset!r}, certify__n0=50)"
        assert not loaded_by(code) & {"torch", "numpy", "certify"}, preset


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_can_certify(preset):  # it is not checked when it is loaded, which needs no torch
    config = load_config(preset).certify
    assert config.method in certify.sampling.METHODS
    assert config.n >= certify.bounds.smallest_n(0.5000001, config.alpha)


def test_weights_of_a_diffusion_model_are_another_spelling_of_pretrained():
    assert load_config(diffusion__weights="folder").diffusion.pretrained == "folder"


@pytest.mark.parametrize(
    "alias", [each for each in ALIASES if each != "diffusion.weights"]
)  # which is no number
def test_other_spellings_of_an_option_are_accepted(alias, tmp_path):
    section, name = alias.split(".")
    field = ALIASES[alias].split(".")[1]
    assert ALIASES[alias] in known_keys()
    uri = {"target__uri": "model.onnx"}  # quantize is for a target of one's own

    def value(config):
        return getattr(getattr(config, section), field)

    assert value(load_config(**uri, **{f"{section}__{name}": 5})) == 5
    assert value(load_config(**uri, **{f"{section}__{field}": 5})) == 5
    assert value(load_config(**uri, **{f"{section}-{name.replace('_', '-')}": 5})) == 5
    path = tmp_path / "old.yaml"
    path.write_text(f"nim: {{base_learning_rate: 6e-4}}\n{section}:\n  {name}: 5\nseed: 3\n")
    config = load_config(file=path, **uri)
    assert (value(config), config.seed, config.nim.base_learning_rate) == (5, 3, 6e-4)
    path.write_text(f"{name}: 5\n")
    for given in (str(path), f"{{{name}: 5}}"):  # the section's own file, or a mapping
        assert value(load_config(**uri, **{section: given})) == 5
    path.write_text(f"{section}: {{{name}: 5, sede: 1}}\n")
    with pytest.raises(ConfigError, match="unknown key"):
        load_config(file=path)


LIMITS = [
    ({"cpus": 8, "quota": "max 100000", "omp": None}, 8),
    ({"cpus": 8, "quota": "200000 100000", "omp": None}, 2),
    ({"cpus": 8, "quota": "150000 100000", "omp": None}, 1),
    ({"cpus": 8, "quota": "50000 100000", "omp": None}, 1),  # less than one processor is still one thread
    ({"cpus": 2, "quota": "400000 100000", "omp": None}, 2),
    ({"cpus": 8, "quota": None, "omp": "3"}, 3),
    ({"cpus": 8, "quota": "600000 100000", "omp": "4,2"}, 4),
    ({"cpus": 8, "quota": None, "omp": "all"}, 8),
    ({"cpus": 2, "quota": None, "omp": "64"}, 2),
]


@pytest.mark.parametrize(("limits", "allowed"), LIMITS)
def test_threads_keep_to_affinity_quota_and_environment(limits, allowed, monkeypatch, tmp_path):
    file = tmp_path / "cpu.max"
    if limits["quota"]:
        file.write_text(limits["quota"] + "\n")
    monkeypatch.setattr(threads, "CPU_MAX", file)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(limits["cpus"])))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if limits["omp"]:
        monkeypatch.setenv("OMP_NUM_THREADS", limits["omp"])
    assert threads.allowed_threads() == allowed


def test_small_images_get_one_thread_unless_threads_are_named():
    before = torch.get_num_threads()
    for count, values, used in [(None, 64, 1), (None, 256, 1), (None, 784, 2), (2, 64, 2)]:
        with threads.torch_threads(2):
            threads.fit_threads(count, values)
            assert torch.get_num_threads() == used
        assert torch.get_num_threads() == before


def test_unknown_keys_in_a_file(tmp_path):
    path = tmp_path / "bad.yaml"
    for text, key in [
        ("certify: {alhpa: 0.1}", "alhpa"),
        ("certify: {laws: [{label: a, scael_255: 1}]}", "scael_255"),
        ("sede: 1", "sede"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=rf"unknown key '.*{key}' \(did you mean"):
            load_config(file=path)


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_config(file="nowhere.yaml")


def test_explain_keeps_other_messages_on_one_line():
    assert explain('Parser key "a":\n  Expected a number', []) == '"a": Expected a number'


def test_unknown_law_family():
    from dataclasses import replace

    with pytest.raises(ConfigError, match=r"no continuous scipy\.stats law"):
        noise_law(replace(RunConfig().certify.laws[0], family="gama"))
    with pytest.raises(ConfigError, match="law 'nim'"):
        noise_law(replace(RunConfig().certify.laws[0], shape=(1.0, 2.0, 3.0)))


def test_data_errors(tmp_path, monkeypatch):
    from dataclasses import replace

    data = RunConfig().data
    with pytest.raises(ConfigError, match="unknown data set 'mnist'"):
        load_data(replace(data, name="mnist"), 0)
    with pytest.raises(ConfigError, match=r"data\.pool_images is 9999"):
        load_data(replace(data, pool_images=9999), 0)
    monkeypatch.delenv("CERTDEF_DATA_ROOT", raising=False)
    with pytest.raises(ConfigError, match="CERTDEF_DATA_ROOT"):
        data_root(replace(data, root=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="idx files"):
        load_data(replace(data, name="fashion-mnist", root=str(tmp_path)), 0)


def test_passwords_in_addresses_are_not_published():
    config = load_config(tracking__uri="postgresql://me:hunter2@db/mlflow")
    assert "hunter2" in config.tracking.uri
    assert "hunter2" not in str(config.public_dict())
    assert config.public_dict()["tracking"]["uri"] == "postgresql://…@db/mlflow"
    assert config.public_dict() == config.to_dict() | {"tracking": config.public_dict()["tracking"]}
