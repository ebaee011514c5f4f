"""One strict reader for all formats: what contradicts itself is refused by line, what others write is read."""

import dataclasses
import json

import numpy as np
import pytest

import certify
from certify import CertifyError, Gaussian, RecordLog, certify_votes, read_records
from certify.records.jsonl import json_line

# Version 0.1.0 wrote these: no checksums, no law but in the header.
GAUSSIAN = {"law": "gaussian", "norm": "l2", "sigma": 0.25}
NIM = {
    "args": [25],
    "kwds": {"scale": 0.011764705882352941},
    "law": "gaussian_scale_mixture",
    "mean_sigma": 0.29411764705882354,
    "norm": "l2",
    "sigma": "gamma",
}
IID = {
    "args": [2.0],
    "density": "gennorm",
    "dimensions": 16,
    "kwds": {"scale": 0.35},
    "law": "iid",
    "norm": "l2",
    "radius": "approximate",
    "seed": 0,
}
ROW = '{"idx": 0, "label": 0, "predict": 0, "radius": 0.09706818887718888, "p_lower": 0.6510929016077529, "counts": [2034, 966], "n0": 100, "n": 3000, "alpha": 0.001, "method": "fixed", "sound": true, "selected": 0, "correct": 1}'
ABSTAINED = '{"idx": 4, "label": 0, "predict": -1, "radius": 0.0, "p_lower": 0.47797000017517777, "counts": [1519, 1481], "n0": 100, "n": 3000, "alpha": 0.001, "method": "fixed", "sound": true, "selected": 0, "correct": 0}'
OLD = {
    "fixed": (GAUSSIAN, ROW, 0.09706818887718888),
    "abstained": (GAUSSIAN, ABSTAINED, 0.0),
    "two_sided": (
        GAUSSIAN,
        '{"idx": 0, "label": 0, "predict": 0, "radius": 0.0968838539062609, "p_lower": 0.6508200643162849, "counts": [2034, 966], "n0": 100, "n": 3000, "alpha": 0.001, "method": "two_sided", "sound": true, "selected": 0, "correct": 1}',
        0.0968838539062609,
    ),
    "sequential": (
        GAUSSIAN,
        '{"idx": 0, "label": 0, "predict": 0, "radius": 0.05043959397319362, "p_lower": 0.5799471882392363, "counts": [306, 142], "n0": 100, "n": 448, "alpha": 0.001, "method": "sequential", "sound": true, "selected": 0, "correct": 1}',
        0.05043959397319362,
    ),
    "nim": (
        NIM,
        '{"idx": 0, "label": 0, "predict": 0, "radius": 0.09702926607977062, "p_lower": 0.6344641120850069, "counts": [1985, 1015], "n0": 100, "n": 3000, "alpha": 0.001, "method": "fixed", "sound": true, "selected": 0, "correct": 1}',
        0.09702926607977062,
    ),
    "group_sequential": (
        NIM,
        '{"idx": 0, "label": 0, "predict": 0, "radius": 0.05, "p_lower": 0.5702931548151476, "counts": [337, 175], "n0": 100, "n": 512, "alpha": 0.001, "method": "group_sequential", "sound": true, "selected": 0, "correct": 1}',
        0.05,
    ),
    "stratified": (
        NIM,
        '{"idx": 0, "label": 0, "predict": 0, "radius": 0.08105819305679467, "p_lower": 0.6125664317771076, "counts": [2023, 977], "n0": 100, "n": 3000, "alpha": 0.001, "method": "stratified", "sound": true, "selected": 0, "correct": 1}',
        0.08105819305679467,
    ),
    "guided": (
        {"law": "laplace", "norm": "l1", "scale": 0.2},
        '{"idx": 0, "label": 0, "predict": 0, "radius": 0.05, "p_lower": 0.6105996084642977, "counts": [111, 49], "n0": 0, "n": 160, "alpha": 0.001, "method": "guided", "sound": true, "selected": 0, "correct": 1}',
        0.05,
    ),
    "approximate": (
        IID,
        '{"idx": 0, "label": 0, "predict": 0, "radius": 0.10867556377892691, "p_lower": 0.6708236694480386, "counts": [2092, 908], "n0": 100, "n": 3000, "alpha": 0.001, "method": "fixed", "sound": false, "selected": 0, "correct": 1}',
        0.10867556377892691,
    ),
    "deterministic": (
        {},
        '{"idx": 4, "label": 0, "predict": 0, "radius": 0.058823529411764705, "p_lower": 0.6568627450980392, "counts": [67, 35], "n0": 0, "n": 102, "alpha": 0.0, "method": "deterministic", "sound": true, "selected": 0, "correct": 1}',
        0.058823529411764705,
    ),
}


def old_file(path, *rows, **config):
    """A ``.jsonl`` as version 0.1.0 wrote it."""
    header = json.dumps({"config": config, "format": "certify-records-1"}, sort_keys=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


@pytest.mark.parametrize("name", OLD)
def test_records_of_the_first_version_are_read(tmp_path, name):
    noise, row, radius = OLD[name]
    config = {"noise": noise} if noise else {}
    records = read_records(old_file(tmp_path / "old.jsonl", row, **config))
    assert records.radius.tolist() == [radius]
    assert records.correct.tolist() == [radius > 0]
    assert records.sound == (name != "approximate")
    assert records.noise == (noise or None)


def test_a_log_of_the_first_version_goes_on(tmp_path):
    path = old_file(tmp_path / "run.jsonl", ROW, ABSTAINED, noise=GAUSSIAN)
    before = path.read_bytes()
    with RecordLog(tmp_path / "run", {"noise": GAUSSIAN}) as log:
        assert log.done == {0, 4}
        votes = certify_votes(lambda count: np.zeros(count, int), Gaussian(0.25), 2, n=3000)
        log.append(7, 0, votes, 1.0)
    assert path.read_bytes().startswith(before)
    assert read_records(path).idx.tolist() == [0, 4, 7]
    assert len(read_records(tmp_path / "run.tsv")) == 3


def test_the_first_version_called_an_unlabeled_abstention_correct(tmp_path):
    row = json.loads(ABSTAINED) | {"label": -1, "correct": 1}
    assert read_records(old_file(tmp_path / "old.jsonl", row)).correct.tolist() == [False]


@pytest.mark.parametrize(
    "change",
    [
        {"radius": float("nan")},
        {"radius": float("inf")},
        {"radius": -0.1},
        {"radius": "0.1"},
        {"radius": True},
        {"radius": 0.19706818887718888},
        {"radius": 0.08706818887718888},
        {"p_lower": 0.6610929016077529},
        {"p_lower": 1.5},
        {"p_lower": None},
        {"counts": [2035, 966]},
        {"counts": [2035, 965]},
        {"counts": [2034.0, 966]},
        {"counts": [True, 2999]},
        {"counts": [3100, -100]},
        {"counts": "20349660"},
        {"counts": []},
        {"counts": [2034, 966, 0], "n": 2999},
        {"n": 3001},
        {"n": 3000.0},
        {"n0": -1},
        {"alpha": 0.01},
        {"alpha": 0},
        {"alpha": 0.7},
        {"alpha": False},
        {"method": ["fixed"]},
        {"method": "two_sided"},
        {"sound": 1},
        {"selected": 1},
        {"selected": 2},
        {"selected": -2},
        {"predict": 1},
        {"predict": 2},
        {"predict": -2},
        {"predict": -1},
        {"predict": -1, "radius": 0},
        {"predict": 0.0},
        {"idx": -1},
        {"idx": 1.5},
        {"idx": False},
        {"idx": 10**30},
        {"label": 3},
        {"label": "0"},
        {"label": 10**400},
        {"correct": 0},
        {"correct": 2},
        {"correct": None},
        {"noise": "gaussian"},
        {"noise": {"law": "gaussian", "norm": "l2", "sigma": 1.0}},
        {"crc32": "00000000"},
    ],
    ids=str,
)
def test_a_value_that_cannot_be_is_named(tmp_path, change):
    path = old_file(tmp_path / "run.jsonl", ABSTAINED, json.loads(ROW) | change, noise=GAUSSIAN)
    for read in (read_records, lambda _: RecordLog(tmp_path / "run", {"noise": GAUSSIAN})):
        with pytest.raises(CertifyError, match="line 3") as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (ROW, "image 0 is in line 2 already"),
        (ROW.replace('"idx": 0', '"idx": 1, "idx": 2'), "twice"),
        (json.dumps(json.loads(ROW) | {"idx": 1, "counts": [2034, 966, 0]}), "3 classes, not 2"),
        (ROW.replace('"idx": 0, ', ""), "no idx"),
        ('{"idx": 1, "radius": NaN}', "NaN"),
        ("[1, 2]", "no JSON object"),
        ("[" * 100_000, "no JSON"),
        ("", "no JSON"),
        ('"\udcff"', "no JSON"),
    ],
)
def test_a_line_that_cannot_be_is_named(tmp_path, line, word):
    path = old_file(tmp_path / "run.jsonl", ROW)
    path.write_bytes(
        path.read_bytes() + line.encode(errors="surrogateescape") + b"\n" + ABSTAINED.encode() + b"\n"
    )
    with pytest.raises(CertifyError, match=f"line 3.*{word}"):
        read_records(path)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"alpha": 0.01}, "alpha is 0.001, but 0.01 in the header"),
        ({"n": 1000}, "n is 3000, but 1000"),
        ({"n0": 10}, "n0 is 100, but 10"),
        ({"method": "sequential"}, "method is fixed, but sequential"),
        ({"noise": Gaussian(0.5).describe()}, "do not follow from its votes"),
        ({"noise": IID}, "sound is True for law 'iid'"),
    ],
)
def test_a_header_that_its_records_contradict_is_refused(tmp_path, config, word):
    with pytest.raises(CertifyError, match=f"line 2.*{word}"):
        read_records(old_file(tmp_path / "run.jsonl", ROW, **config))


def test_fewer_votes_than_the_header_are_those_that_stopped_early(tmp_path):
    row = json.loads(OLD["sequential"][1])
    assert len(read_records(old_file(tmp_path / "run.jsonl", row, n=10_000))) == 1
    with pytest.raises(CertifyError, match="n is 448, but 447"):
        read_records(old_file(tmp_path / "run.jsonl", row, n=447))


@pytest.mark.parametrize(
    ("name", "longer"), [("sequential", 0.06), ("guided", 0.06), ("nim", 0.0973), ("two_sided", 0.098)]
)
def test_no_method_may_claim_more_than_its_bound_proves(tmp_path, name, longer):
    noise, row, radius = OLD[name]
    path = old_file(tmp_path / "run.jsonl", json.loads(row) | {"radius": longer}, noise=noise)
    assert longer > radius
    with pytest.raises(CertifyError, match="do not follow"):
        read_records(path)


def test_exact_votes_are_counted_again(tmp_path):
    noise = {"law": "splitting", "norm": "l1", "half_width": 0.2, "levels": 255, "seed": 0}
    row = json.loads(OLD["deterministic"][1])
    assert len(read_records(old_file(tmp_path / "run.jsonl", row, noise=noise))) == 1
    for change in ({"radius": 17 / 255}, {"p_lower": 0.7}, {"alpha": 0.001}):
        with pytest.raises(CertifyError, match="line 2"):
            read_records(old_file(tmp_path / "run.jsonl", row | change, noise=noise))


def test_windows_and_its_editors_change_nothing(tmp_path):
    path = old_file(tmp_path / "run.jsonl", ROW, ABSTAINED)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert read_records(path).idx.tolist() == [0, 4]


# --- checksums ----------------------------------------------------------------------------------------------


def written(stem):
    rng = np.random.default_rng(0)
    with RecordLog(stem, {"noise": GAUSSIAN, "alpha": 0.001}) as log:
        for index, share in enumerate([0.99, 0.7, 0.5]):
            votes = certify_votes(
                lambda count, share=share: (rng.random(count) > share).astype(int), Gaussian(0.25), 2, n=500
            )
            log.append(3 * index, 0, votes, 1.5)
    return log.path


def assert_nothing_else(path, original, cut=False):
    """A CertifyError of one line, or the first records as they were written."""
    try:
        found = read_records(path)
    except CertifyError as error:
        found, fault = None, str(error)
    if found is None:
        assert "\n" not in fault
        return False
    for name in ("idx", "label", "predict", "radius", "correct", "p_lower", "counts", "alpha"):
        assert getattr(found, name).tolist() == getattr(original, name)[: len(found)].tolist(), name
    assert len(found) == len(original) or cut
    assert (found.sound, found.noise) == (original.sound, original.noise)
    return True


@pytest.mark.parametrize("step", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_no_flipped_bit_changes_a_certificate(tmp_path, step):
    """Every bit of a file, or every 29th."""
    path = written(tmp_path / "run")
    original, data = read_records(path), path.read_bytes()
    accepted = 0
    for bit in range(0, 8 * len(data), step):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        at_the_end = bit // 8 >= data.rindex(b"\n", 0, len(data) - 1)  # the last line may count as cut off
        accepted += assert_nothing_else(path, original, cut=at_the_end)
    assert accepted < 0.2 * 8 * len(data) / step


def test_no_cut_changes_a_certificate(tmp_path):
    path = written(tmp_path / "run")
    original, data = read_records(path), path.read_bytes()
    header = data.index(b"\n")
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        assert assert_nothing_else(path, original, cut=True) == (cut >= header)


def test_a_checksum_cannot_be_left_out(tmp_path):
    path = written(tmp_path / "run")
    header, first, *rest = path.read_bytes().splitlines(keepends=True)
    row = json.loads(first)
    del row["crc32"]
    path.write_bytes(header + json.dumps(row).encode() + b"\n" + b"".join(rest))
    with pytest.raises(CertifyError, match=r"line 2.*no checksum"):
        read_records(path)
    path.write_bytes(header + json_line(row | {"idx": 77}) + b"".join(rest))  # written anew, it is a record
    assert read_records(path).idx.tolist() == [77, 3, 6]


# --- the field's format -------------------------------------------------------------------------------------

HEAD = "idx\tlabel\tpredict\tradius\tcorrect\ttime"
LINE = "0\t3\t3\t0.5\t1\t0:00:12.5"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (f"{HEAD}\n{LINE}\n", 12.5),
        (f"{HEAD}\n{LINE}", 12.5),
        (f"{HEAD}\n{LINE}\n\n\n", 12.5),
        (f"{HEAD}\r\n{LINE}\r\n", 12.5),
        (f"{HEAD}\r\n{LINE}\r\n\r\n", 12.5),
        (f"\ufeff{HEAD}\n{LINE}\n", 12.5),
        (f"{HEAD}\n0\t3\t3\t0.5\tTrue\t1 day, 2:03:04.5\n", 93_784.5),
        (f"{HEAD}\n0\t3\t3\t.5\t1\t2 days, 0:00:01\n", 172_801),
        (f"{HEAD}\n0.0\t3.0\t3.0\t5e-1\t1.0\t12\n", 12),
        (f"{HEAD}\tsigma\n{LINE}\t0.25\n", 12.5),
        ("sigma\tcorrect\tradius\tpredict\tlabel\tidx\n0.25\tTrue\t0.5\t3\t3\t0\n", np.nan),
        (f"{HEAD}\n0\t3\t3\t0.5\t1\t\n", np.nan),
        (f"{HEAD}\n{LINE}\n1\t3\t3\t0.", 12.5),
        (f"{HEAD}\n{LINE}\n1\t3\t3\t0.5\t1\t0:", 12.5),
    ],
)
def test_what_other_groups_write_is_read(tmp_path, text, seconds):
    path = tmp_path / "log"
    path.write_bytes(text.encode())
    records = read_records(path)
    assert (records.idx.tolist(), records.predict.tolist(), records.radius.tolist()) == ([0], [3], [0.5])
    assert records.correct.tolist() == [True]
    assert np.array_equal(records.seconds, [seconds], equal_nan=True)
    assert records.alpha is None


@pytest.mark.parametrize(
    "line",
    [
        LINE,
        "1\t3\t3\tnan\t1\t1",
        "1\t3\t3\tinf\t1\t1",
        "1\t3\t3\t1e999\t1\t1",
        "1\t3\t3\t-0.5\t1\t1",
        "1\t3\t3\t0.5\t0\t1",
        "1\t3\t4\t0.5\t1\t1",
        "1\t3\t-1\t0.0\t1\t1",
        "1\t3\t-1\t0.5\t0\t1",
        "1\t3\t-2\t0.0\t0\t1",
        "-1\t3\t3\t0.5\t1\t1",
        "1\t3\t3\t0.5\t2\t1",
        "1\t3\t3\t0.5\tyes\t1",
        "1.5\t3\t3\t0.5\t1\t1",
        "1_0\t3\t3\t0.5\t1\t1",
        "1\t3\t3\t1_0\t1\t1",
        "99999999999999999999\t3\t3\t0.5\t1\t1",
        "9999999999999999999\t3\t3\t0.5\t1\t1",
        "1\t3\t3\t0.5\t1\t-1",
        "1\t3\t3\t0.5\t1\tlong",
        "1\t3\t3\t0.5\t1\t1\t1",
        "1\t3\t3\t0.5",
        "",
    ],
)
def test_a_line_of_the_field_that_cannot_be_is_named(tmp_path, line):
    path = tmp_path / "log"
    path.write_text(f"{HEAD}\n{LINE}\n{line}\n2\t3\t3\t0.5\t1\t1\n")
    with pytest.raises(CertifyError, match="line 3") as caught:
        read_records(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for content in (
        b"",
        b"\n",
        b"{",
        b"\x00" * 100,
        b"\xef\xbb\xbf",
        b"idx\tidx\tlabel\tpredict\tradius\tcorrect\n",
    ):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(CertifyError):
            read_records(tmp_path / "file")
    with pytest.raises(CertifyError, match="no record file"):
        read_records(tmp_path)


def test_a_log_in_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run.jsonl").mkdir()
    with pytest.raises(CertifyError, match="can't be written"):
        RecordLog(tmp_path / "run", {})


def test_certificates_round_trip(tmp_path):
    votes = certify_votes(lambda count: np.zeros(count, int), certify.nim_noise(), 2, n=500)
    odd = dataclasses.replace(votes, noise={**votes.noise, "grid": 255})
    with RecordLog(tmp_path / "run", {"noise": votes.noise}) as log:
        log.append(0, 0, odd, 0.0)
    assert read_records(log.path).noise == odd.noise
