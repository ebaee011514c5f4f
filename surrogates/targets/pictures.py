"""Images as files: the PNG and JPEG that services take."""

import io

import numpy as np

from surrogates.errors import Refused

CHANNELS = {"png": (1, 3, 4), "jpeg": (1, 3)}
TYPES = {"png": "image/png", "jpeg": "image/jpeg"}
SUFFIXES = {"png": "png", "jpeg": "jpg"}
QUALITY = 95


def picture(image: np.ndarray, kind: str, quality: int | None = None) -> bytes:
    """Return an image (H, W, C) uint8 as a file.

    A PNG keeps every pixel. A JPEG keeps the colors at full resolution (4:4:4), so that quality alone says what is lost.

    Args:
        kind: png or jpeg.
        quality: Of a JPEG, 1 to 100.

    Raises:
        Refused: It has a number of channels that the file cannot have.
    """
    from PIL import Image

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in CHANNELS[kind]:
        channels = " or ".join(map(str, CHANNELS[kind]))
        raise Refused(
            f"a {kind.upper()} takes {channels} channels, got an image of shape {image.shape}: use images: array"
        )
    buffer = io.BytesIO()
    plain = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    if kind == "png":
        plain.save(buffer, "PNG", compress_level=1)  # noise does not pack; the time goes elsewhere
    else:
        plain.save(buffer, "JPEG", quality=quality or QUALITY, subsampling=0)
    return buffer.getvalue()
