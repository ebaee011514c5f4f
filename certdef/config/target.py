"""The deployed black box, the query budgets and the surrogate, as configured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

NOISES = ("certified", "uniform", "none")  # what the certified surrogate is trained under
AS_CERTIFIED = (
    "noise",
    "consistency",
    "entropy",
)  # options of the surrogates that are trained as they are certified
FINETUNED = ("finetune_epochs",)  # of the surrogate behind a purifier, where it is attacked


@dataclass(frozen=True)
class TargetConfig:
    """The deployed black box.

    Args:
        uri: Your own target: an MLflow model URI, http(s)://.../invocations (MLflow scoring server),
            http(s)://.../v2/models/NAME (Open Inference Protocol), deployments:/NAME (MLflow Deployments), NAME.onnx,
            NAME.tflite, or a NAME.yaml that maps any JSON endpoint; unset, one is trained, logged and loaded back.
        num_classes: Number of classes; needed only where a service does not tell it.
        kind: What to train where no URI is given: svc (scikit-learn), cnn, or any timm model name.
        epochs: Training epochs of a cnn or timm target.
        augment: Mirror and shift its training images; for natural images.
        output_kind: Kind of its answers: labels, top_k, probabilities or logits; needed only where it can't be detected. A
            cnn that is trained here answers probabilities or logits.
        protocol: mlflow, mlflow-server, deployments, open-inference, onnx, tflite or json, where the URI doesn't tell.
        output: Name or place (from 0) of the part of its output that is the answer, where there are several.
        classes: Names of its classes in the order of the data's labels, or a map of names to labels, for tables and the page;
            needed where it answers names or numbers of its own.
        columns: Names of the columns that a scoring server's model of tables takes, one for each value of an image; asked
            for where layout is flat.
        resize: Height and width that it resizes images to, after the noise, e.g. 224 or [224,224]; antialiased bilinear.
        color: What it takes: rgb, bgr or gray. Gray images are repeated for a color model, color images become their luminance
            for a gray one.
        mean: What is subtracted from each of its channels, in units of [0, 1], e.g. [0.485,0.456,0.406].
        std: What each channel is divided by then, e.g. [0.229,0.224,0.225].
        pixel_range: What 0 and 1 become for it, e.g. [0,255]; after mean and std.
        dtype: Of the pixels that it takes: float32, float64, float16, uint8, int8, int32 or int64.
        layout: Of the images that it takes: chw, hwc, flat (rows), flat_hwc, or the sides of one image, e.g. [784,1].
        quantize: Bits that it rounds pixels to; 8 for a service that takes PNG images. Also --target.quantise.
        batch_size: Most images in one call, of a service in one request.
        token_env: Name of the environment variable that holds a service's token; a mapping that names one needs it here
            too.
        token_header: Header that the token goes out in, with what stands before it; "X-Api-Key:" for the token alone.
        headers: Further headers of each request to a service, none of them a secret, e.g. {X-Model: v2}.
        timeout: Seconds that a service may take for an answer.
        rate: Most images a second.
        concurrency: Most requests at once.
        keep_alive: Use a connection for several requests; faster, for a service that is trusted to answer each request once.
        canary_every: Paid queries after which four fixed images are queried again, so that a service that has changed
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
    classes: list[str] | dict[str, int] | None = None
    columns: list[str] | None = None
    layout: list[int] | str | None = None
    dtype: str | None = None
    pixel_range: tuple[float, float] | None = None
    mean: tuple[float, ...] | float | None = None
    std: tuple[float, ...] | float | None = None
    color: str | None = None
    resize: int | list[int] | None = None
    quantize: int | None = None
    batch_size: int | None = None
    token_env: str | None = None
    token_header: str | None = None
    headers: dict[str, str] | None = None
    timeout: float | None = None
    rate: float | None = None
    concurrency: int | None = None
    keep_alive: bool | None = None
    canary_every: int = 2_000

    @property
    def training(self) -> dict[str, Any]:
        """What a target that is trained here depends on."""
        names = ("uri", "num_classes", "kind", "epochs", "augment", "output_kind")
        return {name: getattr(self, name) for name in names}

    @property
    def is_private(self) -> bool:
        """Whether it takes a token: what it answered is then for this user's eyes alone."""
        return self.token_env is not None

    @property
    def form(self) -> dict[str, Any]:
        """In what form your own target is queried, as far as its answers depend on it; without what is unset."""
        names = (
            "num_classes",
            "output_kind",
            "protocol",
            "output",
            "classes",
            "columns",
            "layout",
            "dtype",
            "pixel_range",
            "mean",
            "std",
            "color",
            "resize",
            "quantize",
            "headers",
        )
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def transport(self) -> dict[str, Any]:
        """How your own target is reached, which no answer depends on; without what is unset."""
        names = ("batch_size", "token_env", "token_header", "timeout", "rate", "concurrency", "keep_alive")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class LedgerConfig:
    """Hard query budgets, one a purpose.

    Args:
        path: The SQLite file; default ledger.db in the work directory. A ledger belongs to one target: another one that is
            trained in the same directory, e.g. from another seed, gets a file of its own beside it.
        training: Queries that label the surrogate's training images.
        evaluation: Queries on held-out images (clean accuracy, agreement).
        certification: Queries under noise that certify the target itself.
        attack: Queries of adversarial images: the transfer attack and, where it is enabled, the threat ladder.
        canary: Queries that notice a changed service (target.canary_every).
        preflight: Queries before a job on your own target: up to 50 held-out images, which evaluation then gets for nothing, and
            where few of them are right the same ones in other pixel formats; 0 is off.
    """

    path: str | None = None
    training: int = 600
    evaluation: int = 2_000
    certification: int = 480_000
    attack: int = 50_000
    canary: int = 2_000
    preflight: int = 1_000


@dataclass(frozen=True)
class SurrogateConfig:
    """The white-box stand-in, distilled from the target's answers alone.

    Args:
        model: cnn, mlp, resnet, nim (the pre-trained denoiser's encoder with a linear head), any timm model name, or none:
            the target alone is certified, without stand-in, attack and served model.
        weights: A surrogate that a job has distilled, as it is: models:/certdef-surrogate/3, runs:/RUN/PATH, or a folder with
            its model.json. Nothing is distilled then, and it is certified, too; model is not read.
        epochs: Passes over the answered images.
        batch_size: Images a step.
        query_batch: Images a query batch.
        learning_rate: Peak rate of AdamW, cosine schedule.
        weight_decay: Weight decay of AdamW.
        shift: Random shifts of the training images by up to this many pixels.
        noise_255: Upper end of the uniform sigma (8-bit levels) of the noise on training images; 0 is off.
        noise: What the certified surrogate is trained under. certified: for each law its own noise, and behind its
            denoiser, a network each, from the same answers; the one above agrees with the target, attacks it and guides its
            votes. uniform: the one above is certified too. none: the same without noise.
        consistency: Weight of the divergence between a certified surrogate's predictions on two noisy views of an image
            (Jeong & Shin, NeurIPS 2020); 0 is off.
        entropy: Weight of the entropy of their mean, where consistency is on.
        finetune_epochs: Further passes, at three tenths of the rate, on images that the purifier has purified, from the same
            answers: for the surrogate behind the purifier in the attack and the threat ladder (You et al., NeurIPS 2023).
            0: the one that agrees stands there.
        loss: auto, or one that suits the answers: l1, soft_cross_entropy, kl, cross_entropy, partial.
        strategy: Which images are queried: random, kcenter, margin, entropy, dfal, kcenter_margin, margin_kcenter or
            dfal_kcenter.
        rounds: Rounds of a strategy other than random; the student is trained between them.
        start: Share of the budget in the first round, which is random.
        round_epochs: Passes between rounds; unset, as many as at the end.
        features: What k-center measures distances in: student, or nim (the pre-trained denoiser's encoder).
        ema: Decay of averaged weights, e.g. 0.99; unset, none.
        validation: Share of the answers held out to measure agreement.
        patience: Epochs without a better held-out agreement after which training stops.
        precision: float32, bfloat16, or on CUDA float16.
        committee: Further students whose mean labels the pool images that were not queried (soft labels); 0 is off.
        unlabelled_weight: Weight of those images in the loss. Also --surrogate.unlabeled_weight.
        unlabelled_ratio: Number of them for each answered image. Also --surrogate.unlabeled_ratio.
    """

    model: str = "mlp"
    weights: str | None = None
    epochs: int = 200
    batch_size: int = 100
    query_batch: int = 100
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    shift: int = 0
    noise_255: float = 75.0
    noise: str = "certified"
    consistency: float = 5.0
    entropy: float = 0.5
    finetune_epochs: int = 0
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

    @property
    def agreeing(self) -> dict[str, Any]:
        """The options that decide the surrogate which attacks and guides; those of its siblings are left out."""
        plain = {name: value for name, value in self.certified.items() if name not in AS_CERTIFIED}
        return plain | ({"noise_255": 0.0} if self.noise == "none" else {})

    @property
    def certified(self) -> dict[str, Any]:
        """The options that decide the surrogates which are trained as they are certified."""
        left_out = FINETUNED if self.weights else (*FINETUNED, "weights")
        return {name: value for name, value in asdict(self).items() if name not in left_out}
