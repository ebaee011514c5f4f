"""Values out of range are refused here, all at once, before anything is trained or paid for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from math import inf, nextafter
from typing import Any

from certdef.config import own_target
from certdef.config.attacks import AttackConfig, LadderConfig, other_attack
from certdef.config.candidates import candidate_laws
from certdef.config.job import (
    AUTO,
    FILES,
    LONGEST_SIDE,
    OFF,
    CertifyConfig,
    ConfigError,
    DataConfig,
    DUCDConfig,
    LedgerConfig,
    RunConfig,
    SurrogateConfig,
    TargetConfig,
    TrackingConfig,
    nearest,
    preset_path,
    without_password,
)
from certdef.config.membership import MembershipConfig
from certdef.config.objects import is_given, is_object
from certdef.config.parts import is_part
from certdef.config.purifiers import LEAVES, DiffusionConfig, NIMConfig, is_code, purifier_names
from certdef.config.target import NOISES
from certdef.config.udc import UDCConfig

GUIDES = ("off", "decide", "budget")
BOUNDS = ("clopper_pearson", "randomized")
BACKENDS = (None, "loky", "dask", "ray")
ENGINES = ("plain", "auto")
DEVICES = ("auto", "cpu", "cuda")

# What is a file name and a metric name as it stands; a space too.
LONGEST_LABEL = 50
LABEL = re.compile(rf"\w[\w .-]{{0,{LONGEST_LABEL - 1}}}")

# The name of a value, whether it is good, and the remedy.
Rules = Iterator[tuple[str, bool, str]]


def check(config: RunConfig) -> None:
    """Refuse values that cannot be used.

    Raises:
        ConfigError: A line for each value, with its name and the remedy.
    """
    lines = [line for found in failures(config).values() for line in found]
    if lines:
        raise ConfigError("\n".join(lines))


def check_names(config: RunConfig) -> None:
    """Answer a mistyped name at once: torch, which takes seconds, is not loaded for it.

    Raises:
        ConfigError: A purifier, guide, bound, back end, engine or device that there is not; the other values that cannot be
            used are named with it, but for those that torch must be loaded to judge.
    """
    certify = config.certify
    purifiers = all(_purifier(name)[0] for name in (config.purifier, *config.ladder.systems))
    words = certify.guide in GUIDES and certify.bound in BOUNDS and certify.engine in ENGINES
    if not (purifiers and words and certify.backend in BACKENDS and config.device in DEVICES):
        lines = [line for found in failures(config, light=True).values() for line in found]
        raise ConfigError("\n".join(lines))


def failures(config: RunConfig, *, light: bool = False) -> dict[str, list[str]]:
    """A line for each value that cannot be used, by its section; under the name of the value where it is in none, and `laws` apart.

    Args:
        config: The job.
        light: Load no torch, and leave out what takes it: the method, a number of votes beside the preset's, headers.

    Raises:
        ConfigError: An unknown preset: nothing else is known then.
    """
    preset_path(config.preset)
    found = _failures(config, "", _job(config))
    for section, rules in {
        "certify": _certify(config.certify, config.preset, light),
        "attack": _attack(config.attack),
        "ladder": _ladder(config.ladder),
        "target": _target(config.target),
        "nim": _nim(config.nim, "nim" in (config.surrogate.model, config.surrogate.features)),
        "surrogate": _surrogate(config.surrogate, config.certify.guided_by_surrogate),
        "ledger": _ledger(config.ledger, config.surrogate.query_batch),
        "data": _data(config),
        "membership": _membership(config.membership, config.target.uri is not None),
        "ducd": _ducd(config.ducd),
        "tracking": _tracking(config.tracking),
        "udc": _udc(config.udc, config.diffusion, config.ducd.enabled),
    }.items():
        for name, lines in _failures(getattr(config, section), f"{section}.", rules).items():
            part = "laws" if name == "laws" else section
            found[part] = [*found.get(part, []), *lines]
    special = {
        "laws": _laws(config.certify),
        "certify": [*_candidates(config.certify), *_baseline(config)],
        "target": [] if light else _headers(config.target),
        "surrogate": _own_surrogates(config),
    }
    for part, more in special.items():
        if more:
            found[part] = [*found.get(part, []), *more]
    return found


def _failures(section: object, prefix: str, rules: Rules) -> dict[str, list[str]]:
    """A line for each value that breaks a rule, by its name; of a value with several rules, the first that it breaks."""
    remedies: dict[str, str] = {}
    for name, good, remedy in rules:
        if not good:
            remedies.setdefault(name, remedy)
    return {
        name: [f"{prefix}{name} is {getattr(section, name)!r}: {remedy}"] for name, remedy in remedies.items()
    }


def _laws(certify: CertifyConfig) -> list[str]:
    failures = [
        f"scale_255 of law {law.label!r} is {law.scale_255!r}: use 8-bit levels above 0, e.g. 3"
        for law in certify.laws
        if not 0 < law.scale_255 <= 255
    ]
    labels = [law.label for law in certify.laws]
    for label in labels:
        if not LABEL.fullmatch(label):
            plain = re.sub(r"[^\w.-]+", "-", label).strip("-.")[:LONGEST_LABEL] or "law"
            remedy = f"it names files and metrics: use up to {LONGEST_LABEL} letters, digits, '_', '.', '-' and spaces, e.g. {plain}"
            failures.append(f"certify.laws has the label {label!r}: {remedy}")
    distinct = {label.lower() for label in labels}  # not every disk tells a from A
    if len(distinct) < len(labels) or "gaussian" in distinct:
        remedy = "give each law its own, whatever the case (gaussian is taken by the comparison)"
        failures.append(f"certify.laws has the labels {labels}: {remedy}")
    return failures


def _baseline(config: RunConfig) -> list[str]:
    baseline = config.certify.baseline
    if baseline is None or config.target.uri is not None:
        return []
    shown = without_password(baseline)
    return [f"certify.baseline is {shown!r}: it is an old version of your own target, give target.uri"]


def _own_surrogates(config: RunConfig) -> list[str]:
    given = config.surrogate.weights
    if given is None or not config.ducd.enabled:
        return []
    return [f"surrogate.weights is {given!r}: the DUCD job distills its own surrogates, unset one of the two"]


def _candidates(certify: CertifyConfig) -> list[str]:
    if isinstance(certify.choose, str) and certify.choose not in (OFF, AUTO):
        return [
            f"certify.choose is {certify.choose!r}: use off, auto, or a list of candidates, e.g. [45,60,90]"
        ]
    try:
        laws = candidate_laws(certify)
    except ConfigError as error:
        return [str(error)]
    if not isinstance(certify.choose, str) and len(laws) < 2:
        return [
            f"certify.choose is {certify.choose!r}: name at least two candidates, e.g. [45,60,90], or use off"
        ]
    return []


def _headers(target: TargetConfig) -> list[str]:
    """The same for headers of requests, without their values, of which one may be a secret."""
    if target.headers is None:
        return []
    from surrogates.errors import TargetError  # loads torch: not for the help, nor without headers
    from surrogates.targets.http_headers import check_headers

    try:
        check_headers(target.headers)
    except TargetError as error:
        return [f"target.headers: {error}"]
    return []


def _job(config: RunConfig) -> Rules:
    yield "purifier", *_purifier(config.purifier)
    yield "device", config.device in DEVICES, "use auto, cpu or cuda"
    yield "threads", config.threads is None or config.threads >= 1, "use at least 1, or leave it out"
    yield "seed", 0 <= config.seed < 2**32, "use a whole number from 0 to 4294967295"


def _purifier(name: str) -> tuple[bool, str]:
    """Whether there is such a purifier, and the remedy."""
    if name == own_target.NONE or is_object(name):
        return True, ""  # an object is of this process, or refused where it is looked up
    if name.startswith("python:"):
        return is_code(name), "write python:package.module:factory"
    return name in purifier_names(), _other_purifiers(name)


def _other_purifiers(*names: str) -> str:
    """What to use in the place of purifiers that there are not."""
    known = sorted({*purifier_names(), own_target.NONE})
    near = "".join(dict.fromkeys(nearest(name, known) for name in names))
    if near:
        return f"certdef purifiers lists them{near}"
    return f"use one of {', '.join(known)}, or python:module:factory"


def _certify(certify: CertifyConfig, preset: str, light: bool) -> Rules:
    yield "alpha", 0 < certify.alpha < 0.5, "use a value in (0, 0.5), e.g. 0.001"
    yield "n0", certify.n0 >= 1, "use at least 1, e.g. 100"
    yield "images", certify.images >= 1, "use at least 1"
    yield "target_images", certify.target_images >= 1, "use at least 1"
    yield "batch_size", certify.batch_size >= 1, "use at least 1"
    yield "laws", len(certify.laws) >= 1, "name at least one law"
    yield "radii", len(certify.radii) >= 1, "name at least one radius, e.g. [0.25, 0.5]"
    yield "radii", all(radius >= 0 for radius in certify.radii), "use radii of 0 or more"
    yield "guide", certify.guide in GUIDES, f"use one of {', '.join(GUIDES)}"
    guided = certify.guide != "off"
    own = not guided or certify.method in ("fixed", CertifyConfig.method)
    remedy = f"a guide stops by a rule of its own, not by method {certify.method}: choose one of the two"
    yield "guide", own, remedy
    chosen = "a guide chooses the class by free votes: set certify.guide off, or leave this out"
    yield "known_class", not (guided and certify.known_class), chosen
    yield "baseline", certify.baseline is None or guided, "it guides the votes: add --certify.guide decide"
    yield "bound", certify.bound in BOUNDS, f"use one of {', '.join(BOUNDS)}"
    plain = certify.bound == CertifyConfig.bound or (certify.method == "fixed" and not guided)
    remedy = "it is known for a fixed number of votes: add --certify.method fixed, and no guide"
    yield "bound", plain, remedy
    yield "backend", certify.backend in BACKENDS, "use loky, dask or ray"
    yield "choice_images", certify.choice_images >= 1, "use at least 1"
    yield "choice_n", certify.choice_n >= 1, "use at least 1, e.g. 200"
    yield "workers", certify.workers >= 1, "use at least 1"
    yield "engine", certify.engine in ENGINES, "use plain or auto"
    if not light and any(getattr(certify, name) != value for name, value in _vote(preset).items()):
        yield from _changed_vote(certify)


def _vote(preset: str) -> dict[str, Any]:
    """Method, n and alpha of a preset, which are known to be good."""
    import yaml

    values = yaml.safe_load(preset_path(preset).read_text()).get("certify", {})
    defaults = {name: getattr(CertifyConfig, name) for name in ("method", "n", "alpha")}
    return {name: values.get(name, default) for name, default in defaults.items()}


def _changed_vote(certify: CertifyConfig) -> Rules:
    from certify.bounds import smallest_n  # loads torch: not for the help, nor for a preset
    from certify.sampling import METHODS

    yield "method", certify.method in METHODS, f"use one of {', '.join(METHODS)}"
    if 0 < certify.alpha < 0.5:
        smallest = smallest_n(nextafter(0.5, 1), certify.alpha)
        yield (
            "n",
            certify.n >= smallest,
            f"alpha {certify.alpha:g} certifies nothing below n={smallest}: use at least that",
        )


def _attack(attack: AttackConfig) -> Rules:
    yield "eps", all(0 <= eps <= 1 for eps in attack.eps), "use [0,1] pixel units: 8/255 is 0.0314"
    yield "eps", len(set(attack.eps)) == len(attack.eps), "name each distance once"
    yield "steps", attack.steps >= 1, "use at least 1"


def _other_attacks(threats: tuple[str, ...]) -> tuple[bool, str]:
    try:
        named = [other_attack(each) for each in threats]
    except ValueError as error:
        return False, str(error)
    return len({*named}) == len(named), "name each attack once"


def _ladder(ladder: LadderConfig) -> Rules:
    unknown = sorted(name for name in ladder.systems if not _purifier(name)[0])
    yield "systems", not unknown, f"{', '.join(unknown)} is no purifier: {_other_purifiers(*unknown)}"
    yield "eps", 0 < ladder.eps <= 1, "use [0,1] pixel units: 8/255 is 0.0314"
    yield "large_eps", 0 < ladder.large_eps <= 1, "use [0,1] pixel units, e.g. 0.5"
    yield "threats", *_other_attacks(ladder.threats)
    for name in (
        "images",
        "target_images",
        "steps",
        "restarts",
        "eot",
        "looks",
        "resubmissions",
        "smoothed_draws",
        "processes",
    ):
        yield name, getattr(ladder, name) >= 1, "use at least 1"
    for name in ("smoothed_images", "students"):
        yield name, getattr(ladder, name) >= 0, "use 0 or more"
    for name in ("square_queries", "decision_queries"):
        queries = getattr(ladder, name)
        least = 4 * ladder.looks
        yield (
            name,
            queries == 0 or queries >= least,
            f"use 0 for off, or at least {least} (4 times ladder.looks)",
        )


def _target(target: TargetConfig) -> Rules:
    yield "canary_every", target.canary_every >= 0, "use a number of queries, or 0 for off"
    if target.uri is None:
        makes = (None, "probabilities") if target.kind == "svc" else (None, "probabilities", "logits")
        remedy = "a target that is trained here answers probabilities, a network also logits"
        yield "output_kind", target.output_kind in makes, remedy
        for name in sorted({*target.form, *target.transport} - {*target.training}):
            yield name, False, "it is for your own target: give target.uri"


def _nim(nim: NIMConfig, encoder_needed: bool) -> Rules:
    yield "epochs", nim.epochs >= 1, "use at least 1"
    yield "finetune_epochs", nim.finetune_epochs >= 0, "use 0 or more"
    own = nim.heads >= 1 and nim.width % nim.heads == 0
    yield "heads", nim.encoder is not None or own, "nim.width must be a multiple of it"
    yield (
        "weights",
        nim.weights in (None, LEAVES) or nim.encoder is not None or is_part(nim.weights),
        "name the network they are of, nim.encoder; or a trained one: models:/NAME/VERSION, runs:/RUN/PATH, or a folder "
        "that holds model.json",
    )
    yield (
        "weights",
        not (nim.encoder and is_part(nim.weights)),
        "it has an encoder of its own: unset nim.encoder",
    )
    yield (
        "tile",
        not (nim.tile and is_part(nim.weights)),
        "nim.weights has tiles of its own, or none: unset it",
    )
    shipped = nim.weights == LEAVES
    yield (
        "weights",
        not (shipped and nim.encoder),
        "the shipped denoiser has an encoder of its own: unset nim.encoder",
    )
    yield "tile", not (shipped and nim.tile), "the shipped denoiser has tiles of its own: unset it"
    for name, used in {"weights": shipped, "tile": nim.tile is not None}.items():
        yield (
            name,
            not (used and encoder_needed),
            "a surrogate with a NIM's encoder needs a plain one: unset it",
        )
    yield "tile", nim.tile is None or nim.tile >= 1, "use a number of pixels, e.g. 32"
    yield "keep", nim.keep is None or 0 <= nim.keep < 1, "use a share in [0, 1), e.g. 0.05"
    yield "ema", nim.ema is None or 0 < nim.ema < 1, "use a decay in (0, 1), e.g. 0.999"
    precisions = ("float32", "bfloat16", "float16")
    yield "precision", nim.precision in precisions, f"use one of {', '.join(precisions)}"


def _surrogate(surrogate: SurrogateConfig, guided: bool) -> Rules:
    yield "epochs", surrogate.epochs >= 1, "use at least 1"
    yield (
        "model",
        surrogate.model != own_target.NONE or not guided,
        "a guide is a surrogate: choose one, name an old version as certify.baseline, or use certify.guide off",
    )
    yield "features", surrogate.features in ("student", "nim"), "use student or nim"
    yield "committee", surrogate.committee >= 0, "use 0 or more"
    yield "noise", surrogate.noise in NOISES, f"use one of {', '.join(NOISES)}"
    yield "consistency", 0 <= surrogate.consistency < inf, "use a weight of 0 (off) or more, e.g. 5"
    alone = surrogate.noise != "certified" or surrogate.loss != "l1" or surrogate.consistency == 0
    yield "consistency", alone, "beside it loss l1 learns nothing: use 0, or surrogate.loss auto"
    yield "entropy", 0 <= surrogate.entropy < inf, "use a weight of 0 (off) or more, e.g. 0.5"
    yield "finetune_epochs", surrogate.finetune_epochs >= 0, "use 0 (off) or more, e.g. 50"
    part = surrogate.weights is None or is_part(surrogate.weights)
    yield "weights", part, "name models:/NAME/VERSION, runs:/RUN/PATH, or a folder that holds model.json"
    alone = surrogate.weights is None or surrogate.model != own_target.NONE
    yield "weights", alone, "surrogate.model is none, the target alone: unset one of the two"
    mixed = surrogate.weights is None or not is_object(surrogate.model)
    yield "weights", mixed, "the surrogate is given as an object, too: leave one of the two out"
    given = is_given(surrogate) and surrogate.finetune_epochs > 0
    yield "finetune_epochs", not given, "a surrogate that was given is not trained further: use 0"


def _ledger(ledger: LedgerConfig, query_batch: int) -> Rules:
    for purpose, budget in asdict(ledger).items():
        if purpose == "preflight":
            yield purpose, budget >= 0, "use a number of queries, or 0 for off"
        elif purpose != "path":
            yield purpose, budget > 0, "a budget must be at least 1 query"
    remedy = f"it is smaller than the first batch (surrogate.query_batch {query_batch}): raise it or lower the batch"
    yield "training", ledger.training >= query_batch, remedy


def _data(config: RunConfig) -> Rules:
    data = config.data
    own = data.path is None or data.name in (DataConfig.name, *FILES)
    yield "path", own, f"{data.name} reads no file: add --data.name files"
    sides = (data.resize,) if isinstance(data.resize, int) else data.resize or ()
    yield (
        "resize",
        all(1 <= side <= LONGEST_SIDE for side in sides),
        f"use 1 to {LONGEST_SIDE:,} pixels, e.g. 224",
    )
    yield "color", data.color in (None, "gray", "rgb"), "use gray or rgb"
    pair = data.columns is None or 1 <= len(data.columns) <= 2
    yield "columns", pair, "name the column of images, then that of labels, e.g. [path,label]"
    natural = config.udc.enabled or config.blind_spot.images == "natural"
    if config.target.uri and data.name == "digits" and not data.path and not natural:
        remedy = "the digits are in no folder, and your target would be paid for them: name the data set (data.name)"
        yield "root", data.root is None, remedy
    for name, value in asdict(data).items():
        if name.endswith("_images"):
            unused = name in ("audit_images", "pool_images")  # what trains nothing needs no pool
            yield name, value >= (not unused), "use 0 or more" if unused else "use at least 1"
    yield "pool_copies", data.pool_copies >= 0, "use 0 or more"


def _tracking(tracking: TrackingConfig) -> Rules:
    name = tracking.registered_model
    good = name is None or bool(name and not set(name) & set("/:"))
    yield "registered_model", good, "MLflow takes no name with / or :, nor an empty one"


def _membership(lists: MembershipConfig, own: bool) -> Rules:
    names = ("members", "nonmembers")
    for name, other in (names, names[::-1]):
        given = getattr(lists, name) is not None
        alone = f"give --membership.{other} as well, the images that the target was {'not ' * (other != 'members')}trained on"
        yield name, not given or getattr(lists, other) is not None, alone
        yield (
            name,
            not given or own,
            "it is for a target of your own, give target.uri; certdef's own is audited by preset ducd-fashion-mnist",
        )


def _ducd(ducd: DUCDConfig) -> Rules:
    shares = ducd.overlaps
    good = len(shares) >= 1 and all(0 <= share <= 1 for share in shares) and len(set(shares)) == len(shares)
    yield "overlaps", good, "use different shares in [0, 1], e.g. [0, 1]"
    levels = all(0 < sigma <= 255 for sigma in ducd.gaussians_255)
    yield "gaussians_255", levels, "use 8-bit levels above 0, e.g. 60"
    yield "rmia_a", 0 <= ducd.rmia_a <= 1, "use a value in [0, 1], e.g. 0.3"
    for name in ("choice_images", "choice_n", "candidates", "population", "references"):
        yield name, getattr(ducd, name) >= 1, "use at least 1"


def _udc(udc: UDCConfig, diffusion: DiffusionConfig, other_job: bool) -> Rules:
    yield "enabled", not (udc.enabled and other_job), "ducd.enabled is true too: choose one job"
    yield "size", udc.size % 2 == 0 and 16 <= udc.size <= 180, "use an even number of pixels from 16 to 180"
    counts = ("crops", "width", "depth", "epochs", "batch_size", "finetune_epochs", "choice_crops")
    for name in (*counts, "pgd_steps", "cw_steps", "simba_queries", "seeds", "adaptive_eot"):
        yield name, getattr(udc, name) >= 1, "use at least 1"
    for name in ("test_crops", "adaptive_crops"):
        yield name, getattr(udc, name) >= 2, "use at least 2: an interval needs them"
    yield "clean_loss", udc.clean_loss >= 0, "use 0 dB or more, e.g. 0.5"
    budgets = udc.eps_255
    good = len(budgets) >= 1 and all(0 < eps <= 255 for eps in budgets) and len(set(budgets)) == len(budgets)
    yield "eps_255", good, "use different 8-bit levels above 0, e.g. [4, 8]"
    if udc.enabled:
        highest = max(diffusion.grid, default=0)
        remedy = f"diffusion.grid goes up to {highest}, of 1,000: use at least that"
        yield "longest", highest <= udc.longest <= 1_000, remedy
        yield (
            "enabled",
            diffusion.pretrained is None,
            "it trains a diffusion network: unset diffusion.pretrained",
        )
        steps = len(diffusion.grid) >= 1 and min(diffusion.grid) >= 1 and (diffusion.steps or 1) >= 1
        yield "enabled", steps, "diffusion.grid and diffusion.steps must be steps of 1 or more"
