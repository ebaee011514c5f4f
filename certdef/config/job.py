"""The one typed configuration: frozen dataclasses, a YAML file, command-line overrides.

The defaults are the `digits` preset. A preset is a YAML file in `certdef/config/presets` that names only what differs.
Everything is in pixel units of [0, 1], except names that end in `_255`: those are 8-bit levels.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from certdef.config.attacks import AttackConfig, LadderConfig
from certdef.config.membership import MembershipConfig
from certdef.config.purifiers import BlindSpotConfig, DiffusionConfig, GSConfig, NIMConfig, ReversalConfig
from certdef.config.robustness import RobustnessConfig
from certdef.config.target import LedgerConfig, SurrogateConfig, TargetConfig
from certdef.config.udc import UDCConfig

PRESETS = Path(__file__).parent / "presets"
LONGEST_SIDE = 8_192  # pixels of an image
OFF, AUTO = "off", "auto"  # certify.choose
CANDIDATES = (45.0, 60.0, 75.0, 90.0, 105.0)  # 8-bit levels, around the mean of the NIM law
FILES = ("files", "npz")  # data.name of a user's own files
LIKE = 0.6  # from this likeness on a name may be what was meant


class ConfigError(ValueError):
    """A configuration that cannot be used: one line that names the value and the remedy."""


@dataclass(frozen=True)
class SigmaLaw:
    """Law of the noise level sigma, one draw an image, as published in 8-bit levels.

    Args:
        label: Name of the law in tables, curves and metrics.
        family: A continuous scipy.stats family, e.g. gamma, uniform, gengamma; or constant, whose sigma is its scale.
        shape: Shape arguments of the family; (25,) for the gamma of noisy image modeling.
        scale_255: Scale in 8-bit levels (0-255); divided by 255 at this door. uniform with scale 150 is U(0, 150)/255.
    """

    label: str = "nim"
    family: str = "gamma"
    shape: tuple[float, ...] = (25.0,)
    scale_255: float = 3.0

    @property
    def parameters(self) -> list[Any]:
        """The parameters that the noise depends on: all but the label."""
        return [self.family, list(self.shape), self.scale_255]


@dataclass(frozen=True)
class DataConfig:
    """The images.

    Args:
        name: digits (ships with scikit-learn), fashion-mnist, cifar10-part (8,152 + 1,017 images of CIFAR-10), or aerial (UC
            Merced scenes, 64x64). With a path it is not needed; files says that a preset's is not meant (npz: an .npz).
        root: Folder of the data sets; default $CERTDEF_DATA_ROOT, else ../shared/data.
        path: Your own images: a folder with a subfolder for each class or without any, a .csv of paths and labels, an .npz or
            .npy of arrays (N,H,W), (N,H,W,C) or (N,C,H,W), uint8 or floats in [0,1], or a folder that datasets saved. See
            docs/data.md.
        columns: Of a .csv or a data set of datasets: the column of paths or images, then that of labels, where the names do
            not tell, e.g. [photo,species].
        images_key: Name of the array of images in an .npz, where it does not tell.
        labels_key: Name of the array of labels in an .npz, where it does not tell.
        labels: For your own target: ignore, so that right means the target's own clean answer; or a file that maps the
            labels to the target's classes, a .yaml or .json of names to numbers or names. Unset, names are matched with
            the target's.
        resize: Size of the images before the noise is added: a number of pixels for the short side, whose center is then
            cut out, or [HEIGHT,WIDTH].
        color: gray or rgb, before the noise is added; unset, rgb where any picture has color.
        target_images: Labeled images that the target's owner trains on, used for nothing else; none are set aside if
            target.uri is given.
        pool_images: Number of unlabeled images: queried, and used to pre-train the denoiser.
        pool_copies: Copies of each of them that join the pool, half of them mirrored, each shifted by up to an eighth of its
            height: for a training budget that is larger than the pool, of natural images.
        heldout_images: Number of images that every figure is measured on.
        audit_images: Labeled images that no model is trained on, for membership inference: non-members, population, and the
            training images of its reference models. Only the DUCD job needs any.
    """

    name: str = "digits"
    root: str | None = None
    path: str | None = None
    columns: tuple[str, ...] | None = None
    images_key: str | None = None
    labels_key: str | None = None
    labels: str | None = None
    resize: int | tuple[int, int] | None = None
    color: str | None = None
    target_images: int = 600
    pool_images: int = 797
    pool_copies: int = 0
    heldout_images: int = 400
    audit_images: int = 0


# Options of certify that no count depends on, or whose outcome is a key of its own.
CERTIFY_ELSEWHERE = (
    "backend",
    "workers",
    "scheduler",
    "engine",
    "choose",
    "choice_images",
    "choice_n",
    "baseline",
)


@dataclass(frozen=True)
class CertifyConfig:
    """Randomized smoothing of both subjects.

    Args:
        laws: Noise laws; the first is the headline and the one that is served, unless one is chosen.
        images: Held-out images certified for the surrogate (free).
        target_images: Held-out images certified for the target (paid).
        n0: Draws that choose the class.
        n: Draws that bound its probability, for the surrogate; for the target as many as its budget allows, at most these.
            A cap for the methods that stop early.
        alpha: Probability that a certificate is wrong.
        radii: L2 radii of the tables, in [0,1] pixel units.
        batch_size: Noisy images a forward pass.
        method: fixed (n draws), two_sided, or one that stops as soon as radius 0 and the radii are decided: sequential,
            group_sequential, group_sequential_two_sided.
        known_class: Certify the class that counts as right, instead of one that n0 draws choose: saves these. A certificate
            then says that this class wins, and an image where another wins is not certified.
        bound: Of method fixed: clopper_pearson, or randomized (Stevens 1950), which is never shorter; its uniform draw is
            in the records.
        guide: Certify the target with the surrogate, or its old version, as guide, for fewer paid votes: off, decide (one of
            the radii an image, by as few votes as decide it) or budget (ledger.certification is spent where it certifies
            most images).
        baseline: An old version of your own target, as a model that runs here (NAME.onnx, NAME.tflite, or an MLflow model), in
            the target's form: it guides in the surrogate's place, and no surrogate is needed for that.
        backend: Certify the surrogate on several workers: loky (this computer), dask or ray; unset, in this process.
            The counts are the same.
        workers: How many workers.
        scheduler: Address of a running dask or ray cluster.
        engine: In which arithmetic denoiser and surrogate vote: plain (float32), or auto, the fastest of float32 and bfloat16
            in either memory layout, measured once on this machine and kept in work_dir: the counts are those of this
            machine then. The target's is never changed.
        choose: Candidates for the headline's noise, of which target and surrogate each get the one that promises the highest
            certified accuracy, averaged over the radii: constant sigmas (8-bit levels), labels of laws, whole or cut to
            sigmas of an interval, e.g. [45,60,90,nim,nim@60-90]. Constant laws of certify.laws are candidates too, and no
            rows. Networks are trained before, under the laws. off: the first law. auto: 45, 60, 75, 90 and 105, unless laws or
            your own target are given, or no more images are held out than choose.
        choice_images: Held-out images that the choice is made on, the last ones; they are not certified.
        choice_n: Votes of each of them, a candidate; the target's are paid from ledger.certification.
    """

    laws: tuple[SigmaLaw, ...] = (SigmaLaw(),)
    images: int = 100
    target_images: int = 50
    n0: int = 100
    n: int = 2_000
    alpha: float = 0.001
    radii: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    batch_size: int = 2048
    method: str = "group_sequential_two_sided"
    known_class: bool = False
    bound: str = "clopper_pearson"
    guide: str = "off"
    baseline: str | None = None
    backend: str | None = None
    workers: int = 2
    scheduler: str | None = None
    engine: str = "plain"
    choose: tuple[float | str, ...] | str = "auto"
    choice_images: int = 60
    choice_n: int = 100

    @property
    def candidates(self) -> tuple[float | str, ...]:
        """What the headline's noise is chosen from; nothing where it is not chosen."""
        if self.choose == AUTO:
            return CANDIDATES if self.laws == CertifyConfig.laws else ()
        return () if isinstance(self.choose, str) else self.choose

    @property
    def settings(self) -> dict[str, Any]:
        """The options that a count depends on: all but where the work is done, how its law was chosen, and later ones that are unset.

        What `engine` and `choose` chose, and what `baseline` is, are keys of their own.
        """
        unset = [
            name for name in ("known_class", "bound") if getattr(self, name) == getattr(CertifyConfig, name)
        ]
        left_out = (*CERTIFY_ELSEWHERE, *unset)
        return {key: value for key, value in asdict(self).items() if key not in left_out}

    @property
    def guided_by_surrogate(self) -> bool:
        """Whether the votes need a surrogate for their guide."""
        return self.guide != "off" and self.baseline is None

    @property
    def selection(self) -> int:
        """Draws that choose the class of an image: n0, or none where it is known."""
        return 0 if self.known_class else self.n0

    @property
    def stops_early(self) -> bool:
        """Whether n is a cap: the draws of an image end as soon as the radii are decided."""
        return self.guide != "off" or "sequential" in self.method


@dataclass(frozen=True)
class DUCDConfig:
    """DUCD: distill, choose the noise, certify the surrogate, compare it with the target (Li et al., arXiv 2408.10647).

    Args:
        enabled: Do this job in the place of the main one. It has no denoiser, no attack and serves nothing.
        overlaps: One surrogate each: the share of its queried images that the target was trained on. The first is
            certified; the others measure how much membership leaks. Above 0 only where certdef trained the target.
        gaussians_255: Candidate noises of constant sigma (8-bit levels), beside those of certify.laws.
        choice_images: Held-out images that the noise is chosen on; they are not certified.
        choice_n: Draws an image, at most, for a candidate.
        candidates: Training images of the target (members), and as many others (non-members).
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
        register_parts: Register what the job trained, too, for others to reuse: denoisers (certdef-nim), diffusion model
            (certdef-diffusion) and surrogate (certdef-surrogate).
        system_metrics: Log processor, memory and GPU use of each stage.
    """

    uri: str | None = None
    experiment: str = "certdef"
    registered_model: str | None = None
    register_parts: bool = False
    system_metrics: bool = True


@dataclass(frozen=True)
class RunConfig:
    """One job, from the black box to the report.

    Args:
        preset: Named starting point: digits, fashion-mnist, cifar10, aerial, ducd-fashion-mnist or udc; own, the default for
            your own target (target.uri): what is not set follows your images.
        seed: Seed of everything that is random.
        device: auto, cpu or cuda.
        threads: Processor threads of torch; default as many as are allowed: the fewest of the processors of this process
            (affinity), the quota of its cgroup, and $OMP_NUM_THREADS; one for images of at most 256 values, where several
            would wait for each other.
        work_dir: Where stages keep their results; default runs/<preset>, or runs/<your target>.
        data: The images.
        target: The deployed black box.
        ledger: Query budgets.
        surrogate: The white-box stand-in.
        purifier: The purifier of target and surrogate, as denoiser and as defense: a name that certdef purifiers lists, none,
            or python:package.module:factory, which imports and runs code of your own.
        nim: Noisy image modeling: the purifiers de3, de3-simmim and mim.
        gs: Gaussian smoothing: the purifiers gs and ncis.
        blind_spot: The blind-spot network: the purifiers ncis and blind-spot.
        reversal: The purifier reversal.
        diffusion: The diffusion model: the purifiers one-step, diffpure, uad-rs and agdm.
        certify: Randomized smoothing.
        attack: The transfer attack.
        ladder: The threat ladder.
        membership: Membership inference on your own target, by lists of your own.
        robustness: The bare target, average case.
        ducd: The DUCD job, in the place of the main one.
        udc: The UDC job, in the place of the main one.
        tracking: MLflow.

    Attributes:
        chosen: The options that were set on purpose, dotted, where `load_config` made this: it is no option itself, and a copy
            with changes (dataclasses.replace) does not have it.
    """

    chosen: ClassVar[frozenset[str] | None] = None
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
    membership: MembershipConfig = field(default_factory=MembershipConfig)
    robustness: RobustnessConfig = field(default_factory=RobustnessConfig)
    ducd: DUCDConfig = field(default_factory=DUCDConfig)
    udc: UDCConfig = field(default_factory=UDCConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def public_dict(self) -> dict[str, Any]:
        """The same without passwords in addresses, which may be logged, printed and published."""
        return json.loads(without_password(json.dumps(self.to_dict())))

    @property
    def name(self) -> str:
        """Name of the job: the preset, or your own target's URI."""
        return (
            re.sub(r"[^A-Za-z0-9]+", "-", without_password(self.target.uri)).strip("-")
            if self.target.uri
            else self.preset
        )

    @property
    def workspace(self) -> Path:
        """Folder of the job: its stages, ledger and report."""
        return Path(self.work_dir or f"runs/{self.name}")

    @property
    def ledger_path(self) -> Path:
        """The ledger's file; of a second target that is trained in the same folder, another one beside it."""
        return Path(self.ledger.path) if self.ledger.path else self.workspace / "ledger.db"

    @property
    def headline_law(self) -> str:
        """Label of the first law: the one of the attack's De^3 and, unless another is chosen, of the headline."""
        return self.certify.laws[0].label

    @property
    def registered_model(self) -> str:
        """Registry name of the certified classifier."""
        return self.tracking.registered_model or f"certdef-{self.name}"

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and values, as YAML and JSON have them."""
        return json.loads(json.dumps(asdict(self)))


def preset_names() -> list[str]:
    """Every preset by name."""
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


def nearest(word: str, known: Iterable[str], most: int = 3) -> str:
    """` (did you mean 'a' or 'b'?)`: the names that are most like a word, best first; empty where none is.

    A name counts as like the word if it begins with it, or if it or its last part is spelled alike.
    """

    def likeness(name: str) -> float:
        last = name.rpartition(".")[2]
        if name.startswith(word) or last.startswith(word):
            return 1.0
        return max(difflib.SequenceMatcher(None, word, form).ratio() for form in (name, last))

    scored = sorted(((likeness(name), name) for name in known), key=lambda pair: -pair[0])
    best = scored[0][0] if scored else 0.0
    close = [repr(name) for score, name in scored if score >= max(LIKE, best - 0.15)][:most]
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def flatten(tree: dict[str, Any], prefix: str = "", groups: bool = False) -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys; with `groups`, also the keys of the inner dictionaries."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if not isinstance(value, dict) or groups:
            flat[prefix + name] = value
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.", groups)
    return flat
