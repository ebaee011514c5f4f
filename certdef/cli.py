"""The command line. `certdef --help` loads no torch: each verb imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentError, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from functools import partial
from typing import Any

from certdef import __version__
from certdef.config import own_target
from certdef.config.checks import failures, first_look
from certdef.config.clash import clash
from certdef.config.job import ConfigError, RunConfig, nearest
from certdef.config.load import (
    UnreadOptions,
    chosen_options,
    from_namespace,
    parse,
    preset_of,
)
from certdef.config.names import FILLS, STRATEGIES, one_of, unknown_corruptions
from certdef.config.threats import OPTIONS as THREAT_OPTIONS
from certdef.config.threats import check_name
from certdef.config.verbs import (
    JOBS,
    OPTIONS,
    OTHERS,
    build_parser,
    description,
    help_of,
    overview,
    own_options,
    wants_help,
    with_ladder,
    with_shards,
)
from certdef.report.unused_options import UnusedOption, unused_options


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 where a gate fails, 2 for input that can't be used, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # Before torch is loaded: threads that spin while they wait cost a factor of ten on a busy computer.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = run_verb(arguments[0] if arguments else "help", arguments[1:])
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read what we print has enough, e.g. head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell says of a program that SIGPIPE has ended
    except KeyboardInterrupt:
        print("\ncertdef: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    except ImportError:
        if found := clash():
            print(f"certdef: surrogates: {found}", file=sys.stderr)
            return 2
        raise
    except ValueError as error:
        if not _expected(error):
            raise
        for line in str(error).splitlines():
            print(f"certdef: {line}", file=sys.stderr)
        return 2


def run_verb(verb: str, arguments: list[str]) -> int:
    """Do what a verb says; returns the exit code."""
    if verb in ("-h", "--help", "help", "--version"):
        print(__version__ if verb == "--version" else overview())
        return 0
    verbs = list(JOBS | OTHERS)
    if verb not in verbs:
        raise ConfigError(f"unknown verb {verb!r}{nearest(verb, verbs)}: certdef --help lists them")
    if verb in OF_NO_JOB:  # without its options
        return OF_NO_JOB[verb](arguments)
    folders: list[str] = []
    if verb == "merge":
        folders, arguments = with_shards(arguments)
    arguments = with_ladder(arguments)
    parser = build_parser(verb, preset_of(arguments))
    if wants_help(arguments):
        print(help_of(verb, parser, arguments), end="")
        return 0
    try:
        namespace = parse(parser, arguments, own_options(verb))
    except UnreadOptions as error:
        if verb != "plan":
            raise
        return _plan(verb, *_readable(parser, error), error.found)
    jobs = verb in JOBS or verb == "plan"  # which name all that is wrong at once
    config = from_namespace(parser, namespace, arguments, checked=not jobs or namespace.print_config)
    namespace.chosen = chosen_options(parser, arguments, own_options(verb))
    namespace.folders = folders
    _check_table(verb, namespace)
    if verb in JOBS:  # a plan looks at all the rest too
        first_look(own_target.checkable(config), namespace.chosen, _unknown_names(verb, config, namespace))
    if not (jobs and (own_target.applies(config) or failures(config))):
        for line in unused_options(config, _part(verb, namespace)):
            print(f"certdef: warning: {line}", file=sys.stderr)
    if namespace.print_config:
        print(as_yaml(_as_it_runs(verb, config, namespace)), end="")
        return 0
    return ACTIONS.get(verb, _job)(verb, config, namespace)


def _as_it_runs(verb: str, config: RunConfig, namespace: Any) -> RunConfig:
    """The configuration with what follows from the images, where your own target is given without a preset."""
    if not own_target.applies(config):
        return config
    from certdef.objects.following import as_it_runs
    from certdef.objects.named import Objects

    _show_first_lines(quiet=False)
    return as_it_runs(config, verb, Objects(chosen=namespace.chosen))


def _part(verb: str, namespace: Any) -> str:
    """The verb as unused_options knows it: a table of budgets and the shipped denoiser read other options."""
    if verb == "merge":
        return "certify"
    named = {"distill": "budgets", "pretrain": "leaves"}.get(verb, "")
    return named if getattr(namespace, named, None) else verb


def _check_table(verb: str, namespace: Any) -> None:
    """Refuse the options of a table of budgets, or of the shipped denoiser, where there is none: they would be ignored."""
    if verb == "pretrain" and not namespace.leaves:
        for name in ("leaves_images", "leaves_epochs"):
            if (value := getattr(namespace, name)) is not None:
                option = "--" + name.replace("_", "-")
                raise ConfigError(
                    f"{option} is {value}: it is for --leaves FOLDER; a job's pool takes --nim.epochs"
                )
    if verb == "distill" and not namespace.budgets:
        for name, _, default, _ in OPTIONS["distill"]:
            value = getattr(namespace, name.lstrip("-"))
            if value != default:
                raise ConfigError(
                    f"{name} is {value!r}: it is for the table of --budgets; one surrogate takes "
                    "--surrogate.strategy and --seed"
                )


def _unknown_names(verb: str, config: RunConfig, namespace: Any) -> list[str]:
    """A line for each name that nobody knows among what a verb alone reads, which --print-config is not asked about."""
    if namespace.print_config:
        return []
    if verb == "distill" and namespace.budgets:
        each = [name for name in namespace.strategies.split(",") if name not in STRATEGIES]
        return [f"--strategies has {name!r}: {one_of(name, STRATEGIES)}" for name in each]
    if verb == "robustness":
        return unknown_corruptions(config)
    if verb == "certify":
        try:
            check_name(namespace.threat)
        except ConfigError as error:
            return [str(error)]
        if namespace.threat == "patch" and namespace.fill not in (None, *FILLS):
            return [f"--fill is {namespace.fill!r}: {one_of(namespace.fill, FILLS)}"]
    return []


def _job(verb: str, config: RunConfig, namespace: Any) -> int:
    """Run a verb of the job and print its summary."""
    _quiet()
    from certdef import pipeline

    options = {"progress": not namespace.quiet, "fresh": namespace.fresh}
    _show_first_lines(namespace.quiet)
    if verb == "pretrain" and namespace.leaves:
        recipe = {"images": namespace.leaves_images, "epochs": namespace.leaves_epochs}
        from certdef.stages.leaves import pretrain_leaves

        print(pretrain_leaves(config, namespace.leaves, **recipe, **options))
        return 0
    if own_target.applies(config):
        options |= {"chosen": namespace.chosen}
    if verb == "distill" and namespace.budgets:
        table = (numbers(namespace.budgets), namespace.strategies.split(","), namespace.seeds)
        summary = pipeline.budgets(config, *table, **options)
    elif verb == "certify":
        options |= {"shard": namespace.shard, "prepare": namespace.prepare}
        against = {each.name: getattr(namespace, each.name) for each in THREAT_OPTIONS}
        summary = pipeline.certify(config, threat=namespace.threat, threat_options=against, **options)
    elif verb == "purify":
        summary = pipeline.purify(config, namespace.images, namespace.out, **options)
    else:
        summary = getattr(pipeline, verb)(config, **options)
    print(f"\n{summary}")
    return 0


def _merge(verb: str, config: RunConfig, namespace: Any) -> int:
    """Join shards and print the summary of the whole."""
    _quiet()
    from certdef import pipeline

    _show_first_lines(namespace.quiet)
    options = {"chosen": namespace.chosen} if own_target.applies(config) else {}
    summary = pipeline.merge(namespace.folders, config, progress=not namespace.quiet, **options)
    print(f"\n{summary}")
    return 0


def _doctor(verb: str, config: RunConfig, namespace: Any) -> int:
    try:
        from certdef.doctor import doctor
    except ImportError:
        if found := clash():  # nothing else can be looked at
            print(f"MISSING  surrogates {found}")
            return 1
        raise
    return doctor(config)


def _readable(parser: Any, error: UnreadOptions) -> tuple[RunConfig, Any]:
    """The configuration and the options without those that can't be read."""
    namespace = parser.parse_args(error.rest)
    namespace.chosen = chosen_options(parser, error.rest)
    return from_namespace(parser, namespace, error.rest, checked=False), namespace


def _plan(verb: str, config: RunConfig, namespace: Any, unread: dict[str, list[str]] | None = None) -> int:
    """Print the plan of a job, or all that is wrong with it."""
    _quiet()
    _show_first_lines(quiet=False)
    from certdef.pipeline import plan
    from certdef.report.plan import show

    planned = partial(plan, chosen=namespace.chosen) if own_target.applies(config) else plan
    return show(planned, config, namespace.price, as_json=namespace.json, unread=unread)


def _cite(verb: str, config: RunConfig, namespace: Any) -> int:
    from certdef.report.citations import cite

    print(cite(config))
    return 0


def _serve(verb: str, config: RunConfig, namespace: Any) -> int:
    _quiet()
    from certdef.models.serving import Limits, serve

    def ready(model: str, address: str) -> None:
        print(f"serving {model} on {address}/invocations; Ctrl-C stops it", flush=True)

    limits = Limits(namespace.max_n, namespace.max_votes, namespace.allow_seed)
    where = {"host": namespace.host, "port": namespace.port}
    serve(config, model=namespace.model, limits=limits, ready=ready, **where)
    return 0


ACTIONS: dict[str, Callable[[str, RunConfig, Any], int]] = {
    "doctor": _doctor,
    "cite": _cite,
    "merge": _merge,
    "serve": _serve,
    "plan": _plan,
}


def _ledger_parser() -> ArgumentParser:
    """The options of certdef ledger."""
    parser = ArgumentParser(
        prog="certdef ledger",
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=RawDescriptionHelpFormatter,
        add_help=False,
        description=description("ledger", "The file is only read, also while a job is writing."),
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help="A ledger, e.g. runs/digits/ledger.db.")
    parser.add_argument("--price", type=float, metavar="USD", help="Price of 1,000 queries, for the cost.")
    parser.add_argument("--export", metavar="OUT", help="Write every query to OUT, .parquet or .csv.")
    parser.add_argument(
        "--digest",
        action="store_true",
        help="Print the SHA-256 of every query and answer, as evidence has it.",
    )
    parser.add_argument(
        "--upto",
        type=int,
        metavar="BATCH",
        help="With --digest: of the batches up to this one, the later ones left out.",
    )
    parser.add_argument("--quiet", action="store_true", help="No progress bar.")
    parser.add_argument("-h", "--help", action="store_true", help="Show this help.")
    return parser


def _ledger(arguments: list[str]) -> int:
    """Print and export the query bill of a ledger: a file, not a job, so that it takes none of the job's options."""
    parser = _ledger_parser()
    try:
        namespace, rest = parser.parse_known_args(arguments)
    except ArgumentError as error:
        raise ConfigError(f"{error}: certdef ledger --help shows the options") from error
    if namespace.help:
        parser.print_help()
        return 0
    if rest or namespace.file is None:
        options = ["--price", "--export", "--digest", "--upto", "--quiet", "--help"]
        problem = f"unknown option {rest[0]!r}{nearest(rest[0], options)}" if rest else "no file given"
        raise ConfigError(f"{problem}: certdef ledger FILE [--price USD] [--export OUT] [--digest]")
    if namespace.upto is not None and not namespace.digest:
        raise ConfigError(f"--upto is {namespace.upto}: it is for --digest, add that")
    if not os.path.isfile(namespace.file):  # before torch is loaded
        raise ConfigError(
            f"ledger {namespace.file} does not exist: give the file of a ledger, e.g. runs/digits/ledger.db"
        )
    from certdef.report.ledger_view import render

    print(render(namespace.file, namespace.price))
    if namespace.export:
        from tqdm import tqdm

        from surrogates.ledger.export import export

        rows = export(namespace.file, namespace.export, progress=None if namespace.quiet else tqdm)
        print(f"export   {namespace.export}: {rows:,} queries")
    if namespace.digest:
        from surrogates.ledger.digest import ledger_digest

        found = ledger_digest(namespace.file, namespace.upto)
        print(f"digest   sha256:{found.sha256} of {found.queries:,} queries, up to batch {found.upto}")
    return 0


def _purifiers(arguments: list[str]) -> int:
    """Print the catalogue of purifiers, which is the same for every job, or the verb's help."""
    if wants_help(arguments):
        print(f"usage: certdef purifiers\n\n{description('purifiers')}")
        return 0
    if arguments:
        raise ConfigError(f"unknown option {arguments[0]!r}: certdef purifiers takes none")
    from certdef.report.catalogue import purifiers_listed

    print(purifiers_listed())
    return 0


def _compare(arguments: list[str]) -> int:
    """Compare two certifications, which may be of other machines: it takes none of a job's options."""
    from certdef.release.command import run

    _quiet()
    return run(arguments)


def _evidence(arguments: list[str]) -> int:
    """Gather the evidence of a run, which may be of another machine: it takes none of a job's options."""
    from certdef.release.evidence_command import run

    _quiet()
    return run(arguments)


def _completion(arguments: list[str]) -> int:
    """Print the completion script of a shell, or the verb's help."""
    usage = "usage: certdef completion bash|zsh"
    if wants_help(arguments):
        print(f"{usage}\n\n{description('completion')}")
        return 0
    if len(arguments) != 1:
        raise ConfigError("name one shell: certdef completion bash, or zsh")
    from certdef.config.completion import script
    from certdef.release import command, evidence_command

    parsers = {
        "ledger": _ledger_parser(),
        "compare": command.build_parser(),
        "evidence": evidence_command.build_parser(),
    }
    print(script(arguments[0], parsers), end="")
    return 0


OF_NO_JOB: dict[str, Callable[[list[str]], int]] = {
    "ledger": _ledger,
    "purifiers": _purifiers,
    "compare": _compare,
    "evidence": _evidence,
    "completion": _completion,
}


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between them; ConfigError otherwise."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"budgets is {text!r}: give numbers of queries, e.g. 100,300,600") from error


def as_yaml(config: RunConfig) -> str:
    """The configuration as a file for --config."""
    import yaml

    return yaml.safe_dump(config.to_dict(), sort_keys=False)


def _expected(error: ValueError) -> bool:
    """Whether an error is one of ours: a line for the user. Anything else is a bug and keeps its traceback."""
    if isinstance(error, ConfigError):
        return True  # and no torch is loaded to say so: a typo is answered at once
    from certify import CertifyError
    from surrogates import SurrogateError

    return isinstance(error, CertifyError | SurrogateError)


def _quiet() -> None:
    """Leave the terminal to our own bars and summary."""
    import logging
    import warnings

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UnusedOption)  # they are printed before the job starts
    logging.getLogger("mlflow").setLevel(logging.ERROR)


def _show_first_lines(quiet: bool) -> None:
    """Print what a job says of itself before it starts; quiet, its warnings alone."""
    import logging

    class Printed(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lead = "certdef: warning: " if record.levelno >= logging.WARNING else ""
            print(f"{lead}{record.getMessage()}", file=sys.stderr, flush=True)

    logger = logging.getLogger("certdef")
    logger.handlers = [Printed()]
    logger.propagate = False
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
