"""`certdef completion bash|zsh`: a script for the shell, with the verbs, their options, and the names that options take.

The shell reads the script and asks nobody: a TAB starts no Python.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping

from certdef.config.job import FILES, ConfigError, RunConfig, flatten, nearest, preset_names
from certdef.config.load import known_keys
from certdef.config.names import CHOICES, DATA_SETS, TARGET_CHOICES
from certdef.config.purifiers import purifier_names
from certdef.config.threats import threat_names
from certdef.config.verbs import JOBS, OPTIONS, OTHERS, flags

SHELLS = ("bash", "zsh")
SWITCHES = ("--help", "--help-all")
BOOLEANS = ("true", "false")


def script(shell: str, parsers: Mapping[str, ArgumentParser]) -> str:
    """The completion script of a shell.

    Args:
        shell: bash or zsh.
        parsers: The parsers of the verbs that take none of a job's options, made without --help of argparse.

    Raises:
        ConfigError: Another shell; shtab, which writes the script, is missing.
    """
    if shell not in SHELLS:
        raise ConfigError(f"unknown shell {shell!r}{nearest(shell, SHELLS)}: certdef completion bash, or zsh")
    try:
        import shtab
    except ImportError as error:
        raise ConfigError("completion needs shtab: pip install shtab") from error
    return shtab.complete(_parser(parsers), shell)


def _parser(parsers: Mapping[str, ArgumentParser]) -> ArgumentParser:
    """A parser that knows of every verb, of its options, and of the values that have names; it reads nothing."""
    whole = ArgumentParser("certdef", add_help=False)
    whole.add_argument("--help", action="store_true", help="Show the verbs.")
    whole.add_argument("--version", action="store_true", help="Show the version.")
    verbs = whole.add_subparsers()
    for verb, text in (JOBS | OTHERS).items():
        parents = [parsers[verb]] if verb in parsers else []
        one = verbs.add_parser(verb, help=text, add_help=False, parents=parents)
        if verb == "completion":
            one.add_argument("shell", choices=SHELLS)
        elif verb != "purifiers" and verb not in parsers:
            _add_options(one, verb)
    return whole


def _add_options(parser: ArgumentParser, verb: str) -> None:
    """Give a parser the options of a verb of the job: its own, then those of the configuration."""
    named = _named_values()
    own = {name: text for name, _, _, text in OPTIONS.get(verb, [])}
    for name, text in flags(verb).items():
        parser.add_argument(name, action="store_true", help=_plain(text))
    for name in SWITCHES:
        parser.add_argument(name, action="store_true")
    for name in dict.fromkeys([*own, *(f"--{key}" for key in known_keys())]):
        parser.add_argument(name, choices=named.get(name), help=_plain(own.get(name, "")) or None)


def _plain(text: str) -> str:
    """A help text as argparse takes it: a share in it is no format."""
    return text.replace("%", "%%")


def _named_values() -> dict[str, list[str]]:
    """The options whose values are names, with these."""
    values = flatten(RunConfig().to_dict())
    booleans = {f"--{key}": [*BOOLEANS] for key, value in values.items() if isinstance(value, bool)}
    few = {f"--{key}": [*names] for key, names in (CHOICES | TARGET_CHOICES).items()}
    return (
        booleans
        | few
        | {
            "--preset": preset_names(),
            "--purifier": purifier_names(),
            "--threat": [*threat_names()],
            "--data.name": [*DATA_SETS, *FILES],
        }
    )
