"""What the caller of open_target says about a target, and how it is brought into line with what the target reports."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from surrogates.errors import ClassesUnknown, TargetError
from surrogates.targets.formats import PixelFormat


@dataclass(frozen=True)
class Declared:
    """Options that every target has; None leaves it to the target, or to the default.

    Args:
        num_classes: Number of classes.
        identity: Name of the target for ever; a ledger belongs to one identity.
        output_kind: labels, top_k, probabilities or logits.
        input_shape: (C, H, W).
        batch_size: Images that are sent at once.
        layout: chw, hwc or flat.
        dtype: float32, float64 or uint8.
        pixel_range: What 0 and 1 become.
        quantize: Bits that pixels are rounded to.
    """

    num_classes: int | None = None
    identity: str | None = None
    output_kind: str | None = None
    input_shape: tuple[int, int, int] | None = None
    batch_size: int | None = None
    layout: str | None = None
    dtype: str | None = None
    pixel_range: tuple[float, float] | None = None
    quantize: int | None = None

    def __post_init__(self) -> None:
        for name in ("input_shape", "pixel_range"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def pixels(self) -> PixelFormat:
        """The pixel format, with defaults where nothing was declared."""
        return PixelFormat(self.layout or "chw", self.dtype or "float32", self.pixel_range, self.quantize)

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


def split_options(options: dict[str, Any]) -> tuple[Declared, dict[str, Any]]:
    """Return the options that every target has, and the others, which depend on the kind of target."""
    if "quantise" in options:
        options = {"quantize" if name == "quantise" else name: value for name, value in options.items()}
    names = {field.name for field in fields(Declared)}
    own = {name: value for name, value in options.items() if name in names}
    return Declared(**own), {name: value for name, value in options.items() if name not in names}


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
