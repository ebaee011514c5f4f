"""The command line. `certdef --help` loads no torch: each verb imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from argparse import RawDescriptionHelpFormatter
from typing import Any

from certdef import __version__
from certdef.config.job import ConfigError, RunConfig, nearest
from certdef.config.load import add_config_arguments, from_namespace, parse, preset_of

OVERVIEW = """\
Certify a classifier whose weights are out of reach.

  certdef run                              the whole job on the digits that ship with scikit-learn
  certdef run --preset fashion-mnist --data.root FOLDER
  certdef run --preset ducd-fashion-mnist  certify a surrogate in the target's place, and see what both give away
  certdef run --target.uri models:/mine@prod --data.name npz --data.path images.npz
  certdef certify --certify.n 2000         one stage, and whatever it needs first
  certdef run --print-config > my.yaml     then edit it, and: certdef run --config my.yaml
"""
JOBS = {
    "run": "the whole job: target, surrogate, purifier, certificates, attack, report",
    "pretrain": "pre-train the denoiser of De^3 on the unlabelled pool",
    "distill": "query the target within its budget and distil the surrogate",
    "certify": "certify target and surrogate by randomized smoothing",
    "attack": "PGD on the surrogate, transferred to the target, with and without the purifier",
    "purify": "purify images of your own, or the held-out ones, with the job's purifier",
    "report": "write the page of the job again",
}
OTHERS = {
    "purifiers": "every purifier by name: what it does, its source, and the attacker that it was proposed against",
    "serve": "serve the registered certified classifier with MLflow's scoring server",
    "doctor": "versions, devices, tracking store, and what is missing",
    "cite": "the papers behind the options of a run",
    "ledger": "the bill of a ledger's file: queries by purpose, what they may cost, and their export",
}
EXAMPLES = {
    "run": "certdef run --seed 1 --certify.n 2000\n  certdef run --preset fashion-mnist --data.root FOLDER --device cuda",
    "pretrain": "certdef pretrain --nim.epochs 100",
    "distill": "certdef distill --ledger.training 300\n  certdef distill --budgets 100,300,600 --strategies random,margin --seeds 3 --ledger.training 797",
    "certify": "certdef certify --certify.target_images 20 --ledger.certification 100000",
    "attack": "certdef attack --attack.eps [0.05,0.1] --attack.steps 50\n  certdef attack --ladder --ladder.systems [gs] --ledger.attack 70000",
    "purify": "certdef purify --purifier gs\n  certdef purify --preset fashion-mnist --data.root FOLDER --purifier ncis --images mine.npz --out purified.npz",
    "purifiers": "certdef purifiers\n  certdef run --purifier gs",
    "report": "certdef report",
    "serve": 'certdef serve --port 5001\n  curl -d \'{"inputs": [...], "params": {"n": 2000}}\' -H \'Content-Type: application/json\' http://127.0.0.1:5001/invocations',
    "doctor": "certdef doctor",
    "cite": "certdef cite --preset fashion-mnist",
    "ledger": "certdef ledger runs/digits/ledger.db\n  certdef ledger runs/digits/ledger.db --price 1.50 --export queries.parquet",
}


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 2 for input that can't be used, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # Before torch is loaded: threads that spin while they wait cost a factor of ten on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    verbs = JOBS | OTHERS
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, verbs))
        print(
            OVERVIEW + "\nverbs:\n" + "\n".join(f"  {verb:<{width}}  {text}" for verb, text in verbs.items())
        )
        print("\ncertdef VERB --help shows the options of a verb; certdef --version the version.")
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    try:
        if arguments[0] not in verbs:
            raise ConfigError(
                f"unknown verb {arguments[0]!r}{nearest(arguments[0], list(verbs))}: certdef --help lists them"
            )
        return run_verb(arguments[0], arguments[1:])
    except KeyboardInterrupt:
        print("\ncertdef: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    except ValueError as error:
        if not _expected(error):
            raise
        print(f"certdef: {error}", file=sys.stderr)
        return 2


def run_verb(verb: str, arguments: list[str]) -> int:
    if verb == "ledger":
        return _ledger(arguments)
    if verb == "purifiers":
        return _purifiers(arguments)
    arguments = with_ladder(arguments)
    parser = build_parser(verb, preset_of(arguments))
    if any(argument in ("-h", "--help") for argument in arguments):
        parser.print_help()
        return 0
    namespace = parse(parser, arguments)
    config = from_namespace(parser, namespace)
    if getattr(namespace, "print_config", False):
        print(as_yaml(config), end="")
        return 0
    if verb == "doctor":
        from certdef.doctor import doctor

        return doctor(config)
    if verb == "cite":
        from certdef.report.citations import cite

        print(cite(config))
        return 0
    _quiet()
    if verb == "serve":
        from certdef.models.serving import serve

        print(
            f"serving {namespace.model or config.registered_model} on http://{namespace.host}:{namespace.port}/invocations; Ctrl-C stops it",
            flush=True,
        )
        serve(config, model=namespace.model, host=namespace.host, port=namespace.port)
        return 0
    from certdef import pipeline

    shown = {"progress": not namespace.quiet, "fresh": namespace.fresh}
    if verb == "distill" and namespace.budgets:
        tables = (numbers(namespace.budgets), namespace.strategies.split(","), namespace.seeds)
        summary = pipeline.budgets(config, *tables, **shown)
    elif verb == "purify":
        summary = pipeline.purify(config, namespace.images, namespace.out, **shown)
    else:
        summary = getattr(pipeline, verb)(config, **shown)
    from certdef.report.terminal import headline

    print(headline(config, summary))
    return 0


def _ledger(arguments: list[str]) -> int:
    """Show and export a ledger: a file, not a job, so that it takes none of the job's options."""
    from argparse import ArgumentError, ArgumentParser

    text = OTHERS["ledger"]
    parser = ArgumentParser(
        prog="certdef ledger", exit_on_error=False, formatter_class=RawDescriptionHelpFormatter, add_help=False,
        description=f"{text[0].upper()}{text[1:]}. The file is only read, also while a job is writing.\n\nexamples:\n  {EXAMPLES['ledger']}",
    )  # fmt: skip
    parser.add_argument("file", metavar="FILE", nargs="?", help="A ledger, e.g. runs/digits/ledger.db.")
    parser.add_argument("--price", type=float, metavar="USD", help="Price of 1,000 queries, for the cost.")
    parser.add_argument("--export", metavar="OUT", help="Write every query to OUT, .parquet or .csv.")
    parser.add_argument("--quiet", action="store_true", help="No progress bar.")
    parser.add_argument("-h", "--help", action="store_true", help="Show this help.")
    try:
        namespace, rest = parser.parse_known_args(arguments)
    except ArgumentError as error:
        raise ConfigError(f"{error}: certdef ledger --help shows the options") from error
    if namespace.help:
        parser.print_help()
        return 0
    if rest or namespace.file is None:
        problem = f"unknown option {rest[0]!r}" if rest else "no file given"
        raise ConfigError(f"{problem}: certdef ledger FILE [--price USD] [--export OUT]")
    from certdef.report.ledger_view import render

    print(render(namespace.file, namespace.price))
    if namespace.export:
        from tqdm import tqdm

        from surrogates.ledger.export import export

        rows = export(namespace.file, namespace.export, progress=None if namespace.quiet else tqdm)
        print(f"export   {namespace.export}: {rows:,} queries")
    return 0


def build_parser(verb: str, preset: str) -> Any:
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
        """Keeps the examples as they are written."""

    text = (JOBS | OTHERS)[verb]
    parser = ArgumentParser(
        prog=f"certdef {verb}", exit_on_error=False, add_help=False, usage=f"certdef {verb} [options]", formatter_class=Formatter,
        description=f"{text[0].upper()}{text[1:]}.\n\nexamples:\n  {EXAMPLES[verb]}",
    )  # fmt: skip
    parser.add_argument("-h", "--help", action="store_true", help="Show this help.")
    parser.add_argument(
        "--print-config", action="store_true", help="Print the resolved configuration as YAML and stop."
    )
    if verb in JOBS:
        parser.add_argument(
            "--fresh", action="store_true", help="Train and certify anew; paid answers are kept."
        )
        parser.add_argument("--quiet", action="store_true", help="No progress bars.")
    if verb == "distill":
        parser.add_argument(
            "--budgets",
            type=str | None,
            default=None,
            help="Agreement against queries: a surrogate for each of these numbers of queries, e.g. 100,300,600.",
        )
        parser.add_argument(
            "--strategies",
            type=str,
            default="random",
            help="With --budgets: strategies, e.g. random,kcenter.",
        )
        parser.add_argument("--seeds", type=int, default=1, help="With --budgets: seeds for each of them.")
    if verb == "purify":
        parser.add_argument(
            "--images",
            type=str | None,
            default=None,
            help="An .npz file with the array images, as for data.path; default the job's held-out images.",
        )
        parser.add_argument(
            "--out",
            type=str | None,
            default=None,
            help="Where to write the purified ones (.npz); default purified.npz in the work directory.",
        )
    if verb == "serve":
        parser.add_argument(
            "--model",
            type=str | None,
            default=None,
            help="MLflow model URI; default the latest registered version.",
        )
        parser.add_argument("--host", type=str, default="127.0.0.1", help="Address to listen on.")
        parser.add_argument("--port", type=int, default=5001, help="Port to listen on.")
    add_config_arguments(parser, preset)
    return parser


def _purifiers(arguments: list[str]) -> int:
    """Print the catalogue, which is the same for every job; asked for help, say so."""
    if any(argument in ("-h", "--help") for argument in arguments):
        text = OTHERS["purifiers"]
        print(
            f"usage: certdef purifiers\n\n{text[0].upper()}{text[1:]}.\n\nexamples:\n  {EXAMPLES['purifiers']}"
        )
        return 0
    if arguments:
        raise ConfigError(f"unknown option {arguments[0]!r}: certdef purifiers takes none")
    from certdef.report.catalogue import purifiers_listed

    print(purifiers_listed())
    return 0


def with_ladder(arguments: list[str]) -> list[str]:
    """The arguments with a bare --ladder written out: --ladder.enabled true."""
    following = [*arguments[1:], "-"][: len(arguments)]
    bare = [a == "--ladder" and b.startswith("-") for a, b in zip(arguments, following, strict=True)]
    return ["--ladder.enabled=true" if each else a for a, each in zip(arguments, bare, strict=True)]


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between them; ConfigError otherwise."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"budgets is {text!r}: give numbers of queries, e.g. 100,300,600") from error


def as_yaml(config: RunConfig) -> str:
    import yaml

    return yaml.safe_dump(config.to_dict(), sort_keys=False)


def _expected(error: ValueError) -> bool:
    """Whether an error is one of ours: a line for the user. Anything else is a bug and keeps its traceback."""
    from certify import CertifyError
    from surrogates import SurrogateError

    return isinstance(error, ConfigError | CertifyError | SurrogateError)


def _quiet() -> None:
    """Leave the terminal to our own bars and summary."""
    import logging
    import warnings

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("mlflow").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
