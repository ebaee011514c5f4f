"""The one typed configuration: frozen dataclasses, a YAML file, command-line overrides.

The defaults are the `digits` preset. A preset is a YAML file in `certdef/config/presets` that names only what differs.
Everything is in pixel units of [0, 1], except what has `_255` in its name: those are 8-bit levels.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from certdef.config.attacks import AttackConfig, LadderConfig
from certdef.config.purifiers import BlindSpotConfig, DiffusionConfig, GSConfig, NIMConfig, ReversalConfig

PRESETS = Path(__file__).parent / "presets"


class ConfigError(ValueError):
    """A configuration that cannot be used: one line that names the value and the remedy."""


@dataclass(frozen=True)
class SigmaLaw:
    """Law of the noise level sigma, one draw an image, as published in 8-bit levels.

    Args:
        label: Name of the law in tables, curves and metrics.
        family: A continuous scipy.stats family, e.g. gamma, uniform, gengamma; or constant, whose sigma is its scale.
        shape: Shape arguments of the family; (25,) for the gamma of noisy image modelling.
        scale_255: Scale in 8-bit levels (0-255); divided by 255 at this door. uniform with scale 150 is U(0, 150)/255.
    """

    label: str = "nim"
    family: str = "gamma"
    shape: tuple[float, ...] = (25.0,)
    scale_255: float = 3.0

    @property
    def parameters(self) -> list[Any]:
        """What the noise depends on: all but the label."""
        return [self.family, list(self.shape), self.scale_255]


@dataclass(frozen=True)
class DataConfig:
    """The images.

    Args:
        name: digits (ships with scikit-learn), fashion-mnist, cifar10-part (8,152 + 1,017 images of CIFAR-10), aerial (UC
            Merced scenes, 64x64), or npz for your own file.
        root: Folder of the data sets; default $CERTDEF_DATA_ROOT, else ../shared/data.
        path: For npz: a file with `images` (N,H,W), (N,H,W,C) or (N,C,H,W), uint8 or floats in [0,1], and `labels` (N,).
        target_images: Labelled images that the owner of the target trains on (no one else sees them); none are set aside if
            target.uri is given.
        pool_images: How many unlabelled images we own: queried, and used to pre-train the denoiser.
        heldout_images: How many images every figure is measured on.
        audit_images: Labelled images that no model saw, for membership inference: non-members, population, and what its
            reference models are trained on. Only the DUCD job needs any.
    """

    name: str = "digits"
    root: str | None = None
    path: str | None = None
    target_images: int = 600
    pool_images: int = 797
    heldout_images: int = 400
    audit_images: int = 0


@dataclass(frozen=True)
class TargetConfig:
    """The deployed black box.

    Args:
        uri: Your own target: an MLflow model URI, http(s)://.../invocations (MLflow scoring server),
            http(s)://.../v2/models/NAME (Open Inference Protocol), NAME.onnx, or a NAME.yaml that maps any JSON
            endpoint; unset, one is trained, logged and loaded back.
        num_classes: Number of classes; needed only where it can't be read off the data's labels.
        kind: What to train where no URI is given: svc (scikit-learn), cnn, or any timm model name.
        epochs: Training epochs of a cnn or timm target.
        augment: Mirror and shift its training images; for natural images.
        output_kind: What it answers: labels, top_k, probabilities or logits; needed only where it can't be detected. A
            cnn that is trained here answers probabilities or logits.
        protocol: mlflow, mlflow-server, open-inference, onnx or json, where the URI doesn't tell.
        output: Name of the output to read, where a model has several.
        layout: Of the images that it takes: chw, hwc or flat.
        dtype: Of the pixels that it takes: float32, float64 or uint8.
        pixel_range: What pixels of 0 and 1 become for it, e.g. 0,255.
        quantise: Bits that it rounds pixels to; 8 for a service that takes PNG images.
        batch_size: Most images a query, of a service a request.
        token_env: Name of the environment variable that holds a service's token.
        token_header: Header that the token goes out in, with what stands before it; "X-Api-Key:" for the token alone.
        timeout: Seconds that a service may take for an answer.
        rate: Most images a second.
        concurrency: Most requests at once.
        canary_every: Paid queries after which four fixed images are asked again, so that a service that has changed
            stops the run; 0 is off.
    """

    uri: str | None = None
    num_classes: int | None = None
    kind: str = "svc"
    epochs: int = 5
    augment: bool = False
    output_kind: str | None = None
    protocol: str | None = None
    output: str | None = None
    layout: str | None = None
    dtype: str | None = None
    pixel_range: tuple[float, float] | None = None
    quantise: int | None = None
    batch_size: int | None = None
    token_env: str | None = None
    token_header: str | None = None
    timeout: float | None = None
    rate: float | None = None
    concurrency: int | None = None
    canary_every: int = 2_000

    @property
    def training(self) -> dict[str, Any]:
        """What a target that is trained here depends on."""
        names = ("uri", "num_classes", "kind", "epochs", "augment", "output_kind")
        return {name: getattr(self, name) for name in names}

    @property
    def form(self) -> dict[str, Any]:
        """In what form your own target is asked, as far as its answers depend on it; what is unset is left out."""
        names = (
            "num_classes",
            "output_kind",
            "protocol",
            "output",
            "layout",
            "dtype",
            "pixel_range",
            "quantise",
        )
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def transport(self) -> dict[str, Any]:
        """How your own target is reached, which no answer depends on; what is unset is left out."""
        names = ("batch_size", "token_env", "token_header", "timeout", "rate", "concurrency")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class LedgerConfig:
    """Hard query budgets, one column a purpose.

    Args:
        path: The SQLite file; default ledger.db in the work directory.
        training: Queries that label the surrogate's training images.
        evaluation: Queries on held-out images (clean accuracy, agreement).
        certification: Queries under noise that certify the target itself.
        attack: Queries that test adversarial images: the transferred attack and, where it is asked for, the ladder.
        canary: Queries that notice a changed service (target.canary_every).
    """

    path: str | None = None
    training: int = 600
    evaluation: int = 2_000
    certification: int = 525_000
    attack: int = 50_000
    canary: int = 2_000


@dataclass(frozen=True)
class SurrogateConfig:
    """The white-box stand-in, distilled from the target's answers alone.

    Args:
        model: cnn, mlp, nim (the pre-trained denoiser's encoder with a linear head), or any timm model name.
        epochs: Passes over the answered images.
        batch_size: Images a step.
        query_batch: Images a query batch.
        learning_rate: Peak rate of AdamW, cosine schedule.
        weight_decay: Weight decay of AdamW.
        shift: Random shifts of the training images by up to this many pixels.
        noise_255: Upper end of the uniform sigma (8-bit levels) of the noise on training images; 0 is off.
        loss: auto, or what suits the answers: l1, soft_cross_entropy, kl, cross_entropy, partial.
        strategy: Which images are asked about: random, kcenter, margin, entropy, dfal, kcenter_margin, margin_kcenter or
            dfal_kcenter.
        rounds: Rounds of a strategy other than random; the student is trained between them.
        start: Share of the budget in the first round, which is random.
        round_epochs: Passes between rounds; unset, as many as at the end.
        features: What k-center measures distances in: student, or nim (the pre-trained denoiser's encoder).
        ema: Decay of averaged weights, e.g. 0.99; unset, none.
        validation: Share of the answers held out to measure agreement.
        patience: Epochs without a better held-out agreement after which training stops.
        precision: float32, bfloat16, or on CUDA float16.
        committee: Further students whose mean teaches the pool images that were not asked about; 0 is off.
        unlabelled_weight: Weight of those images.
        unlabelled_ratio: How many of them for each answered image.
    """

    model: str = "mlp"
    epochs: int = 200
    batch_size: int = 100
    query_batch: int = 100
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    shift: int = 0
    noise_255: float = 75.0
    loss: str = "auto"
    strategy: str = "random"
    rounds: int = 5
    start: float = 0.2
    round_epochs: int | None = None
    features: str = "student"
    ema: float | None = None
    validation: float | None = None
    patience: int | None = None
    precision: str = "float32"
    committee: int = 0
    unlabelled_weight: float = 1.0
    unlabelled_ratio: int = 4


@dataclass(frozen=True)
class CertifyConfig:
    """Randomized smoothing of both subjects.

    Args:
        laws: Noise laws; the first is the headline and the one that is served.
        images: Held-out images certified for the surrogate (free).
        target_images: Held-out images certified for the target (paid).
        n0: Draws that choose the class.
        n: Draws that bound its probability, for the surrogate; the target gets what its budget allows, at most this.
        alpha: Probability that a certificate is wrong.
        radii: L2 radii of the tables, in [0,1] pixel units.
        batch_size: Noisy images a forward pass.
        method: fixed (n draws), two_sided, or one that stops early at the radii: sequential, group_sequential;
            n is then a cap.
        guide: Certify the target with the surrogate as guide, for fewer paid votes: off, decide (one of the radii an
            image, by as few votes as decide it) or budget (ledger.certification goes where it certifies most images).
        backend: Certify the surrogate on several workers: loky (this machine), dask or ray; unset, in this process.
            The counts are the same.
        workers: How many workers.
        scheduler: Address of a running dask or ray cluster.
    """

    laws: tuple[SigmaLaw, ...] = (SigmaLaw(), SigmaLaw(label="wide", scale_255=6.0))
    images: int = 100
    target_images: int = 50
    n0: int = 100
    n: int = 10_000
    alpha: float = 0.001
    radii: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    batch_size: int = 2048
    method: str = "fixed"
    guide: str = "off"
    backend: str | None = None
    workers: int = 2
    scheduler: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What a count depends on: everything but where the work is done."""
        return {
            key: value
            for key, value in asdict(self).items()
            if key not in ("backend", "workers", "scheduler")
        }


@dataclass(frozen=True)
class DUCDConfig:
    """DUCD: distil, choose the noise, certify the surrogate, compare it with the target (Li et al., arXiv 2408.10647).

    Args:
        enabled: Do this job in the place of the main one. It has no denoiser, no attack and serves nothing.
        overlaps: One surrogate each: the share of its queried images that the target was trained on. The first is
            certified; the others show how much membership leaks. Above 0 only where certdef trained the target.
        gaussians_255: Candidate noises of constant sigma (8-bit levels), beside those of certify.laws.
        choice_images: Held-out images that the noise is chosen on; they are not certified.
        choice_n: Draws an image, at most, for a candidate.
        candidates: Training images of the target, and as many that it never saw, to be told apart.
        population: Images that RMIA compares a candidate with.
        references: Models that the attacker trains; LiRA needs two.
        rmia_a: RMIA's offline correction, in [0, 1].
    """

    enabled: bool = False
    overlaps: tuple[float, ...] = (0.0, 1.0)
    gaussians_255: tuple[float, ...] = (30.0, 60.0, 90.0)
    choice_images: int = 50
    choice_n: int = 1_000
    candidates: int = 300
    population: int = 100
    references: int = 4
    rmia_a: float = 0.3


@dataclass(frozen=True)
class TrackingConfig:
    """MLflow.

    Args:
        uri: Tracking URI; default $MLFLOW_TRACKING_URI, else the local store in mlruns/.
        experiment: Name of the experiment.
        registered_model: Registry name of the certified classifier; default certdef-<preset>, or certdef-<your target>.
        system_metrics: Log processor, memory and GPU use of each stage.
    """

    uri: str | None = None
    experiment: str = "certdef"
    registered_model: str | None = None
    system_metrics: bool = True


@dataclass(frozen=True)
class RunConfig:
    """One job, from the black box to the report.

    Args:
        preset: Named starting point: digits, fashion-mnist, cifar10, aerial or ducd-fashion-mnist.
        seed: Seed of everything that is random.
        device: auto, cpu or cuda.
        threads: Processor threads of torch; default all cores.
        work_dir: Where stages keep what they made; default runs/<preset>, or runs/<your target>.
        data: The images.
        target: The deployed black box.
        ledger: Query budgets.
        surrogate: The white-box stand-in.
        purifier: What stands in front of the classifier, as denoiser and as defense: a name that certdef purifiers lists,
            or python:package.module:factory, which imports and runs that code of your own.
        nim: Noisy image modelling: the purifiers de3, de3-simmim and mim.
        gs: Gaussian smoothing: the purifiers gs and ncis.
        blind_spot: The blind-spot network: the purifiers ncis and blind-spot.
        reversal: The purifier reversal.
        diffusion: The diffusion model: the purifiers one-step, diffpure, uad-rs and agdm.
        certify: Randomized smoothing.
        attack: The transferred attack.
        ladder: The threat ladder.
        ducd: The DUCD job, in the place of the main one.
        tracking: MLflow.
    """

    preset: str = "digits"
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    work_dir: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    ledger: LedgerConfig = field(default_factory=LedgerConfig)
    surrogate: SurrogateConfig = field(default_factory=SurrogateConfig)
    purifier: str = "de3"
    nim: NIMConfig = field(default_factory=NIMConfig)
    gs: GSConfig = field(default_factory=GSConfig)
    blind_spot: BlindSpotConfig = field(default_factory=BlindSpotConfig)
    reversal: ReversalConfig = field(default_factory=ReversalConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    certify: CertifyConfig = field(default_factory=CertifyConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    ladder: LadderConfig = field(default_factory=LadderConfig)
    ducd: DUCDConfig = field(default_factory=DUCDConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def public_dict(self) -> dict[str, Any]:
        """The same without passwords in addresses: what may be logged, printed and published."""
        return json.loads(without_password(json.dumps(self.to_dict())))

    @property
    def name(self) -> str:
        """What the job is called: the preset, or your own target's URI."""
        return (
            re.sub(r"[^A-Za-z0-9]+", "-", without_password(self.target.uri)).strip("-")
            if self.target.uri
            else self.preset
        )

    @property
    def workspace(self) -> Path:
        return Path(self.work_dir or f"runs/{self.name}")

    @property
    def ledger_path(self) -> Path:
        return Path(self.ledger.path) if self.ledger.path else self.workspace / "ledger.db"

    @property
    def headline_law(self) -> str:
        """Label of the first law: the one of the headline, the attack's De^3 and the served model."""
        return self.certify.laws[0].label

    @property
    def registered_model(self) -> str:
        return self.tracking.registered_model or f"certdef-{self.name}"

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and values, as YAML and JSON have them."""
        return json.loads(json.dumps(asdict(self)))


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_path(name: str) -> Path:
    """Path of a preset's YAML file; ConfigError that lists the known ones otherwise."""
    path = PRESETS / f"{name}.yaml"
    if name not in preset_names():
        raise ConfigError(
            f"unknown preset {name!r}: choose one of {', '.join(preset_names())}{nearest(name, preset_names())}"
        )
    return path


def without_password(text: str) -> str:
    """Addresses in a text without the user and password in front of the host."""
    return re.sub(r"://[^/@\s\"]+@", "://…@", text)


def nearest(word: str, known: list[str]) -> str:
    """` (did you mean ...?)`, or nothing where nothing is close."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def flatten(tree: dict[str, Any], prefix: str = "", groups: bool = False) -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys; with `groups`, also the keys of the inner dictionaries."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if not isinstance(value, dict) or groups:
            flat[prefix + name] = value
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.", groups)
    return flat
