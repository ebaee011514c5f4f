"""Images: data sets by name, image files, natural photographs."""

from certdef.data.sets import Splits, as_images, load_data, read_images

__all__ = ["Splits", "as_images", "load_data", "read_images"]
