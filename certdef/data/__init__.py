"""Images: data sets by name, files and folders of pictures, arrays, natural photographs."""

from certdef.data.arrays import read_images
from certdef.data.objects import source_of
from certdef.data.pixels import as_images
from certdef.data.sets import Splits, load_data, load_source, split
from certdef.data.source import Source

__all__ = [
    "Source",
    "Splits",
    "as_images",
    "load_data",
    "load_source",
    "read_images",
    "source_of",
    "split",
]
