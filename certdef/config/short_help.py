"""The help of a verb on one screen: its own options and those that are used most; --help-all has every one.

Both are parts of the one help that jsonargparse writes.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable

from certdef.config.job import ConfigError, nearest

USED_MOST = (
    *("--preset", "--seed", "--device", "--work_dir", "--purifier", "--data.path", "--target.uri"),
    *(
        "--target.num_classes",
        "--ledger.certification",
        "--certify.target_images",
        "--certify.n",
        "--certify.radii",
    ),
    "--config",
)
OWN_GROUP = ("robustness",)  # verbs with a group of options that no other verb reads
OPTION = re.compile(r"^  (?:-h, )?(--[\w.-]+)", re.MULTILINE)


def short_help(verb: str, whole: str, own: Iterable[str]) -> str:
    """What --help prints.

    Args:
        verb: Of the command line.
        whole: The whole help.
        own: Options of the verb beside those of the configuration.
    """
    head, blocks = _blocks(whole)
    group = f"--{verb}." if verb in OWN_GROUP else None
    mine = [name for name, _ in blocks if name in own or (group and name.startswith(group))]
    first = [_plain(text) for name, text in blocks if name in mine and name not in ("--help", "--help-all")]
    used = [_brief(text) for name, text in blocks if name in USED_MOST]
    groups = sorted({name[2:].split(".")[0] for name, _ in blocks if "." in name})
    return (
        f"{head}options of {verb}:\n{''.join(first)}\nused most:\n{''.join(used)}\n"
        f"groups of options: {', '.join(groups)}\n"
        f"certdef {verb} --help-all shows every option, --help-all certify those of a group.\n"
    )


def whole_help(whole: str, group: str | None = None) -> str:
    """What --help-all prints: everything, or a group.

    Raises:
        ConfigError: There is no such group.
    """
    if group is None:
        return whole
    _, blocks = _blocks(whole)
    found = [text for name, text in blocks if name.startswith(f"--{group}.")]
    if not found:
        groups = sorted({name[2:].split(".")[0] for name, _ in blocks if "." in name})
        raise ConfigError(
            f"--help-all {group}: no such group{nearest(group, groups)}; use {', '.join(groups)}"
        )
    return f"options of {group}:\n{''.join(found)}"


def _blocks(whole: str) -> tuple[str, list[tuple[str, str]]]:
    """What stands before the options, and each option with its text."""
    starts = [match.start() for match in OPTION.finditer(whole)]
    ends = [*starts[1:], len(whole)]
    texts = [
        whole[start:end].split("\n\n")[0].rstrip() + "\n" for start, end in zip(starts, ends, strict=True)
    ]
    names = [match[1] for match in OPTION.finditer(whole)]
    return whole[: whole.index("options:\n")], list(zip(names, texts, strict=True))


def _plain(text: str) -> str:
    """An option with its text, but for its type, and for a default that says nothing: false, or null."""
    words = " ".join(text.split())
    words = re.sub(r" \((?:type: [^()]*(?:\([^()]*\))?[^()]*, )?default: (?:False|null)\)$", "", words)
    words = re.sub(r"\(type: [^()]*(?:\([^()]*\))?[^()]*, default: ([^()]*)\)$", r"(default: \1)", words)
    name, _, rest = words.partition(" ")
    if (value := rest.partition(" ")[0]).isupper() and len(value) > 1:
        name, rest = f"{name} {value}", rest.partition(" ")[2]
    lines = textwrap.wrap(rest, 80 - 24, break_on_hyphens=False)
    head = f"  {name:<21} " if len(name) <= 21 else f"  {name}\n{'':24}"
    return head + f"\n{'':24}".join(lines) + "\n"


def _brief(text: str) -> str:
    """An option with its first sentence and its default, in one or two lines."""
    name, _, rest = " ".join(text.split()).partition(" ")
    rest = rest.split(" ", 1)[1] if rest[:1].isupper() and rest.split(" ", 1)[0].isupper() else rest
    sentence = re.split(r"(?<=[.;:]) |\s\(type:", rest)[0].rstrip(".;:")
    default = re.search(r"default: ([^)]*)\)$", rest)
    shown = f" ({default[1]})" if default and default[1] not in ("null", "") else ""
    return f"  {name:<26} {sentence}{shown}\n"
