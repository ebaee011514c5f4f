"""A job on your own target without a preset: what is not set follows the images, and what is set stays."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import certdef
import certify
import surrogates
from certdef.cli import main
from certdef.config import own_target
from certdef.config.checks import check
from certdef.config.job import CertifyConfig, ConfigError, RunConfig, TargetConfig, flatten
from certdef.config.load import load_config
from certdef.config.noise_laws import noise_law
from certdef.config.own_target import Facts, resolved
from certdef.models.classifiers import build_classifier
from certdef.objects.following import followed
from certdef.objects.named import named
from certdef.stages.attack import check_attack_budget
from certdef.stages.conditions import conditions, target_draws
from certify import binomial_lower_bound
from surrogates.distillation.inference import PASS_BYTES, images_at_once, predict

OWN = RunConfig(preset="own", target=TargetConfig(uri="model.onnx"))
SIZES = [
    Facts((1, 8, 8), 1_797),
    Facts((1, 28, 28), 70_000, tests=10_000),
    Facts((3, 32, 32), 60),
    Facts((3, 31, 45), 500),
    Facts((3, 64, 64), 2_100),
    Facts((3, 224, 224), 20),
    Facts((3, 224, 224), 5_000),
    Facts((3, 227, 227), 4),
    Facts((1, 512, 512), 100),
]


class TestRules:
    @pytest.mark.parametrize("facts", SIZES, ids=str)
    @pytest.mark.parametrize("alone", [False, True])
    def test_every_size_gives_a_job_that_can_be_done(self, facts, alone):
        facts = replace(facts, alone=alone)
        config = resolved(OWN, facts)
        check(config)
        heldout, pool = config.data.heldout_images, config.data.pool_images
        assert heldout <= (facts.tests or facts.images)
        assert heldout + pool <= facts.images
        assert (pool == 0) == (config.surrogate.model == "none") == alone
        assert target_draws(config) == config.certify.n  # the budget is what the votes may take
        if not alone:
            check_attack_budget(config, heldout)
            build_classifier(config.surrogate.model, facts.shape, 5)
            assert config.ledger.training <= pool
            assert config.surrogate.query_batch <= config.ledger.training
        assert 4 * math.prod(facts.shape) * config.certify.batch_size <= max(
            PASS_BYTES, 32 * math.prod(facts.shape)
        )

    @pytest.mark.parametrize("facts", SIZES, ids=str)
    def test_the_radii_are_within_reach(self, facts):
        config = resolved(OWN, facts)
        certify = config.certify
        best = binomial_lower_bound(certify.n, certify.n, certify.alpha)
        assert max(certify.radii) <= noise_law(certify.laws[0]).radius(best)

    def test_a_budget_is_the_most_that_the_votes_can_take(self):
        for purifier in ("gs", "none"):
            config = resolved(replace(OWN, purifier=purifier), SIZES[5])
            paid = sum(each.paid for each in conditions(config))
            votes = config.certify.n0 + config.certify.n
            assert config.ledger.certification == paid * config.certify.target_images * votes

    def test_what_was_set_stays_and_the_rest_follows_it(self):
        set_by_user = replace(OWN, certify=replace(OWN.certify, n=300, target_images=7))
        config = resolved(set_by_user, SIZES[5])
        assert (config.certify.n, config.certify.target_images) == (300, 7)
        assert config.ledger.certification == 7 * 2 * (32 + 300)

    def test_a_value_that_was_set_to_the_default_stays_where_the_parser_knows(self):
        facts = SIZES[5]
        assert resolved(OWN, facts).certify.n != CertifyConfig.n
        assert resolved(OWN, facts, chosen={"certify.n"}).certify.n == CertifyConfig.n

    def test_each_rule_names_an_option_and_a_reason(self):
        keys = [rule.key for rule in own_target.RULES]
        assert len(set(keys)) == len(keys)
        assert set(keys) <= flatten(RunConfig().to_dict()).keys()
        assert all(rule.reason for rule in own_target.RULES)

    def test_a_named_preset_and_other_jobs_are_left_alone(self):
        for config in (
            RunConfig(target=TargetConfig(uri="model.onnx")),
            load_config("digits", target__uri="model.onnx"),
            load_config("cifar10", target__uri="model.onnx"),
            load_config(),
        ):
            assert not own_target.applies(config)
        assert own_target.applies(load_config(target__uri="model.onnx"))
        assert not own_target.applies(load_config(target__uri="model.onnx", ducd__enabled=True))


def test_large_images_go_through_a_network_in_small_batches():
    assert images_at_once((3, 32, 32), 256) == 256
    assert images_at_once((3, 224, 224), 256) == 32
    assert images_at_once((3, 2000, 2000), 256) == 8
    sizes = []

    class Watching(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            return images.flatten(1)[:, :2]

    images = torch.rand(70, 3, 224, 224)
    assert torch.equal(predict(Watching(), images, 256), images.flatten(1)[:, :2])
    assert sizes == [32, 32, 6]


@pytest.fixture(scope="module")
def linear() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (40, 1, 8, 8), their labels, and the weights (64, 10) of a classifier of them."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    model = LogisticRegression(max_iter=300).fit(images[:900].reshape(900, -1), digits.target[:900])
    return images[1000:1040], digits.target[1000:1040], model.coef_.T.astype(np.float32)


@pytest.fixture
def served(linear: Any, store: str, tmp_path: Path) -> list[str]:
    """The options of a job on an ONNX file and an .npz, beside the verb."""
    import onnx
    from onnx import TensorProto, helper

    images, labels, weights = linear
    np.savez(tmp_path / "images.npz", images=images, labels=labels, class_names=np.array([*"0123456789"]))
    nodes = [helper.make_node("Flatten", ["x"], ["rows"]), helper.make_node("MatMul", ["rows", "w"], ["y"])]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])
    held = [helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.ravel())]
    graph = helper.make_graph(nodes, "linear", [given], [answer], held)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8),
        tmp_path / "model.onnx",
    )
    return [
        "--target.uri=model.onnx",
        "--target.output_kind=logits",
        "--data.path=images.npz",
        f"--tracking.uri={store}",
        "--tracking.system_metrics=false",
        "--purifier=gs",
        "--certify.target_images=4",
        "--certify.n=200",
    ]


class TestCertifyAlone:
    def test_nothing_is_trained_and_the_same_command_pays_nothing(self, served, tmp_path, capsys):
        assert main(["certify", *served, "--quiet"]) == 0
        printed = capsys.readouterr()
        lines = [line for line in printed.out.splitlines() if line.startswith("certified   target")]
        assert ["(behind gs, 4 images" in line for line in lines] == [True, False]
        assert "(without a denoiser, 4 images" in lines[1]
        assert "surrogate" not in printed.out
        (folder,) = (tmp_path / "runs").iterdir()
        stages = {each.name.rpartition("-")[0] for each in folder.iterdir() if each.is_dir()}
        assert stages - {""} == {"target", "purifier-gs", "certify"}
        page = (folder / "report.html").read_text()
        assert "Nothing was trained" in page
        assert "certificates-target" in page
        records = sorted(each.name for each in next(folder.glob("certify-*")).glob("records/*.jsonl"))
        assert records == ["target-constant-gs.jsonl", "target-constant-none.jsonl"]
        assert main(["certify", *served, "--quiet"]) == 0
        again = capsys.readouterr().out
        assert "reused" in again
        spent = [line for line in printed.out.splitlines() if line.startswith("queries")]
        assert spent == [line for line in again.splitlines() if line.startswith("queries")]
        assert not {"training", "attack"} & {*spent[0].split()}  # budgets of what such a job never does
        assert ">attack<" not in page

    def test_an_option_of_the_surrogate_brings_it_back(self, served, capsys):
        options = [*served, "--surrogate.epochs=5", "--certify.images=4", "--quiet"]
        assert main(["certify", *options]) == 0
        assert "certified   surrogate" in capsys.readouterr().out

    def test_the_summary_names_the_purifier_that_followed_from_the_images(self, served, capsys):
        options = [*(each for each in served if "purifier" not in each), "--quiet", "--attack.images=4"]
        assert main(["run", *options, "--surrogate.epochs=5", "--certify.images=4", "--attack.steps=2"]) == 0
        printed = capsys.readouterr().out
        assert ", behind de3-leaves " in printed
        assert "De^3" not in printed

    def test_purifier_none(self, served, tmp_path, capsys):
        options = [
            *(each for each in served if not each.startswith("--purifier")),
            "--purifier=none",
            "--quiet",
        ]
        assert main(["run", *options, "--surrogate.epochs=5", "--certify.images=4", "--attack.steps=2"]) == 0
        printed = capsys.readouterr().out
        assert "attack      PGD" in printed
        assert "behind" not in printed
        page = next((tmp_path / "runs").glob("*/report.html")).read_text()
        assert "without a denoiser" in page
        assert main(["purify", *options]) == 2
        assert "purifier is none: there is nothing to purify with" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["attack", "--surrogate.model=none"], "attacks are computed on a surrogate"),
            (["distill", "--surrogate.model=none"], "nothing is distilled"),
            (["run", "--surrogate.model=none", "--ladder"], "attacks are computed on a surrogate"),
            (["certify", "--surrogate.model=none", "--certify.guide=decide"], "a guide is a surrogate"),
            (["run", "--surrogate.model=none", "--purifier=reversal"], "made for the surrogate"),
        ],
    )
    def test_what_needs_a_surrogate_is_refused_before_anything_is_paid(
        self, arguments, expected, served, tmp_path, capsys
    ):
        verb, *options = arguments
        assert main([verb, *served, *options, "--quiet"]) == 2
        assert expected in capsys.readouterr().err
        assert not [*tmp_path.glob("runs/*/ledger.db")]


@pytest.fixture
def old_version(served, tmp_path) -> str:
    """The option that names an old version of the served model: its weights, a little off."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(tmp_path / "model.onnx")
    (weights,) = model.graph.initializer
    off = numpy_helper.to_array(weights) + np.random.default_rng(0).normal(0, 0.02, (64, 10)).astype(
        np.float32
    )
    weights.CopyFrom(numpy_helper.from_array(off, "w"))
    onnx.save(model, tmp_path / "old.onnx")
    return "--certify.baseline=old.onnx"


def votes_of(folder: Path) -> tuple[int, set[str | None]]:
    """Votes of all records under a folder, and their methods."""
    records = [certify.read_records(path) for path in folder.rglob("records/*.jsonl")]
    return int(sum(each.n0.sum() + each.counts.sum() for each in records)), {each.method for each in records}


class TestBaseline:
    def test_an_old_version_saves_votes_and_needs_no_surrogate(self, served, old_version, tmp_path, capsys):
        options = [*served, "--certify.radii=[0.1]", "--certify.n=1000", "--quiet", "--certify.choose=off"]
        assert main(["certify", *options, "--work_dir=scratch"]) == 0
        guided = [*options, old_version, "--certify.guide=decide", "--work_dir=guided"]
        assert main(["certify", *guided]) == 0
        printed = capsys.readouterr().out
        assert "surrogate" not in printed
        scratch, with_old = votes_of(tmp_path / "scratch"), votes_of(tmp_path / "guided")
        assert with_old[1] == {"guided"}
        assert with_old[0] < 0.7 * scratch[0]
        assert main(["certify", *guided]) == 0
        assert "reused" in capsys.readouterr().out
        # another old version is another stage, and what is paid for already is not paid again where draws are the same
        (tmp_path / "model.onnx").rename(tmp_path / "renamed.onnx")
        (tmp_path / "renamed.onnx").rename(tmp_path / "model.onnx")
        other = [each.replace("old.onnx", "model.onnx") for each in guided]
        assert main(["certify", *other]) == 0
        assert len([*(tmp_path / "guided").glob("certify-*")]) == 2

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ([], "it guides the votes: add --certify.guide decide"),
            (["--certify.guide=decide", "--certify.baseline=http://localhost:1/invocations"], "runs here"),
            (
                ["--certify.guide=decide", "--certify.baseline=missing.onnx"],
                "certify.baseline is 'missing.onnx'",
            ),
            (
                ["--certify.guide=decide", "--certify.baseline=three.onnx"],
                "of 3 classes, and the target has 10",
            ),
        ],
    )
    def test_what_cannot_guide_is_refused_before_anything_is_paid(
        self, options, expected, served, old_version, tmp_path, capsys
    ):
        import onnx
        from onnx import numpy_helper

        model = onnx.load(tmp_path / "model.onnx")
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((64, 3), dtype=np.float32), "w"))
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
        onnx.save(model, tmp_path / "three.onnx")
        assert main(["certify", *served, old_version, *options, "--quiet"]) == 2
        assert expected in capsys.readouterr().err
        assert not [*tmp_path.glob("runs/*/ledger.db")]

    def test_it_is_of_a_target_of_your_own(self):
        with pytest.raises(ConfigError, match="it is an old version of your own"):
            check(load_config(certify__baseline="old.onnx", certify__guide="decide"))


class TestCommandLine:
    def test_the_printed_configuration_has_what_follows_and_is_read_back_unchanged(
        self, served, tmp_path, capsys
    ):
        assert main(["run", *served, "--print-config"]) == 0
        printed = yaml.safe_load(capsys.readouterr().out)
        assert printed["preset"] == "own"
        assert printed["certify"]["method"] == "group_sequential_two_sided"
        assert printed["data"]["heldout_images"] == 20
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(printed))
        assert main(["run", "--config=mine.yaml", "--print-config"]) == 0
        assert yaml.safe_load(capsys.readouterr().out) == printed

    def test_a_named_preset_is_printed_as_it_is(self, served, capsys):
        assert main(["run", "--preset=digits", *served, "--print-config"]) == 0
        printed = yaml.safe_load(capsys.readouterr().out)
        assert printed["preset"] == "digits"
        assert printed["certify"]["method"] == RunConfig().certify.method
        assert printed["data"]["heldout_images"] == 400

    def test_an_unknown_purifier_hides_nothing_and_adds_nothing(self, served, capsys):
        assert main(["plan", *served, "--purifier=de4", "--device=tpu"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert sorted(line.split(" is ")[0] for line in lines) == ["certdef: device", "certdef: purifier"]

    def test_a_plan_says_what_it_waits_for_and_trains_nothing_that_is_shipped(self, served, capsys):
        assert main(["plan", *(each for each in served if "purifier" not in each)]) == 0
        printed = capsys.readouterr()
        assert "look        20 images are asked of the target" in printed.err
        assert "time        a few images go" in printed.err
        assert "\ntime        " in printed.out  # parts of a second are not listed
        assert "train de3-leaves" not in printed.out

    def test_without_a_target_the_preset_is_refused(self, store, capsys):
        assert main(["run", "--preset=own", f"--tracking.uri={store}", "--quiet"]) == 2
        assert "it is for a target of your own" in capsys.readouterr().err

    def test_a_purifier_that_does_not_exist_is_all_that_is_wrong(self, served, capsys):
        """Not also the numbers of images of a preset that nobody chose."""
        assert main(["certify", *served, "--purifier=nope", "--quiet"]) == 2
        assert capsys.readouterr().err.splitlines() == [
            "certdef: purifier is 'nope': certdef purifiers lists them (did you mean 'none'?)"
        ]

    def test_what_nothing_reads_is_named(self, served, capsys):
        assert main(["certify", *served, "--nim.epochs=3", "--quiet"]) == 0
        assert "nim.epochs is 3, which nothing reads" in capsys.readouterr().err

    def test_a_report_of_a_job_that_was_never_done_asks_nothing_and_says_what_may_be_missing(
        self, served, tmp_path, monkeypatch, capsys
    ):
        assert main(["report", *served, "--ledger.path=bill.db"]) == 2
        said = capsys.readouterr().err
        assert "target is not done" in said
        assert "add --surrogate.model none" in said
        with surrogates.QueryLedger(tmp_path / "bill.db", {"preflight": 1}) as ledger:
            assert ledger.bill().total.answered == 0

    def test_a_report_with_no_surrogate_is_that_of_certify(self, served, capsys):
        assert main(["certify", *served, "--quiet"]) == 0
        assert main(["report", *served, "--surrogate.model=none"]) == 0
        assert "every stage was done before" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["run", "plan", "report", "certify"])
@pytest.mark.parametrize(
    ("options", "heldout", "pool"),
    [
        ({"purifier": "gs"}, 60, 0),
        ({"purifier": "none"}, 60, 0),
        ({}, 60, 0),
        ({"purifier": "de3"}, 30, 30),  # which is trained on the pool
    ],
)
def test_without_a_surrogate_every_verb_holds_out_all_images(verb, options, heldout, pool):
    images = np.random.default_rng(0).random((60, 8, 8), dtype=np.float32)
    config = load_config(target__uri="model.onnx", surrogate__model="none", **options)
    config, objects = named(config, {"images": images})
    data = followed(config, verb, objects)[0].data
    assert (data.heldout_images, data.pool_images) == (heldout, pool)


def test_images_that_cannot_be_read_are_named_with_all_else(store):
    config = certdef.load_config(
        target__uri="nothing.onnx", data__path="nowhere", tracking__uri=store, certify__alpha=0.001
    )
    with pytest.raises(ConfigError) as raised:
        certdef.run(config, progress=False)
    assert "nowhere" in str(raised.value)
    assert "nothing.onnx" in str(raised.value)


@pytest.mark.parametrize("by_file", [False, True])
def test_what_was_set_to_its_default_stays_too(by_file, tmp_path):
    """By Python and by a file as on the command line: a budget of 50,000 is the user's, though it is the default."""
    images = np.random.default_rng(0).random((60, 8, 8), dtype=np.float32)
    (tmp_path / "job.yaml").write_text("ledger: {attack: 50000}\ntarget: {uri: model.onnx}\n")
    config = (
        load_config(file=tmp_path / "job.yaml")
        if by_file
        else load_config(target__uri="model.onnx", ledger__attack=50_000)
    )
    config, objects = named(config, {"images": images})
    config = followed(config, "run", objects)[0]
    assert config.ledger.attack == 50_000 == RunConfig().ledger.attack
    assert config.data.heldout_images == 30, "what was not set follows the images"
    plain = named(OWN, {"images": images})
    assert followed(plain[0], "run", plain[1])[0].ledger.attack < 1_000, "nobody set it"
