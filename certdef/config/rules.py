"""The rules for single values, a function for each section of the configuration; loads no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict

from certdef.config import own_target
from certdef.config.attacks import OTHER_ATTACKS, AttackConfig, LadderConfig, other_attack
from certdef.config.job import (
    FILES,
    LONGEST_SIDE,
    CertifyConfig,
    DataConfig,
    DUCDConfig,
    LedgerConfig,
    RunConfig,
    SurrogateConfig,
    TargetConfig,
    TrackingConfig,
    nearest,
)
from certdef.config.membership import MembershipConfig
from certdef.config.names import CHOICES, NATURAL, TASKS, is_choice, one_of
from certdef.config.objects import is_given, is_object
from certdef.config.parts import is_part
from certdef.config.purifiers import (
    LEAVES,
    DiffusionConfig,
    NIMConfig,
    ReversalConfig,
    is_code,
    purifier_names,
)
from certdef.config.robustness import RobustnessConfig
from certdef.config.udc import UDCConfig

# The name of a value, whether it is good, and the remedy.
Rules = Iterator[tuple[str, bool, str]]


def rules_of(config: RunConfig) -> dict[str, Rules]:
    """The rules of each section, in the order in which what is wrong is named; those of values in none under ""."""
    return {
        "": _job(config),
        "certify": _certify(config.certify),
        "attack": _attack(config.attack),
        "ladder": _ladder(config.ladder),
        "target": _target(config.target),
        "nim": _nim(config.nim, "nim" in (config.surrogate.model, config.surrogate.features)),
        "blind_spot": iter(()),
        "reversal": _reversal(config.reversal),
        "surrogate": _surrogate(config.surrogate, config.certify.guided_by_surrogate),
        "ledger": _ledger(config.ledger, config.surrogate.query_batch),
        "data": _data(config),
        "membership": _membership(config.membership, config.target.uri is not None),
        "robustness": _robustness(config.robustness),
        "ducd": _ducd(config.ducd),
        "tracking": _tracking(config.tracking),
        "udc": _udc(config.udc, config.diffusion, config.ducd.enabled),
    }


def named_values(config: RunConfig, section: str) -> Rules:
    """The rules for the values of a section that are one of a few names."""
    for key, names in CHOICES.items():
        group, _, name = key.rpartition(".")
        if group == section:
            value = getattr(getattr(config, section) if section else config, name)
            yield name, is_choice(config, key), one_of(value, names)


def _job(config: RunConfig) -> Rules:
    yield "purifier", *known_purifier(config.purifier)
    yield "threads", config.threads is None or config.threads >= 1, "use at least 1, or leave it out"
    yield "seed", 0 <= config.seed < 2**32, "use a whole number from 0 to 4294967295"


def known_purifier(name: str) -> tuple[bool, str]:
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


def _certify(certify: CertifyConfig) -> Rules:
    yield "alpha", 0 < certify.alpha < 0.5, "use a value in (0, 0.5), e.g. 0.001"
    yield "n0", certify.n0 >= 1, "use at least 1, e.g. 100"
    yield "images", certify.images >= 1, "use at least 1"
    yield "target_images", certify.target_images >= 1, "use at least 1"
    yield "batch_size", certify.batch_size >= 1, "use at least 1"
    yield "laws", len(certify.laws) >= 1, "name at least one law"
    yield "radii", len(certify.radii) >= 1, "name at least one radius, e.g. [0.25, 0.5]"
    yield "radii", all(radius >= 0 for radius in certify.radii), "use radii of 0 or more"
    guided = certify.guide != "off"
    own = not guided or certify.method in ("fixed", CertifyConfig.method)
    remedy = f"a guide stops by a rule of its own, not by method {certify.method}: choose one of the two"
    yield "guide", own, remedy
    chosen = "a guide chooses the class by free votes: set certify.guide off, or leave this out"
    yield "known_class", not (guided and certify.known_class), chosen
    yield "baseline", certify.baseline is None or guided, "it guides the votes: add --certify.guide decide"
    plain = certify.bound == CertifyConfig.bound or (certify.method == "fixed" and not guided)
    remedy = "it is known for a fixed number of votes: add --certify.method fixed, and no guide"
    yield "bound", plain, remedy
    yield "choice_images", certify.choice_images >= 1, "use at least 1"
    yield "choice_n", certify.choice_n >= 1, "use at least 1, e.g. 200"
    yield "workers", certify.workers >= 1, "use at least 1"
    if 0 < certify.alpha < 0.5:
        # n votes for one class bound its probability by alpha^(1/n); certify.bounds says it with torch
        smallest = math.floor(-math.log2(certify.alpha)) + 1
        remedy = f"alpha {certify.alpha:g} certifies nothing below n={smallest}: use at least that"
        yield "n", certify.n >= smallest, remedy


def _attack(attack: AttackConfig) -> Rules:
    yield "eps", all(0 <= eps <= 1 for eps in attack.eps), "use [0,1] pixel units: 8/255 is 0.0314"
    yield "eps", len(set(attack.eps)) == len(attack.eps), "name each distance once"
    yield "steps", attack.steps >= 1, "use at least 1"


def _other_attacks(threats: tuple[str, ...]) -> tuple[bool, str]:
    try:
        named = [other_attack(each) for each in threats]
    except ValueError as error:
        names = [each.partition("=")[0] for each in threats]
        near = [nearest(name, OTHER_ATTACKS) for name in names if name not in OTHER_ATTACKS]
        return False, f"{error}{''.join(near[:1])}"
    return len({*named}) == len(named), "name each attack once"


def _ladder(ladder: LadderConfig) -> Rules:
    unknown = sorted(name for name in ladder.systems if not known_purifier(name)[0])
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
        f"that holds model.json{nearest(nim.weights or '', [LEAVES])}",
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


def _surrogate(surrogate: SurrogateConfig, guided: bool) -> Rules:
    yield "epochs", surrogate.epochs >= 1, "use at least 1"
    yield (
        "model",
        surrogate.model != own_target.NONE or not guided,
        "a guide is a surrogate: choose one, name an old version as certify.baseline, or use certify.guide off",
    )
    yield "committee", surrogate.committee >= 0, "use 0 or more"
    yield "consistency", 0 <= surrogate.consistency < math.inf, "use a weight of 0 (off) or more, e.g. 5"
    alone = surrogate.noise != "certified" or surrogate.loss != "l1" or surrogate.consistency == 0
    yield "consistency", alone, "beside it loss l1 learns nothing: use 0, or surrogate.loss auto"
    yield "entropy", 0 <= surrogate.entropy < math.inf, "use a weight of 0 (off) or more, e.g. 0.5"
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
    pair = data.columns is None or 1 <= len(data.columns) <= 2
    yield "columns", pair, "name the column of images, then that of labels, e.g. [path,label]"
    natural = config.udc.enabled or config.blind_spot.images == NATURAL
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


def _robustness(robustness: RobustnessConfig) -> Rules:
    yield "q", 0 < robustness.q < 1, "use a share of the draws between 0 and 1, e.g. 0.1"
    yield "images", robustness.images >= 1, "use at least 1"


def _ducd(ducd: DUCDConfig) -> Rules:
    shares = ducd.overlaps
    good = len(shares) >= 1 and all(0 <= share <= 1 for share in shares) and len(set(shares)) == len(shares)
    yield "overlaps", good, "use different shares in [0, 1], e.g. [0, 1]"
    levels = all(0 < sigma <= 255 for sigma in ducd.gaussians_255)
    yield "gaussians_255", levels, "use 8-bit levels above 0, e.g. 60"
    yield "rmia_a", 0 <= ducd.rmia_a <= 1, "use a value in [0, 1], e.g. 0.3"
    for name in ("choice_images", "choice_n", "candidates", "population", "references"):
        yield name, getattr(ducd, name) >= 1, "use at least 1"


def _reversal(reversal: ReversalConfig) -> Rules:
    unknown = [task for task in reversal.tasks if task not in TASKS]
    yield "tasks", not unknown, f"{', '.join(unknown)} is no task: {one_of(' '.join(unknown[:1]), TASKS)}"
    yield "tasks", len(reversal.tasks) >= 1, f"name at least one of {', '.join(TASKS)}"


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
