"""The verbs of the command line: their help, their options beside those of the configuration, and their parsers."""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

from certdef.config.load import add_config_arguments
from certdef.config.short_help import short_help, whole_help
from certdef.config.threats import L2, threat_names
from certdef.config.threats import OPTIONS as THREAT_OPTIONS

OVERVIEW = """\
Certify a classifier whose weights are out of reach.

  certdef run                              the whole job on the digits that ship with scikit-learn
  certdef run --preset fashion-mnist --data.root FOLDER
  certdef run --preset ducd-fashion-mnist  certify a surrogate in the target's place; membership inference on both
  certdef run --preset udc                 attack, purify and fine-tune a restoration of photographs under a display
  certdef run --target.uri models:/mine@prod --data.path photos/    or a .csv, .npz, ...: docs/data.md
  certdef certify --target.uri models:/mine@prod --data.path photos/   your target alone: nothing is trained
  certdef certify --threat brightness      against light, blur, shifts, ... in the place of L2: docs/threats.md
  certdef robustness --target.uri models:/mine@prod --data.path photos/   the bare target under blur, light, JPEG, ...: average case
  certdef certify --certify.n 2000         one stage, and whatever it needs first
  certdef run --print-config > my.yaml     then edit it, and: certdef run --config my.yaml
"""
JOBS = {
    "run": "the whole job: target, surrogate, purifier, certificates, attack, report",
    "pretrain": "pre-train the denoiser of De^3 on the unlabeled pool",
    "distill": "query the target within its budget and distill the surrogate",
    "certify": "certify target and surrogate by randomized smoothing; your own target alone, if nothing of a surrogate is set",
    "robustness": "how often the bare target's answer changes under blur, light, shifts, JPEG, ...: average case, nothing is trained",
    "attack": "PGD on the surrogate, transferred to the target, with and without the purifier; --ladder for the threat ladder",
    "purify": "purify images of your own, or the held-out ones, with the job's purifier",
    "report": "write the page of a finished job again; nothing is trained or paid for",
}
OTHERS = {
    "purifiers": "every purifier by name: what it does, its source, and the threat model that it was proposed for",
    "serve": "serve the registered certified classifier with MLflow's scoring server",
    "merge": "join the shards of certdef certify --shard: records, query bill and summary of one process; nothing is queried",
    "plan": "what is wrong with a job, what it will cost and reach; a look at your own target on 50 images",
    "doctor": "versions, devices, tracking store, and what is missing; with your own target or images, what is known of them",
    "cite": "the papers behind the options of a run",
    "ledger": "the query bill of a ledger: queries by purpose, their cost, and their export",
    "compare": "a new version of a model against the old one, image by image; gates for a release",
    "evidence": "all that is measured of one model version, and what is not: JSON by a schema, Markdown, a page, a model card",
    "completion": "a script that completes verbs, options and names in bash or zsh",
}
EXAMPLES = {
    "run": "certdef run --seed 1 --certify.n 2000\n  certdef run --preset fashion-mnist --data.root FOLDER --device cuda",
    "pretrain": "certdef pretrain --nim.epochs 100\n  certdef pretrain --nim.weights leaves --nim.epochs 30\n  certdef pretrain --leaves FOLDER",
    "distill": "certdef distill --ledger.training 300\n  certdef distill --budgets 100,300,600 --strategies random,margin --seeds 3 --ledger.training 797",
    "certify": "certdef certify --certify.target_images 20 --ledger.certification 100000\n  certdef certify --target.uri model.onnx --data.path photos/\n"
    "  certdef certify --threat brightness --grid 0.05,0.1,0.2\n  certdef certify --threat pixel-shift --target.uri model.onnx --data.path photos/\n"
    "  certdef certify --prepare            then, on any number of machines: certdef certify --shard 1/3",
    "robustness": "certdef robustness                                             on the digits that ship with scikit-learn\n"
    "  certdef robustness --target.uri model.onnx --data.path photos/ --robustness.images 20\n"
    "  certdef robustness --corruptions [noise=0.1,jpeg=50,gamma=0.3+jpeg=50] --q 0.05\n"
    "  certdef robustness --corruptions [python:mine.weather:fog]",
    "attack": "certdef attack --attack.eps [0.05,0.1] --attack.steps 50\n  certdef attack --ladder --ladder.systems [gs] --ledger.attack 2000000",
    "purify": "certdef purify --purifier gs\n  certdef purify --preset fashion-mnist --data.root FOLDER --purifier ncis --images mine.npz --out purified.npz",
    "purifiers": "certdef purifiers\n  certdef run --purifier gs",
    "report": "certdef report",
    "serve": 'certdef serve --port 5001\n  curl -d \'{"inputs": [...], "params": {"n": 2000}}\' -H \'Content-Type: application/json\' http://127.0.0.1:5001/invocations',
    "merge": "certdef merge runs/digits/shards/*-of-3\n  certdef merge a/1-of-3 b/2-of-3 c/3-of-3 --work-dir runs/digits",
    "plan": "certdef plan --target.uri models:/mine/1 --data.path images.npz --price 1.50\n"
    "  certdef plan --target.uri net.onnx --data.path images.npz --target.pixel_range [0,255] --json\n"
    "  certdef plan --preset fashion-mnist --data.root FOLDER",
    "doctor": "certdef doctor\n  certdef doctor --target.uri net.onnx --data.path images.npz",
    "cite": "certdef cite --preset fashion-mnist",
    "ledger": "certdef ledger runs/digits/ledger.db\n"
    "  certdef ledger runs/digits/ledger.db --price 1.50 --export queries.parquet\n"
    "  certdef ledger runs/digits/ledger.db --digest --upto 812",
    "evidence": "certdef evidence models:/mine/2 --out evidence/2\n"
    "  certdef evidence RUN_ID --groups data.csv:camera --format json,html\n"
    "  certdef evidence runs/digits\n"
    "  certdef evidence --schema > evidence-1.json",
    "completion": 'eval "$(certdef completion bash)"             in this shell; docs/verbs.md has the line for every one\n'
    '  eval "$(certdef completion zsh)"',
    "compare": "certdef compare runs/old runs/new\n"
    "  certdef compare models:/mine/1 models:/mine/2 --max-drop 0.02 --markdown pr.md --junit compare.xml\n"
    '  certdef compare OLD_RUN_ID NEW_RUN_ID --fail-if "certified@0.25 < 0.60" --fail-if "abstained > 10%"\n'
    "  certdef compare old.jsonl new.jsonl --groups data.csv:camera --max-proven-drop 0 --picture curves.png",
}


# Options of single verbs, beside those of the configuration: name, type, default, help.
OPTIONS: dict[str, list[tuple[str, Any, Any, str]]] = {
    "pretrain": [
        (
            "--leaves",
            str | None,
            None,
            "Train the shipped denoiser (purifier de3-leaves) again, on dead-leaves images from --seed, into this folder.",
        ),
        (
            "--leaves-images",
            int | None,
            None,
            "With --leaves: another number of images than the shipped one's.",
        ),
        ("--leaves-epochs", int | None, None, "With --leaves: another number of passes."),
    ],
    "distill": [
        (
            "--budgets",
            str | None,
            None,
            "Agreement against queries: a surrogate for each of these query budgets, e.g. 100,300,600.",
        ),
        ("--strategies", str, "random", "With --budgets: strategies, e.g. random,kcenter."),
        ("--seeds", int, 1, "With --budgets: seeds of each strategy."),
    ],
    "certify": [
        (
            "--shard",
            str | None,
            None,
            "Certify a part of the images alone, e.g. 2/3, of a job that --prepare has made ready; certdef merge joins all parts.",
        ),
        (
            "--threat",
            str,
            L2,
            f"What to certify against: {', '.join(threat_names())}. l2 has its options in certify.",
        ),
        *((f"--{name}", kind, None, text) for name, kind, text in THREAT_OPTIONS),
    ],
    "purify": [
        (
            "--images",
            str | None,
            None,
            "An .npz file with the array images, as for data.path; default the job's held-out images.",
        ),
        ("--out", str | None, None, "The .npz file to write; default purified.npz in the work directory."),
    ],
    "plan": [("--price", float | None, None, "Price of 1,000 queries in USD, for the cost.")],
    "serve": [
        ("--model", str | None, None, "MLflow model URI; default the latest registered version."),
        ("--host", str, "127.0.0.1", "Address to listen on."),
        ("--port", int, 5001, "Port to listen on; 0 takes a free one."),
        ("--max-n", int, 100_000, "Largest n that a request may ask for."),
        ("--max-votes", int, 2_000_000, "Most votes of a request: images x (n0 + n)."),
    ],
}


def overview() -> str:
    """The help of certdef without a verb."""
    verbs = JOBS | OTHERS
    width = max(map(len, verbs))
    lines = [OVERVIEW, "verbs:", *(f"  {verb:<{width}}  {text}" for verb, text in verbs.items())]
    return "\n".join(
        [*lines, "", "certdef VERB --help shows the options of a verb; certdef --version the version."]
    )


def build_parser(verb: str, preset: str) -> Any:
    """The parser of a verb of the job, on the defaults of a preset."""
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
        """Keeps the examples as they are written."""

    parser = ArgumentParser(
        prog=f"certdef {verb}",
        exit_on_error=False,
        allow_abbrev=False,
        add_help=False,
        print_config=None,  # we have one of our own
        usage=f"certdef {verb} {'SHARD... ' if verb == 'merge' else ''}[options]",
        formatter_class=Formatter,
        description=f"{description(verb)}\n\n{_defaults_are(preset)}",
    )
    parser.add_argument("-h", "--help", action="store_true", help="Show the options that are used most.")
    parser.add_argument(
        "--help-all", action="store_true", help="Show all options; --help-all GROUP those of a group."
    )
    for name, text in flags(verb).items():
        parser.add_argument(name, action="store_true", help=text)
    for name, kind, default, text in OPTIONS.get(verb, []):
        parser.add_argument(name, type=kind, default=default, help=text)
    add_config_arguments(parser, preset)
    return parser


def _defaults_are(preset: str) -> str:
    """Whose defaults the help shows: those of a job on one's own target are known with the images."""
    own = "for your own target (--target.uri) they follow your images, and --print-config shows them"
    return f"defaults below are those of preset {preset}; {own}"


def flags(verb: str) -> dict[str, str]:
    """The switches of a verb, with their help."""
    every = {"--print-config": "Print the resolved configuration as YAML and stop."}
    if verb in JOBS:
        every |= {"--fresh": "Train and certify anew; paid answers are kept.", "--quiet": "No progress bars."}
    if verb == "certify":
        every |= {"--prepare": "Do all that comes before the certificates and stop: what shards need."}
    if verb == "merge":
        every |= {"--quiet": "No progress bars."}
    if verb == "plan":
        every |= {"--json": "Print the plan as JSON."}
    if verb == "serve":
        every |= {
            "--allow-seed": "Let a request name the seed; who knows it can search for images whose votes mislead."
        }
    return every


def own_options(verb: str) -> list[str]:
    """Every option that a verb has beside those of the configuration."""
    return ["--help", "--help-all", *flags(verb), *(name for name, *_ in OPTIONS.get(verb, []))]


def description(verb: str, more: str = "") -> str:
    """What a verb does, with examples."""
    text = (JOBS | OTHERS)[verb]
    return f"{text[0].upper()}{text[1:]}. {more}".rstrip() + f"\n\nexamples:\n  {EXAMPLES[verb]}"


def with_ladder(arguments: list[str]) -> list[str]:
    """The arguments with a bare --ladder written out: --ladder.enabled true."""
    following = [*arguments[1:], "-"][: len(arguments)]
    bare = [a == "--ladder" and b.startswith("-") for a, b in zip(arguments, following, strict=True)]
    return ["--ladder.enabled=true" if each else a for a, each in zip(arguments, bare, strict=True)]


def with_shards(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The folders that a merge is given first, and the options, which begin with what the first shard was told."""
    ends = [at for at, each in enumerate(arguments) if each.startswith("-")]
    at = ends[0] if ends else len(arguments)
    folders, options = arguments[:at], arguments[at:]
    told = [folder for folder in folders if (Path(folder) / "config.yaml").is_file()]
    return folders, [*(f"--config={Path(folder) / 'config.yaml'}" for folder in told[:1]), *options]


def wants_help(arguments: list[str]) -> bool:
    """Whether the help of a verb is asked for."""
    return any(argument in ("-h", "--help", "--help-all") for argument in arguments)


def help_of(verb: str, parser: Any, arguments: list[str]) -> str:
    """The help that is asked for: a screen (--help), every option (--help-all), or those of a group (--help-all GROUP)."""
    if "--help-all" not in arguments:
        return short_help(verb, parser.format_help(), own_options(verb))
    following = arguments[arguments.index("--help-all") + 1 :]
    group = following[0] if following and not following[0].startswith("-") else None
    return whole_help(parser.format_help(), group)
