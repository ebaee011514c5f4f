"""A folder of pictures: a subfolder for each class, or pictures without labels; train and test beside each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from certdef.config.job import ConfigError
from certdef.data.labels import Labels, labels_from_texts
from certdef.data.pictures import Pictures
from certdef.data.pixels import Form
from certdef.data.source import Progress, Source, no_bar

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp")
TABLES = (".csv", ".tsv")
JUNK = ("thumbs.db", "desktop.ini", "__macosx")  # what computers leave in folders of pictures
TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")
MOST_FILES = 2_000_000


def read_folder(path: Path, form: Form, progress: Progress = no_bar) -> Source:
    """A folder of pictures.

    Args:
        path: With a subfolder for each class, or pictures and no subfolder (no labels), or one of these in `train` and in
            `test` (or `val`), which is then the held-out part.
        form: Size and color of the images.
        progress: A factory of progress bars like tqdm.

    Raises:
        ConfigError: It is another kind of folder, or has files that are no pictures.
    """
    folders = {each.name.lower(): each for each in _visible(path) if each.is_dir()}
    train = next((folders[name] for name in TRAIN if name in folders), None)
    test = next((folders[name] for name in TEST if name in folders), None)
    if train is None or test is None or not folders.keys() <= {*TRAIN, *TEST}:
        files = _files(path)
        pictures = Pictures([str(file) for file, _ in files], lambda index: files[index][0], form, progress)
        labels = _labels(path, [label for _, label in files])
        if labels is None:
            return Source(path.name, pictures)
        return Source(path.name, pictures, *labels)
    return _both(path.name, train, test, form, progress)


def _both(name: str, train: Path, test: Path, form: Form, progress: Progress) -> Source:
    """Training and test pictures, of one size and color, and of the same classes."""
    parts = [_files(train), _files(test)]
    files = [file for part in parts for file, _ in part]
    texts = [label for part in parts for _, label in part]
    if len({label is None for label in texts}) > 1:
        raise ConfigError(
            f"only one of {str(train)!r} and {str(test)!r} has a subfolder for each class: give both the same"
        )
    pictures, count = Pictures(list(map(str, files)), lambda at: files[at], form, progress), len(parts[0])
    images, test_images = pictures.part(0, count), pictures.part(count, len(files))
    names = [label for label in texts if label is not None]
    if not names:
        return Source(name, images, test_images=test_images)
    labels = labels_from_texts(names, {*_classes(train), *_classes(test)})
    return Source(
        name,
        images,
        labels.values[:count],
        *labels[1:],
        test_images=test_images,
        test_labels=labels.values[count:],
    )


def _labels(path: Path, texts: list[str | None]) -> Labels | None:
    names = [text for text in texts if text is not None]
    return labels_from_texts(names, _classes(path)) if names else None


def _classes(path: Path) -> list[str]:
    """The subfolders, also those without a picture: a class keeps its place among the others."""
    return [each.name for each in _visible(path) if each.is_dir()]


def _files(path: Path) -> list[tuple[Path, str | None]]:
    """Every file with the name of its class, sorted; files beside subfolders of classes are no pictures of any."""
    entries = _visible(path)
    folders = [each for each in entries if each.is_dir()]
    files = [each for each in entries if not each.is_dir()]
    table = next((each for each in files if each.suffix.lower() in TABLES), None)
    pictures = [each for each in files if each.suffix.lower() in SUFFIXES]
    if table is not None:
        raise ConfigError(
            f"data.path {str(path)!r} has the table {table.name!r}: give the table, --data.path {table}, or take it away"
        )
    if not folders:
        if not files:
            raise ConfigError(
                f"data.path {str(path)!r} is empty: give a folder of pictures, with a subfolder for each class"
            )
        return [(each, None) for each in files]
    if pictures:
        raise ConfigError(
            f"data.path {str(path)!r} has pictures ({pictures[0].name}, {len(pictures):,} in all) beside the folders of classes "
            f"({_some(folders)}): put each picture into the folder of its class"
        )
    found: list[tuple[Path, str | None]] = []
    for folder in folders:
        found += [(file, folder.name) for file in _walk(folder)]
        if len(found) > MOST_FILES:
            raise ConfigError(
                f"data.path {str(path)!r} has more than {MOST_FILES:,} files: give a part of it"
            )
    if not found:
        raise ConfigError(
            f"data.path {str(path)!r} has no picture in {_some(folders)}: give a folder of pictures"
        )
    if all(any(sub.is_dir() for sub in _visible(folder)) for folder in folders) and not any(
        file.parent == path / label for file, label in found if label
    ):
        inside = _some([each for each in _visible(folders[0]) if each.is_dir()])
        raise ConfigError(
            f"data.path {str(path)!r} has folders of folders ({folders[0].name} has {inside}): give the folder whose "
            "subfolders are the classes, or name two parts train and test"
        )
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder, also through links; ConfigError where links go in a circle."""
    above = {os.path.realpath(folder)}

    def inside(here: Path, above: set[str]) -> Iterator[Path]:
        for each in _visible(here):
            if not each.is_dir():
                yield each
                continue
            real = os.path.realpath(each)
            if real in above:
                raise ConfigError(f"{str(each)!r} is a link to a folder that it is in: take it away")
            yield from inside(each, above | {real})

    yield from inside(folder, above)


def _visible(path: Path) -> list[Path]:
    """What is in a folder, sorted by name, without hidden files and what computers leave there."""
    try:
        entries = sorted(path.iterdir(), key=lambda each: each.name)
    except OSError as error:
        raise ConfigError(
            f"{str(path)!r} can't be listed ({error.strerror}): check its permissions"
        ) from error
    return [each for each in entries if not each.name.startswith(".") and each.name.lower() not in JUNK]


def _some(paths: list[Path]) -> str:
    names = [each.name for each in paths]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
