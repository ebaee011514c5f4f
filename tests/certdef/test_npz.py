"""Files of images from anywhere: one line, at once, whatever they say of themselves."""

import io
import zipfile

import numpy as np
import psutil
import pytest

from certdef.config.job import ConfigError, DataConfig
from certdef.data.npz import read_npz
from certdef.data.sets import load_data


def npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def claiming(shape, dtype="<f4", content: bytes = b"\0" * 64) -> bytes:
    """An .npy whose header names a shape, whatever follows it."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": dtype})
    return file.getvalue() + content


def write(path, **members: bytes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


IMAGES, LABELS = np.zeros((4, 8, 8), np.uint8), np.arange(4) % 2


def test_it_reads_what_numpy_wrote(tmp_path):
    for save in (np.savez, np.savez_compressed):
        for images in (IMAGES, np.asfortranarray(np.random.default_rng(0).random((3, 5, 7)))):
            save(tmp_path / "a.npz", images=images, labels=LABELS)
            first, second = read_npz(tmp_path / "a.npz", ["images", "labels"], "data.path").values()
            assert np.array_equal(first, images)
            assert first.dtype == images.dtype
            assert np.array_equal(second, LABELS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (claiming((10**12,)), r"says shape \(1000000000000,\)"),
        (claiming((10**6, 10**6, 10**6)), "says shape"),
        (claiming((2**40, 8, 8), content=b""), "says shape"),
        (claiming((10**12, 0), content=b""), "images have shape"),
        (claiming((-1, 8)), "can't be read"),
        (npy(np.array([{"a": 1}], dtype=object)), "can't be read"),
        (b"", "can't be read"),
        (b"\x93NUMPY\x01\x00", "can't be read"),
        (b"\x93NUMPY\x01\x00\xff\xff{" + b"(" * 65534, "can't be read"),
        (b"\x93NUMPY\x07\x00" + b"\0" * 64, "can't be read"),
    ],
    ids=["10^12", "10^18", "2^40", "empty", "negative", "objects", "nothing", "cut", "brackets", "version"],
)
def test_a_strange_array_is_one_line(tmp_path, content, said):
    path = write(tmp_path / "a.npz", images=content, labels=npy(LABELS))
    with pytest.raises(ConfigError, match=said) as error:
        load_data(DataConfig(name="npz", path=str(path)), seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", npy(IMAGES), b"no zip at all", b"PK\x05\x06" + b"\0" * 18],
    ids=["empty", "cut", "npy", "text", "no members"],
)
def test_a_file_that_is_no_npz_is_one_line(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"give an \.npz with the arrays images and labels") as error:
        load_data(DataConfig(name="npz", path=str(path)), seed=0)
    assert "\n" not in str(error.value)


def test_every_cut_and_many_flipped_bits_are_one_line_or_change_nothing(tmp_path):
    whole = write(tmp_path / "whole.npz", images=npy(IMAGES), labels=npy(LABELS)).read_bytes()
    path, random = tmp_path / "a.npz", np.random.default_rng(0)
    for at in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(random.integers(8))
        for content in (whole[:at], bytes(flipped)):
            path.write_bytes(content)
            try:
                read = read_npz(path, ["images", "labels"], "data.path")
            except ConfigError as error:
                said = str(error)
            else:
                said = ""
                assert np.array_equal(read["images"], IMAGES)
                assert np.array_equal(read["labels"], LABELS)
            assert "\n" not in said


def test_a_zip_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    """256 MiB of zeros in 260 kB, where 64 MiB are free."""
    path = write(tmp_path / "bomb.npz", images=claiming((2**26,), content=bytes(2**28)), labels=npy(LABELS))
    assert path.stat().st_size < 300_000

    class Little:
        available = 2**26

    monkeypatch.setattr(psutil, "virtual_memory", Little)
    with pytest.raises(ConfigError, match=r"needs 0\.5 GiB once it is decoded") as error:
        load_data(DataConfig(name="npz", path=str(path)), seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("largest", [2**40, 2**62, 4])
def test_labels_far_beyond_the_images_are_refused(tmp_path, largest):
    labels = np.array([0, 1, 2, largest])
    path = write(tmp_path / "a.npz", images=npy(IMAGES), labels=npy(labels))
    with pytest.raises(ConfigError, match=rf"labels are 0, 1, 2 \.\.\. up to {largest}, 4 in all"):
        load_data(DataConfig(name="npz", path=str(path)), seed=0)


def test_a_purified_file_is_read_by_the_same_door(tmp_path):
    from certdef.data.arrays import read_images

    path = write(tmp_path / "a.npz", images=claiming((10**12,)))
    with pytest.raises(ConfigError, match="says shape"):
        read_images(str(path), (1, 8, 8))
