"""Reading a RunConfig: a preset, a YAML file, command-line overrides, each error as one line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from certdef.config import own_target
from certdef.config.checks import check
from certdef.config.job import AUTO, OFF, ConfigError, RunConfig, SigmaLaw, flatten, nearest, preset_path
from certdef.config.yaml_limits import check_yaml, read_config

# Other spellings and names of options, on the command line and in files.
ALIASES = {
    "target.quantise": "target.quantize",
    "surrogate.unlabeled_weight": "surrogate.unlabelled_weight",
    "surrogate.unlabeled_ratio": "surrogate.unlabelled_ratio",
    "ladder.repeats": "ladder.looks",
    "diffusion.weights": "diffusion.pretrained",
}
# The options that take a file or a mapping with such names, and what the names in it begin with.
MAPPINGS = {"--config": ""} | {
    f"--{section}": f"{section}." for section in dict.fromkeys(alias.partition(".")[0] for alias in ALIASES)
}

# The options that hold names: what stands in them without quotes is one all the same, as `no`, 007 and 1.10.
NAMES = ("target.classes", "target.columns")
TEXT = "tag:yaml.org,2002:str"

# What the parser calls the kinds of values, for a user.
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "tuple": "a list, e.g. [0.25, 0.5]",
    "tuple[float, float]": "two numbers, e.g. [0,255]",
    "tuple[float, ...]": "a list of numbers, e.g. [0.5,0.5,0.5]",
    "tuple[int, int]": "two whole numbers, e.g. [224,224]",
    "list[int]": "a list of whole numbers, e.g. [224,224]",
    "list[str]": "a list of texts, e.g. [cat,dog]",
    "tuple[str, ...]": "a list of texts, e.g. [cat,dog]",
    "dict[str, str]": "a mapping of texts, e.g. '{X-Model: v2}'",
    "dict[str, int]": "a mapping of texts to numbers, e.g. {cat: 0, dog: 1}",
    "list": "a list, e.g. [a, b]",
    "dict": "a map, e.g. {n: 2000}",
    "NoneType": "null",
}


def add_config_arguments(parser: Any, preset: str) -> None:
    """Give a jsonargparse parser `--config FILE` and every field of RunConfig, on the defaults of a preset."""
    import yaml

    parser.add_argument(
        "--config", action="config", help="YAML file with any of the keys below; options win over it."
    )
    parser.add_class_arguments(RunConfig)
    parser.set_defaults(flatten(yaml.safe_load(preset_path(preset).read_text())))


def from_namespace(parser: Any, namespace: Any, arguments: list[str], *, checked: bool = True) -> RunConfig:
    """Build the RunConfig that a parser read from these arguments, and check it unless whoever takes it does.

    Of your own target without a preset it has what was set alone: a job adds what follows from its images.
    """
    values = parser.instantiate(namespace)
    config = RunConfig(**{each.name: getattr(values, each.name) for each in fields(RunConfig)})
    own = replace(config, preset=own_target.PRESET)
    if config.target.uri and named_preset(arguments) is None and own_target.applies(own):
        config = own
    few = config.data.heldout_images <= config.certify.choice_images
    if config.certify.choose == AUTO and (few or own_target.applies(config)):  # candidates cost votes
        config = replace(config, certify=replace(config.certify, choose=OFF))
    if checked:
        check(own_target.checkable(config))
    return config


def load_config(preset: str | None = None, file: str | Path | None = None, **overrides: Any) -> RunConfig:
    """Resolve a configuration from Python.

    Args:
        preset: Name of a preset; default the one that the file names, else own for your own target (target__uri): what is
            not set then follows the images, once a job reads them. Else digits.
        file: A YAML file of further values.
        overrides: Single values with dots written as double underscores, e.g. `certify__n=2000, seed=3`.

    Raises:
        ConfigError: An unknown preset, file or key (with the nearest known one), or a value out of range.

    Examples:
        >>> config = load_config("digits", certify__n=2000, ledger__training=300)
        >>> config.certify.n, config.ledger.training
        (2000, 300)
    """
    arguments = [f"--preset={preset}"] if preset else []
    if file is not None:
        arguments.append(f"--config={file}")
    arguments += [f"--{key.replace('__', '.')}={_literal(value)}" for key, value in overrides.items()]
    parser = config_parser(preset_of(arguments))
    config = from_namespace(parser, parse(parser, arguments), arguments)
    # What was set to its default is set all the same: the rules for your own target leave it alone.
    object.__setattr__(config, "chosen", frozenset(chosen_options(parser, arguments)))
    return config


def config_parser(preset: str, **options: Any) -> Any:
    """A jsonargparse parser of the configuration, on the defaults of a preset."""
    from jsonargparse import ArgumentParser

    # an abbreviation would be read as whatever option it happens to begin
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, **options)
    add_config_arguments(parser, preset)
    return parser


def parse(parser: Any, arguments: list[str], own: Iterable[str] = ()) -> Any:
    """Parse, with unknown keys and unusable values as one ConfigError.

    `--data-root` is read as `--data.root`, and a last part that stands alone among all keys is enough: `--alpha`.

    Args:
        parser: One of `config_parser`, perhaps with further options.
        arguments: The command line.
        own: The further options, e.g. --model: they are never read as the last part of a key.
    """
    from jsonargparse import ArgumentError

    check_texts(arguments)
    own = list(own)
    given = _spelled(arguments, own)
    known = [*known_keys(), *(name.lstrip("-") for name in own)]
    try:
        return parser.parse_args(given)
    except ArgumentError as error:
        raise _unread(parser, given, known, explain(str(error), known)) from error


class UnreadOptions(ConfigError):
    """Options that can't be read: a line each.

    Attributes:
        found: The lines, by the section of the option.
        rest: The arguments that can be read.
    """

    def __init__(self, found: dict[str, list[str]], rest: list[str]) -> None:
        super().__init__("\n".join(line for lines in found.values() for line in lines))
        self.found, self.rest = found, rest


def _unread(parser: Any, given: list[str], known: list[str], first: str) -> UnreadOptions:
    """Every option that a parser can't read alone; the first error, where only all of them together can't be."""
    from jsonargparse import ArgumentError

    found: dict[str, list[str]] = {}
    rest: list[str] = []
    for option in _single(given):
        try:
            parser.parse_args(option)
            rest += option
        except ArgumentError as error:
            section = re.split(r"[.=]", option[0].lstrip("-"))[0]
            found.setdefault(section, []).append(explain(str(error), known))
    return UnreadOptions(found or {"": [first]}, rest if found else [])


def _single(arguments: list[str]) -> list[list[str]]:
    """Arguments, each option with the values that follow it."""
    options: list[list[str]] = []
    for argument in arguments:
        if argument.startswith("--") or not options:
            options.append([argument])
        else:
            options[-1].append(argument)
    return options


def chosen_options(parser: Any, arguments: list[str], own: Iterable[str] = ()) -> set[str]:
    """The options that arguments which `parse` takes set, dotted, by themselves or by a file."""
    given = parser.parse_args(_spelled(arguments, list(own)), defaults=False)
    return {str(key) for key in given.keys()}  # noqa: SIM118  a Namespace, which is no mapping


def _spelled(arguments: list[str], own: list[str]) -> list[str]:
    """The arguments with each option under its whole name, and files first."""
    names = {name: key for name, key in option_names().items() if name not in own}
    names |= {f"--{name[2:].replace('-', '_')}": name for name in own}
    whole = with_contents(files_first(_joined(arguments)))
    split = [argument.partition("=") for argument in whole]
    return _as_written([names.get(name, name) + equals + value for name, equals, value in split])


def _joined(arguments: list[str]) -> list[str]:
    """The arguments, with an option and a value like -0.1,0.1 as one: apart, a parser takes the value for an option."""
    given: list[str] = []
    for argument in arguments:
        if given and re.match(r"--[^=]+$", given[-1]) and re.match(r"-[\d.]", argument):
            given[-1] += f"={argument}"
        else:
            given.append(argument)
    return given


def _as_written(arguments: list[str]) -> list[str]:
    """The arguments, with the names in the options that hold some in quotes."""
    holders = {f"--{name}{more}" for name in NAMES for more in ("", "+")}
    given: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if given and given[-1] in holders:
            given.append(quoted_names(argument))
        else:
            given.append(f"{name}={quoted_names(value)}" if equals and name in holders else argument)
    return given


def quoted_names(text: str) -> str:
    """A YAML list of names, or map of them, with each name in quotes; unchanged where none needs them."""
    import yaml

    try:
        tree = yaml.compose(text)
    except yaml.YAMLError:
        return text  # the parser says what is wrong with it
    return yaml.serialize(tree, width=float("inf")).strip() if _quote(tree) else text


def _quote(tree: Any) -> bool:
    """Put the names in a YAML list, or the keys of a map, in quotes; returns whether any of them needed it."""
    import yaml

    if isinstance(tree, yaml.MappingNode):
        nodes = [key for key, _ in tree.value]
    else:
        nodes = tree.value if isinstance(tree, yaml.SequenceNode) else []
    plain = [node for node in nodes if isinstance(node, yaml.ScalarNode) and node.style is None]
    odd = [node for node in plain if node.tag != TEXT or _is_number(node.value)]
    for node in odd:
        node.tag, node.style = TEXT, "'"
    return bool(odd)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def check_texts(arguments: list[str]) -> None:
    """Refuse files and values of options whose YAML takes more than its text to parse.

    Raises:
        ConfigError: Names the file or the option.
    """
    groups = {f"--{key}" for key, value in RunConfig().to_dict().items() if isinstance(value, dict)}
    for name, value in _pairs(arguments):
        if name == "--config" and not os.path.isfile(value):
            raise ConfigError(f"--config {value!r} is no file: give a YAML file of options")
        if name in {"--config", *groups} and os.path.isfile(value):
            _check_file(value, read_config(value))
        elif name.startswith("--"):
            check_yaml(value, name)


def _check_file(path: str, text: str) -> None:
    """Refuse a file without options, and the files that the parser would read because it names them for a section."""
    import yaml

    try:
        tree = yaml.compose(text)
    except yaml.YAMLError:
        return  # the parser says what is wrong with it
    if not isinstance(tree, yaml.MappingNode):
        raise ConfigError(f"{path!r} holds no options: write them as in certdef run --print-config")
    for _, value in tree.value:
        named = Path(path).parent / str(value.value)
        if isinstance(value, yaml.ScalarNode) and value.value and os.path.isfile(named):
            read_config(named)


def option_names() -> dict[str, str]:
    """Every way to write an option, with the option that it stands for."""
    keys = {key: key for key in known_keys()} | ALIASES
    leaves = [key.rpartition(".")[2] for key in keys]
    names = {
        f"--{leaf}": f"--{key}"
        for leaf, key in zip(leaves, keys.values(), strict=True)
        if leaves.count(leaf) == 1
    }
    dashed = {f"--{name.replace('.', '-').replace('_', '-')}": f"--{key}" for name, key in keys.items()}
    return names | dashed | {f"--{name}": f"--{key}" for name, key in ALIASES.items()}


def with_contents(arguments: list[str]) -> list[str]:
    """The same arguments; of a file or mapping with an alias or odd names, the text with what is meant in their place."""
    given: list[str] = []
    for argument, (name, value) in zip(arguments, _pairs(arguments), strict=True):
        if given and given[-1] in MAPPINGS:
            given[-1:] = [f"{given[-1]}={_content(given[-1], argument)}"]
        else:
            given.append(
                f"{name}={_content(name, value)}" if name in MAPPINGS and "=" in argument else argument
            )
    return given


def _content(option: str, value: str) -> str:
    """What to give the parser for an option that takes a file or a mapping."""
    text = read_config(value) if os.path.isfile(value) else value
    return renamed(text, MAPPINGS[option]) or value


def renamed(text: str, prefix: str = "") -> str:
    """YAML with aliases replaced and odd names in quotes; empty where it has neither, or is no mapping."""
    import yaml

    try:
        tree = yaml.compose(text)
    except yaml.YAMLError:
        return ""  # the parser says what is wrong with it
    return yaml.serialize(tree) if isinstance(tree, yaml.MappingNode) and _rename(tree, prefix) else ""


def _rename(tree: Any, prefix: str) -> bool:
    """Rename the keys of a YAML mapping in place, and quote names; returns whether there was anything to do."""
    import yaml

    any_renamed = False
    for key, value in tree.value:
        name = f"{prefix}{key.value}"
        if name in ALIASES:
            key.value, any_renamed = ALIASES[name].removeprefix(prefix), True
        if name in NAMES:
            any_renamed |= _quote(value)
        elif isinstance(value, yaml.MappingNode):
            any_renamed |= _rename(value, f"{name}.")
    return any_renamed


def files_first(arguments: list[str]) -> list[str]:
    """The same arguments with `--config FILE` in front, so that a single value wins wherever it stands."""
    files, rest = [], list(arguments)
    while positions := [at for at, argument in enumerate(rest) if argument.partition("=")[0] == "--config"]:
        width = 1 if "=" in rest[positions[0]] else 2
        files += rest[positions[0] : positions[0] + width]
        del rest[positions[0] : positions[0] + width]
    return files + rest


def preset_of(arguments: list[str]) -> str:
    """The preset that arguments name, else digits; it decides the defaults of the rest."""
    return named_preset(arguments) or RunConfig.preset


def named_preset(arguments: list[str]) -> str | None:
    """The preset that arguments name, or else their configuration file."""
    files = [value for name, value in _pairs(arguments) if name == "--config"]
    named = [value for name, value in _pairs(arguments) if name == "--preset"]
    if not named and files and Path(files[-1]).is_file():
        import yaml

        try:
            content = yaml.safe_load(read_config(files[-1]))
        except yaml.YAMLError as error:
            raise ConfigError(
                f"config file {files[-1]!r} is no YAML: {' '.join(str(error).split())}"
            ) from error
        named = [str(content["preset"])] if isinstance(content, dict) and "preset" in content else []
    return named[-1] if named else None


def _pairs(arguments: list[str]) -> list[tuple[str, str]]:
    """Each argument's name with its value: what follows the =, or else the next argument."""
    split = [argument.partition("=") for argument in arguments]
    values = [*(name for name, _, _ in split[1:]), ""]
    return [
        (name, value if equals else following)
        for (name, equals, value), following in zip(split, values[: len(split)], strict=True)
    ]


def known_keys() -> list[str]:
    """Every key of the configuration, dotted."""
    return [*flatten(RunConfig().to_dict(), groups=True), "config"]


def explain(message: str, known: list[str]) -> str:
    """One line from a parser's message, with the nearest known key where one was unknown."""
    line = " ".join(message.split())
    group = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", line)
    if kind := _wrong_kind(line):
        return kind
    if empty := re.search(r"rgument (--[\w.-]+): expected one argument", line):
        return f"{empty[1]} has no value: write {empty[1]} VALUE, or {empty[1]}=VALUE where it begins with -"
    if stray := re.search(r"nrecognized arguments: ([^\s-]\S*)", line):
        return f"{stray[1]!r} is no option: options begin with --, e.g. --seed 1"
    other = re.search(r"[Oo]ption '([\w.]+)' is not accepted|nrecognized arguments: -*([\w.\-]+)", line)
    if not (group or other):
        return line.replace("Parser key ", "")
    parts = [part for match in (group, other) if match for part in match.groups() if part]
    key = ".".join(parts[:2] if group else parts[:1])
    if "certify.laws" in line:  # a key of a law, which is none of the job
        known = list(SigmaLaw.__dataclass_fields__)
    return f"unknown key {key!r}{nearest(key, known)}: certdef run --print-config shows all keys"


def _wrong_kind(line: str) -> str | None:
    """A value of another kind than its option takes, in words; None where the parser says something else."""
    key, value = re.search(r'"([\w.]+)": ', line), re.search(r".*(?:Got|Given) value: ?(.*)$", line)
    types = re.split(r"Errors:|Got value", line)[0]
    found = re.findall(r"<class '(\w+)'>|((tuple|list|dict)\[[\w., ]+\])", types)
    kinds = dict.fromkeys(plain or (full if full in KINDS else outer) for plain, full, outer in found)
    if not (key and value and kinds) or not kinds.keys() <= KINDS.keys():
        return None
    return f"{key[1]} is {value[1] or 'empty'}: use {' or '.join(KINDS[kind] for kind in kinds)}"


def _literal(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
