"""The command line as a user meets it: exit codes, one line for bad input, nothing spent."""

import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

import certdef
from certdef.cli import main
from certdef.config.verbs import EXAMPLES, JOBS, OPTIONS, OTHERS
from tests.conftest import TINY


def small(**settings) -> list[str]:
    values = TINY | settings
    return [
        f"--{key.replace('__', '.')}={value}".replace("=False", "=false") for key, value in values.items()
    ]


SMALL = small()


@pytest.fixture
def store(migrated_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CERTDEF_DATA_ROOT", raising=False)
    shutil.copy(migrated_store, tmp_path / "mlflow.db")
    return f"--tracking.uri=sqlite:///{tmp_path}/mlflow.db"


def spent(folder) -> int:
    """Queries that any ledger below a folder has sent."""
    total = 0
    for path in folder.rglob("ledger*.db"):
        with sqlite3.connect(path) as ledger:
            for (table,) in ledger.execute(
                "SELECT name FROM sqlite_master WHERE name LIKE 'batch%' AND type = 'table'"
            ):
                total += ledger.execute(f"SELECT COALESCE(SUM(size), 0) FROM {table}").fetchone()[0]
    return total


def test_help_names_every_verb(capsys):
    assert main([]) == 0
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {verb} " in shown for verb in JOBS | OTHERS)
    assert set(EXAMPLES) == set(JOBS | OTHERS)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["purifiers"]])
def test_a_reader_that_has_enough_is_no_error(arguments):
    """certdef ... | head: nobody reads the rest."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "certdef.cli", *arguments]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(writer)
    assert done.stderr == b""
    assert done.returncode in (0, 141)  # argparse takes a closed pipe as written


@pytest.mark.parametrize("verb", sorted(JOBS | OTHERS))
def test_every_verb_has_help_with_an_example(verb, capsys):
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"certdef {verb}" in shown.split("examples:")[1].split("options:")[0]
    of_a_job = verb not in ("ledger", "purifiers", "compare", "evidence", "completion")
    assert ("--certify.radii" in shown) == of_a_job
    assert shown.count("\n") <= 60, "a screen"
    assert ("defaults below are those of preset digits; for your own target" in shown) == of_a_job


def test_all_options_and_those_of_a_group_are_behind_help_all(capsys):
    assert main(["certify", "--help-all"]) == 0
    whole = capsys.readouterr().out
    assert "--certify.alpha" in whole
    assert "--nim.epochs" in whole
    assert main(["certify", "--help-all", "certify"]) == 0
    group = capsys.readouterr().out
    assert "--certify.alpha" in group
    assert "--nim.epochs" not in group
    assert main(["certify", "--help-all", "certfy"]) == 2
    assert "did you mean 'certify'" in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == certdef.__version__


def test_print_config_reads_back(capsys, tmp_path):
    assert main(["run", "--certify.n=1234", "--print-config"]) == 0
    (tmp_path / "my.yaml").write_text(capsys.readouterr().out)
    assert main(["run", f"--config={tmp_path / 'my.yaml'}", "--print-config"]) == 0
    assert "n: 1234" in capsys.readouterr().out


def test_a_switch_may_be_written_with_underscores_and_stands_once_in_the_help(capsys):
    assert main(["run", "--print_config"]) == 0
    assert "preset: digits" in capsys.readouterr().out
    assert main(["run", "--help"]) == 0
    shown = capsys.readouterr().out
    assert len(re.findall(r"^ +--print[-_]config", shown, re.MULTILINE)) == 1


def test_options_win_over_the_file_wherever_they_stand(capsys, tmp_path):
    (tmp_path / "my.yaml").write_text("preset: fashion-mnist\ncertify: {n: 3000, n0: 50}\n")
    assert main(["run", "--certify.n=4000", "--config", str(tmp_path / "my.yaml"), "--print-config"]) == 0
    shown = capsys.readouterr().out
    assert "n: 4000" in shown
    assert "n0: 50" in shown
    assert "name: fashion-mnist" in shown, "the preset that the file names decides the defaults"


@pytest.mark.parametrize("preset", ["digits", "fashion-mnist"])
def test_cite(preset, capsys):
    assert main(["cite", f"--preset={preset}"]) == 0
    shown = capsys.readouterr().out
    assert "arXiv 1902.02918" in shown
    assert ("Fashion-MNIST" in shown) == (preset == "fashion-mnist")


def test_doctor(capsys, store):
    assert main(["doctor", store]) == 0
    shown = capsys.readouterr().out
    assert "torch" in shown
    assert "certdef's own" in shown
    assert main(["doctor", "--tracking.uri=http://127.0.0.1:9"]) == 1
    assert "MISSING  tracking store" in capsys.readouterr().out


BAD = {
    "verb": (["rnu"], "did you mean 'run'"),
    "preset": (["run", "--preset=digts"], "did you mean 'digits'"),
    "key": (["run", "--certify.alhpa=0.1"], "did you mean 'certify.alpha'"),
    "dashed key": (["run", "--data-rot=x"], "data-rot"),
    "stray word": (["run", "extra"], "'extra' is no option: options begin with --"),
    "no file of options": (["run", "--config", "nowhere.yaml"], "--config 'nowhere.yaml' is no file"),
    "empty file of options": (["run", "--config", os.devnull], "is no file: give a YAML file of options"),
    "alpha": (["run", "--certify.alpha=2"], "certify.alpha is 2.0"),
    "n": (["run", "--certify.n=5"], "below n=10"),
    "device": (["run", "--device=tpu"], "use auto, cpu or cuda"),
    "training budget": (["run", "--ledger.training=0"], "ledger.training is 0"),
    "first batch": (["run", "--ledger.training=50"], "smaller than the first batch"),
    "certification budget": (["run", "--ledger.certification=100"], "need 100 + 11 draws each"),
    "attack budget": (["run", "--ledger.attack=10"], "ledger.attack is 10"),
    "sigma": (["run", "--certify.laws=[{label: a, scale_255: -3}]"], "scale_255 of law 'a' is -3"),
    "family": (["run", "--certify.laws=[{label: a, family: gama}]"], "no continuous scipy.stats law"),
    "abbreviated key": (["run", "--certify.m", "5"], "did you mean 'certify.method' or 'certify.n'"),
    "abbreviated switch": (["run", "--fres"], "did you mean 'fresh'"),
    "abbreviated preset": (["run", "--prese", "fashion-mnist"], "did you mean 'preset'"),
    "shared last part": (["run", "--epochs=5"], "did you mean 'target.epochs' or 'surrogate.epochs'"),
    "file that is not there": (
        ["run", "--data.path=mine.npz"],
        "data.path 'mine.npz' is not there: give a folder",
    ),
    "file beside a name": (
        ["run", "--preset=fashion-mnist", "--data.path=x"],
        "reads no file: add --data.name files",
    ),
    "folder without a name": (
        ["run", "--target.uri=models:/m/1", "--data.root=x"],
        "your target would be paid for them: name the data set",
    ),
    "purifier": (
        ["run", "--purifier=de4"],
        "purifier is 'de4': certdef purifiers lists them (did you mean 'de3'?)",
    ),
    "no value": (
        ["run", "--seed"],
        "--seed has no value: write --seed VALUE, or --seed=VALUE where it begins with -",
    ),
    "guide and method": (["run", "--certify.guide=decide", "--method=sequential"], "choose one of the two"),
    "table without budgets": (["distill", "--strategies=margin"], "it is for the table of --budgets"),
    "data set": (["run", "--data.name=mnist"], "unknown data set 'mnist'"),
    "data root": (["run", "--preset=fashion-mnist", "--data.root=nowhere"], "'nowhere' is no folder"),
    "data file": (["run", "--data.name=npz", "--data.path=no.npz"], "'no.npz' is no file"),
    "config file": (["run", "--config=no.yaml"], "no.yaml"),
    "model": (["run", "--surrogate.model=resnet1800"], "unknown model 'resnet1800'"),
    "patch": (["run", "--nim.patch_size=3"], "patch_size 3 does not divide"),
    "target": (["run", "--target.uri=models:/nothing/1"], "models:/nothing/1"),
    "store": (["run", "--tracking.uri=http://127.0.0.1:9"], "does not answer"),
    "served model": (["serve", "--model=models:/nothing/1"], "can't be loaded"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_exit_2_and_nothing_spent(case, capsys, store, tmp_path):
    arguments, said = BAD[case]
    if arguments[0] in ("run", "serve") and not any(
        argument.startswith("--tracking.uri") for argument in arguments
    ):
        arguments = [*arguments, store]
    if arguments[0] == "run":
        arguments = [arguments[0], *SMALL, *arguments[1:]] if case not in ("attack budget",) else arguments
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("certdef: ")]
    errors = [
        line for line in lines if not line.startswith("certdef: warning: nim.epochs")
    ]  # no NIM is trained
    assert len(errors) == (2 if case == "folder without a name" else 1)  # there is no such target either
    assert said in errors[0]
    assert spent(tmp_path) == 0


@pytest.mark.parametrize("verb", OPTIONS)
def test_an_option_of_a_verb_is_not_read_as_the_last_part_of_a_key(verb, capsys):
    """--model of serve is not surrogate.model, --seeds of distill not udc.seeds."""
    assert main(["run", "--print-config"]) == 0
    plain = capsys.readouterr().out
    given = [f"{name}={7 if kind is int else '100'}" for name, kind, *_ in OPTIONS[verb] if kind is not bool]
    assert main([verb, *given, "--print-config"]) == 0
    assert capsys.readouterr().out == plain


def test_an_option_that_nothing_reads_is_named_in_one_line(capsys):
    arguments = ["run", "--purifier=gs", "--nim.epochs=7", "--workers=3", "--print-config"]
    assert main(arguments) == 0
    assert capsys.readouterr().err.splitlines() == [
        "certdef: warning: nim.epochs is 7, which nothing reads: no purifier of this job (gs) depends on it",
        "certdef: warning: certify.workers is 3, which nothing reads: certify.backend is unset",
    ]


def test_every_unusable_value_has_a_line(capsys):
    assert main(["run", "--device=tpu", "--certify.alpha=2", "--nim.heads=5"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.partition(" is ")[0] for line in errors] == [
        "certdef: device",
        "certdef: certify.alpha",
        "certdef: nim.heads",
    ]


def test_all_values_that_need_no_torch_are_named_beside_a_mistyped_purifier(capsys):
    assert main(["run", "--purifier=de4", "--certify.alpha=2", "--ladder.systems=[gs,gss,none]"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.partition(" is ")[0] for line in errors] == [
        "certdef: purifier",
        "certdef: certify.alpha",
        "certdef: ladder.systems",
    ]
    assert errors[2].startswith(
        "certdef: ladder.systems is ('gs', 'gss', 'none'): gss is no purifier: certdef "
    )


def test_a_value_that_begins_with_a_minus_is_read_as_one(capsys, store):
    """argparse alone takes -0.1,0.1 for an option."""
    for given in (["--grid", "-0.1,0.1"], ["--grid=-0.1,0.1"]):
        assert main(["certify", *SMALL, store, "--threat", "brightness", *given]) == 2
        assert "--grid is '-0.1,0.1': give rising numbers above 0" in capsys.readouterr().err


def test_a_broken_ledger_is_named(capsys, store, tmp_path):
    (tmp_path / "broken.db").write_text("this is no database, and long enough to be looked at as one " * 20)
    assert main(["run", *SMALL, store, f"--ledger.path={tmp_path / 'broken.db'}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "broken.db" in error


def test_a_work_directory_in_use_is_named(capsys, store, tmp_path):
    from certdef.tracking.workspace import locked

    with locked(tmp_path / "work"):
        assert main(["run", *SMALL, store, f"--work_dir={tmp_path / 'work'}"]) == 2
    assert "in use by another certdef" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["taken", 70_000])
def test_a_port_that_cannot_be_had_is_one_line_before_anything_is_served(port, capsys, store):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1] if port == "taken" else port
        assert main(["serve", f"--port={port}", store]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith(f"certdef: port {port} of 127.0.0.1 can't be listened on")
    assert line.endswith("choose another with --port")


def test_a_given_target_that_lacks_classes_is_refused_before_it_is_asked(capsys, store, tmp_path, tiny_job):
    levels = np.random.default_rng(0).integers(0, 256, (900, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "twelve.npz", images=levels, labels=np.arange(900) % 12)
    options = {
        "target.uri": tiny_job[1].results["target"]["uri"],
        "tracking.uri": tiny_job[0].tracking.uri,
        "data.name": "npz",
        "data.path": tmp_path / "twelve.npz",
        "data.target_images": 1,
        "data.pool_images": 600,
        "data.heldout_images": 100,
        "work_dir": tmp_path / "work",
    }
    assert main(["run", *SMALL, *(f"--{key}={value}" for key, value in options.items())]) == 2
    assert "answers 10 classes, but the labels of npz go up to 11" in capsys.readouterr().err
    assert spent(tmp_path) == 0


def test_your_own_target_and_data(capsys, tmp_path, tiny_job, monkeypatch):
    """The one command of the README, on digits written to a file and the SVC of another job."""
    from sklearn.datasets import load_digits

    monkeypatch.chdir(tmp_path)
    digits = load_digits()
    np.savez(tmp_path / "mine.npz", images=(digits.images * 255 / 16).astype(np.uint8), labels=digits.target)
    options = {
        "target.uri": tiny_job[1].results["target"]["uri"],
        "tracking.uri": tiny_job[0].tracking.uri,
        "data.name": "npz",
        "data.path": tmp_path / "mine.npz",
    }
    # behind the shipped denoiser, which is slow: how well the students learn is not the point
    sizes = small(surrogate__epochs=2, certify__laws="[{label: nim}]", certify__images=3)
    assert main(["run", "--quiet", *sizes, *(f"--{key}={value}" for key, value in options.items())]) == 0
    shown = capsys.readouterr().out
    assert "queries     training 600 of 600" in shown
    (page,) = tmp_path.glob("runs/models-m-*/report.html")  # named after the target, apart from every preset
    assert page.is_file()


def test_the_module_runs_as_a_script():
    result = subprocess.run(
        [sys.executable, "-m", "certdef.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == certdef.__version__


@pytest.mark.parametrize("text", ["", "[a, b]", "# nothing"])
def test_a_file_without_options_is_named(text, tmp_path, capsys):
    (tmp_path / "options.yaml").write_text(text)
    assert main(["run", "--config", str(tmp_path / "options.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "options.yaml' holds no options: write them as in" in line
