"""What the caller of open_target says about a target, and how it is brought into line with what the target reports."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

from surrogates.errors import ClassesUnknown, TargetError
from surrogates.targets.classes import ClassNames
from surrogates.targets.faults import Faults
from surrogates.targets.formats import PixelFormat, check_input_shape
from surrogates.targets.kinds import OUTPUT_KINDS, OutputKind
from surrogates.targets.reading import Reading

INTEGERS = ("uint8", "int8", "int32", "int64")


class Handed(TypedDict):
    """What every target gets as it was declared: arguments of `Target`."""

    input_shape: tuple[int, int, int] | None
    pixels: PixelFormat
    reading: Reading


@dataclass(frozen=True)
class Declared:
    """Options that every target has; None leaves it to the target, or to the default.

    Args:
        num_classes: Number of classes.
        classes: Their names: a list in the order of the indices, or a map of names to indices. Tables show them, and where
            the target answers names or numbers of its own they stand for the indices.
        identity: Name of the target for ever; a ledger belongs to one identity.
        output_kind: labels, top_k, probabilities or logits.
        output: Name or place of the part of an output that is the answer.
        input_shape: (C, H, W).
        batch_size: Images that are sent at once.
        layout: chw, hwc, flat, flat_hwc, or the sides of one image.
        dtype: float32, float64, float16, uint8, int8, int32 or int64.
        pixel_range: What 0 and 1 become.
        quantize: Bits that pixels are rounded to.
        mean: What is subtracted from each channel, in units of [0, 1].
        std: What each channel is divided by then.
        color: rgb, bgr or gray.
        resize: Height and width that images are resized to, or one number for both.
        order_is_known: Set by the target, not by the caller: see PixelFormat.
    """

    num_classes: int | None = None
    classes: Any = None
    identity: str | None = None
    output_kind: str | None = None
    output: str | int | None = None
    input_shape: tuple[int, int, int] | None = None
    batch_size: int | None = None
    layout: str | tuple[int, ...] | None = None
    dtype: str | None = None
    pixel_range: tuple[float, float] | None = None
    quantize: int | None = None
    mean: tuple[float, ...] | float | None = None
    std: tuple[float, ...] | float | None = None
    color: str | None = None
    resize: tuple[int, int] | int | None = None
    order_is_known: bool = False

    def __post_init__(self) -> None:
        for name in ("input_shape", "pixel_range", "mean", "std"):
            if isinstance(getattr(self, name), Iterable):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        faults = Faults()
        with faults.kept():
            if self.input_shape is not None:
                check_input_shape(self.input_shape)
        with faults.kept():
            if self.names is not None:
                object.__setattr__(self, "num_classes", self._counted(self.names.count))
        with faults.kept():
            # What the model says of its number type may still make these good.
            form = PixelFormat(
                **self._format | {"dtype": "float32" if self.dtype in INTEGERS else self.dtype or "float32"}
            )
            object.__setattr__(self, "resize", form.resize)
            object.__setattr__(self, "layout", None if self.layout is None else form.layout)
        place = isinstance(self.output, int) and not isinstance(self.output, bool) and self.output >= 0
        if self.output is not None and not place and not (isinstance(self.output, str) and self.output):
            faults.add(f"output must be the name or the place of a part, got {self.output!r}: try 0")
        faults.refuse()

    def _counted(self, count: int) -> int:
        """Return the number of classes where their names are listed."""
        if self.num_classes not in (None, count):
            raise TargetError(
                f"num_classes is {self.num_classes!r}, but classes lists {count}: leave num_classes out"
            )
        return count

    @property
    def names(self) -> ClassNames | None:
        """The names of the classes, where they were declared."""
        return None if self.classes is None else ClassNames.of(self.classes)

    @property
    def reading(self) -> Reading:
        """How outputs are read."""
        return Reading(self.names, self.output)

    def kind(self, assumed: str, possible: tuple[str, ...] = OUTPUT_KINDS) -> OutputKind:
        """Return the kind of the answers: what is known by now, else what is assumed until the first answer tells.

        Args:
            assumed: The kind that answers are kept under then.
            possible: What the first answer may be.
        """
        if self.output_kind is not None:
            return OutputKind(self.output_kind)
        return OutputKind(assumed, assumed=True, possible=possible)

    @property
    def handed(self) -> Handed:
        """What every target hands on to `Target` as it is."""
        return {"input_shape": self.input_shape, "pixels": self.pixels, "reading": self.reading}

    @property
    def pixels(self) -> PixelFormat:
        """The pixel format, with defaults where nothing was declared.

        Raises:
            TargetError: The images cannot be brought into it; a line for each reason.
        """
        form = PixelFormat(**self._format)
        if self.input_shape is None:
            return form
        form.check(self.input_shape)
        return form.settled(self.input_shape)

    @property
    def model_shape(self) -> tuple[int, int, int] | None:
        """The shape (C, H, W) in which the model sees images, where that of the images is known."""
        if self.input_shape is None:
            return None
        return PixelFormat(color=self.color, resize=self.resize).model_shape(self.input_shape)

    @property
    def _format(self) -> dict[str, Any]:
        """What PixelFormat takes, as far as it was declared."""
        values = {field.name: getattr(self, field.name) for field in fields(PixelFormat)}
        return {name: value for name, value in values.items() if value is not None}

    def agreed(self, **known: Any) -> "Declared":
        """Return this with what the target reports of itself filled in.

        Raises:
            TargetError: The target contradicts what was declared.
        """
        for name, value in known.items():
            declared = getattr(self, name)
            if None not in (declared, value) and declared != value:
                raise TargetError(f"{name} is {declared!r}, but the target says {value!r}: leave {name} out")
        return replace(self, **{name: value for name, value in known.items() if value is not None})

    def classes_of(self, what: str, remedy: str = "give open_target(..., num_classes=...)") -> int:
        """Return the number of classes.

        Raises:
            ClassesUnknown: Neither the target nor the caller gives it.
        """
        if self.num_classes is None:
            raise ClassesUnknown(f"{what} does not tell its number of classes: {remedy}")
        return self.num_classes


# What a caller may declare.
OPTIONS = tuple(field.name for field in fields(Declared) if field.name != "order_is_known")


def split_options(options: dict[str, Any]) -> tuple[Declared, dict[str, Any]]:
    """Return the options that every target has, and the others, which depend on the kind of target."""
    if "quantise" in options:
        options = {"quantize" if name == "quantise" else name: value for name, value in options.items()}
    own = {name: value for name, value in options.items() if name in OPTIONS}
    return Declared(**own), {name: value for name, value in options.items() if name not in OPTIONS}


def check_options(options: Iterable[str], known: list[str], what: str) -> None:
    """Check that a kind of target has all of these options.

    Raises:
        TargetError: It has no such option.
    """
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            remedy = (
                f"did you mean {close[0]!r}?"
                if close
                else f"it takes {', '.join(known) or 'no such options'}"
            )
            raise TargetError(f"unknown option {name!r} of {what}: {remedy}")
