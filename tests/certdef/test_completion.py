"""Shell completion, asked of a real bash: what it offers after a TAB."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from certdef.cli import main
from certdef.config.job import preset_names
from certdef.config.purifiers import purifier_names
from certdef.config.verbs import JOBS, OTHERS

# What bash does at a TAB: it calls the registered function with the words, and takes COMPREPLY.
ASK = """
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
$(complete -p certdef | sed 's/.*-F \\([^ ]*\\).*/\\1/') certdef "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def completion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("shtab")
    written = subprocess.run(
        [sys.executable, "-m", "certdef.cli", "completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
    )
    path = tmp_path_factory.mktemp("completion") / "certdef.bash"
    path.write_text(written.stdout)
    return path


def offered(completion: Path, *words: str) -> set[str]:
    """What a bash without any Python on its path offers for the last of these words."""
    line = [f"source {completion}\n{ASK}", "bash", "certdef", *words]
    asked = subprocess.run(
        ["bash", "--norc", "-c", *line],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")},
    )
    assert (
        asked.stderr.replace("bash: line 0: compopt: not currently executing completion function\n", "") == ""
    )
    return {line for line in asked.stdout.splitlines() if line}


def test_verbs(completion: Path) -> None:
    assert offered(completion, "") == {*JOBS, *OTHERS}
    assert offered(completion, "ce") == {"certify"}


def test_options_are_those_of_the_verb(completion: Path) -> None:
    assert offered(completion, "certify", "--certify.alp") == {"--certify.alpha"}
    assert "--shard" in offered(completion, "certify", "--sh")
    assert offered(completion, "attack", "--sh") == set()
    assert offered(completion, "ledger", "--di") == {"--digest"}
    assert offered(completion, "compare", "--max") == {"--max-drop", "--max-proven-drop"}
    assert offered(completion, "purifiers", "--") == set()


def test_values_that_have_names(completion: Path) -> None:
    assert offered(completion, "run", "--preset", "") == {*preset_names()}
    assert offered(completion, "run", "--seed", "1", "--purifier", "") == {*purifier_names()}
    assert offered(completion, "certify", "--threat", "blur") >= {"blur-uniform"}
    assert offered(completion, "run", "--ladder.enabled", "") == {"true", "false"}
    assert offered(completion, "completion", "") == {"bash", "zsh"}


@pytest.mark.parametrize("arguments", [["bahs"], [], ["bash", "zsh"]])
def test_another_shell_is_refused_in_a_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "certdef completion bash, or zsh" in line
    assert ("did you mean 'bash'" in line) == (arguments == ["bahs"])


def test_writing_the_script_loads_no_torch() -> None:
    pytest.importorskip("shtab")
    program = (
        "import sys; from certdef.cli import main; main(['completion', 'zsh'])\n"
        "sys.exit(' '.join({'torch', 'mlflow', 'pandas', 'timm'} & {*sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#compdef certdef")
