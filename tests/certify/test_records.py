"""Records: durable at every byte, resumable to the same bytes, readable in both formats."""

import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from certify import CertifyError, Gaussian, RecordLog, certify_votes, read_records

CONFIG = {
    "noise": Gaussian(0.25).describe(),
    "n0": 100,
    "n": 1000,
    "alpha": 0.001,
    "seed": 3,
    "shape": (3, 32, 32),
}


def certificate(top, share, n=1000):
    labels = np.full(n, 2)
    labels[: int(share * n)] = top
    return certify_votes(lambda count: labels[:count], Gaussian(0.25), 3, n=n)


IMAGES = [
    (0, 1, certificate(1, 0.99)),
    (5, 0, certificate(1, 0.9)),
    (7, 1, certificate(1, 0.5)),
    (9, 1, certificate(1, 1)),
]


def write(stem, images=IMAGES, seconds=12.345678, **options):
    with RecordLog(stem, CONFIG, **options) as log:
        for idx, label, cert in images:
            if idx not in log.done:
                log.append(idx, label, cert, seconds)


def test_the_two_files(tmp_path):
    write(tmp_path / "run")
    header, *lines = (tmp_path / "run.jsonl").read_text().splitlines()
    assert json.loads(header)["config"] == json.loads(json.dumps(CONFIG))
    first = json.loads(lines[0])
    assert first["radius"] == IMAGES[0][2].radius
    assert first["counts"] == list(IMAGES[0][2].counts)
    assert "12.3" not in lines[0]
    tsv = (tmp_path / "run.tsv").read_text().splitlines()
    assert tsv[0] == "idx\tlabel\tpredict\tradius\tcorrect\ttime"
    fields = tsv[1].split("\t")
    assert fields[:3] == ["0", "1", "1"]
    assert float(fields[3]) <= IMAGES[0][2].radius < float(fields[3]) + 0.001
    assert fields[4:] == ["1", "0:00:12.345678"]
    assert tsv[3].split("\t")[2:5] == ["-1", "0.000", "0"]


@pytest.mark.parametrize("suffix", [".jsonl", ".tsv"])
def test_resume_after_a_crash_at_every_byte(tmp_path, suffix):
    write(tmp_path / "whole")
    whole = {end: (tmp_path / f"whole{end}").read_bytes() for end in (".jsonl", ".tsv")}
    stem, lines = tmp_path / "cut", whole[suffix].splitlines(keepends=True)
    for cut in range(len(b"".join(lines[:-1])) - 3, len(whole[suffix]) + 1):
        for end, content in whole.items():
            Path(f"{stem}{end}").write_bytes(content[:cut] if end == suffix else content)
        write(stem, sync_every=10)
        assert Path(f"{stem}.jsonl").read_bytes() == whole[".jsonl"]
        rows = Path(f"{stem}.tsv").read_bytes().splitlines()
        expected = whole[".tsv"].splitlines()
        assert [row.rpartition(b"\t")[0] for row in rows] == [row.rpartition(b"\t")[0] for row in expected]
        if suffix == ".jsonl":
            assert rows == expected


def test_resume_after_a_crash_inside_the_header(tmp_path):
    write(tmp_path / "whole")
    header = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)[0]
    for cut in range(len(header) + 1):
        (tmp_path / "cut.jsonl").write_bytes(header[:cut])
        with RecordLog(tmp_path / "cut", CONFIG) as log:
            assert log.done == set()
        assert (tmp_path / "cut.jsonl").read_bytes() == header


def test_records_are_on_disk_before_the_log_is_closed(tmp_path):
    log = RecordLog(tmp_path / "run", CONFIG)
    log.append(*IMAGES[0], 1.0)
    assert read_records(tmp_path / "run.jsonl").idx.tolist() == [0]
    assert read_records(tmp_path / "run.tsv").idx.tolist() == [0]
    log.close()
    log.close()


def test_another_configuration_is_refused_by_name(tmp_path):
    write(tmp_path / "run")
    before = (tmp_path / "run.jsonl").read_bytes()
    with pytest.raises(CertifyError, match=r"\(alpha, model, seed\)"):
        RecordLog(tmp_path / "run", {**CONFIG, "alpha": 0.01, "seed": 4, "model": "x"})
    assert (tmp_path / "run.jsonl").read_bytes() == before


def test_an_image_is_recorded_once(tmp_path):
    with RecordLog(tmp_path / "run", CONFIG) as log:
        log.append(*IMAGES[0], 1.0)
        assert log.done == {0}
        with pytest.raises(CertifyError, match="already"):
            log.append(*IMAGES[0], 1.0)


@pytest.mark.parametrize("content", [b"my thesis", b"my thesis\n", b'{"a": 1}\n', b'{"a": 1'])
def test_a_foreign_file_is_left_alone(tmp_path, content):
    for end in (".jsonl", ".tsv"):
        path = tmp_path / f"run{end}"
        path.write_bytes(content)
        with pytest.raises(CertifyError, match="not a"):
            RecordLog(tmp_path / "run", CONFIG)
        assert path.read_bytes() == content
        path.unlink()
        (tmp_path / "run.jsonl").unlink(missing_ok=True)


def test_damage_inside_a_record_is_named(tmp_path):
    write(tmp_path / "run")
    path = tmp_path / "run.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"garbage\n", *lines[3:]]))
    with pytest.raises(CertifyError, match="line 3"):
        RecordLog(tmp_path / "run", CONFIG)
    with pytest.raises(CertifyError, match="line 3"):
        read_records(path)


def test_only_finite_plain_values_are_recorded(tmp_path):
    for bad in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises(CertifyError, match="JSON"):
            RecordLog(tmp_path / "run", bad)
    with pytest.raises(CertifyError, match="dict"):
        RecordLog(tmp_path / "run", None)
    assert not list(tmp_path.iterdir())


def test_read_both_formats(tmp_path):
    write(tmp_path / "run")
    full, field = read_records(tmp_path / "run.jsonl"), read_records(tmp_path / "run.tsv")
    assert full.radius.tolist() == [cert.radius for _, _, cert in IMAGES]
    assert full.p_lower.tolist() == [cert.p_lower for _, _, cert in IMAGES]
    assert full.counts.shape == (4, 3)
    assert full.config["seed"] == 3
    assert np.all(np.isnan(full.seconds))
    assert np.allclose(field.seconds, 12.345678)
    assert field.config is None
    assert len(full) == 4
    for name in ("idx", "label", "predict", "correct"):
        assert np.array_equal(getattr(full, name), getattr(field, name))
    assert np.all((full.radius - field.radius >= 0) & (full.radius - field.radius < 0.001))
    torn = (tmp_path / "run.jsonl").read_bytes()[:-5]
    (tmp_path / "run.jsonl").write_bytes(torn)
    assert len(read_records(tmp_path / "run.jsonl")) == 3


def test_read_the_times_of_the_field(tmp_path):
    path = tmp_path / "log"
    path.write_text(
        "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t3\t3\t0.377\t1\t0:00:14.172309\n20\t8\t-1\t0.0\t0\t3.5\n"
        "40\t8\t8\t1\t1\t1:01:01"
    )
    records = read_records(path)
    assert np.allclose(records.seconds, [14.172309, 3.5, 3661])
    assert records.idx.tolist() == [0, 20, 40]


@pytest.mark.parametrize(
    "line", ["0\t3\t3\t0.377\t1", "0\t3\t3\tfar\t1\t1.0", "0\t3\t3\t-1\t1\t1.0", "0\t3\t3\tnan\t1\t1.0"]
)
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "log"
    path.write_text(f"idx\tlabel\tpredict\tradius\tcorrect\ttime\n{line}\n")
    with pytest.raises(CertifyError, match="line 2"):
        read_records(path)


def test_what_is_not_a_record_file(tmp_path):
    with pytest.raises(CertifyError, match="no record file"):
        read_records(tmp_path / "nothing")
    (tmp_path / "text").write_text("hello\n")
    with pytest.raises(CertifyError, match="columns"):
        read_records(tmp_path / "text")


def test_an_abstention_is_never_correct(tmp_path):
    """Also where the label is -1, as many data sets mark what is unlabeled."""
    write(tmp_path / "run", [(0, -1, certificate(1, 0.5))])
    assert (tmp_path / "run.tsv").read_text().splitlines()[1].split("\t")[4] == "0"
    assert json.loads((tmp_path / "run.jsonl").read_text().splitlines()[1])["correct"] == 0
    assert not read_records(tmp_path / "run.jsonl").correct[0]


@pytest.mark.parametrize(
    ("config", "changes", "word"),
    [
        ({"alpha": 0.01}, {}, "alpha is 0.001, but 0.01"),
        ({"n": 2000}, {}, "n is 1000, but 2000"),
        ({"method": "two_sided"}, {}, "method is fixed, but two_sided"),
        ({"noise": Gaussian(0.5).describe()}, {}, "not the law in the header"),
        ({}, {"noise": Gaussian(0.5).describe()}, "not the law of the record before"),
        ({}, {"counts": (10, 990)}, "2 classes, not 3"),
        ({}, {"radius": 0.5}, "do not follow from its votes"),
        ({}, {"p_lower": 0.9}, "do not follow from its votes"),
        ({}, {"prediction": 3}, "class 3 of 3"),
        ({}, {"radius": float("nan")}, "finite JSON"),
        ({}, {"radius": -1.0}, "radius is -1.0"),
        ({}, {"counts": (10, 980, 5)}, "sum to 995"),
        ({}, {"n": 999}, "sum to 1000"),
        ({}, {"alpha": 0.0}, "alpha is 0"),
        ({}, {"prediction": -1}, "abstention with radius"),
    ],
)
def test_what_a_reader_would_refuse_is_not_written(tmp_path, config, changes, word):
    with RecordLog(tmp_path / "run", config) as log:
        if not config:
            log.append(*IMAGES[0], 1.0)
        before = log.path.read_bytes()
        with pytest.raises(CertifyError, match=word):
            log.append(11, 1, dataclasses.replace(IMAGES[1][2], **changes), 1.0)
        with pytest.raises(CertifyError, match="seconds"):
            log.append(12, 1, IMAGES[1][2], float("nan"))
        assert log.path.read_bytes() == before


def test_a_record_names_its_law_unless_the_header_does(tmp_path):
    write(tmp_path / "run")
    with RecordLog(tmp_path / "bare", {}) as log:
        log.append(*IMAGES[0], 1.0)
    assert "noise" not in json.loads((tmp_path / "run.jsonl").read_text().splitlines()[1])
    assert json.loads(log.path.read_text().splitlines()[1])["noise"] == CONFIG["noise"]
    assert read_records(log.path).noise == read_records(tmp_path / "run.jsonl").noise == CONFIG["noise"]


def test_a_whole_last_line_without_its_line_end_is_kept(tmp_path):
    write(tmp_path / "run")
    path = tmp_path / "run.jsonl"
    whole = path.read_bytes()
    for ending in (b"", b"\n\n", b"\r\n"):
        path.write_bytes(whole[:-1] + ending)
        assert len(read_records(path)) == 4
        write(tmp_path / "run")
        assert path.read_bytes().replace(b"\r", b"") == whole


def test_a_log_that_is_moved_while_open_is_noticed(tmp_path):
    with RecordLog(tmp_path / "run", CONFIG) as log:
        log.append(*IMAGES[0], 1.0)
        log.path.rename(tmp_path / "elsewhere")
        with pytest.raises(CertifyError, match="moved or deleted"):
            log.append(*IMAGES[1], 1.0)


def test_a_full_disk_leaves_no_half_record(tmp_path):
    """The limit on the size of a file ends a write in its middle, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RecordLog(tmp_path / "run", CONFIG) as log:
        log.append(*IMAGES[0], 1.0)
        before = log.path.read_bytes(), log.tsv_path.read_bytes()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[0]) + 50, hard))
            with pytest.raises(OSError, match="File too large"):
                log.append(*IMAGES[1], 1.0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (log.path.read_bytes(), log.tsv_path.read_bytes()) == before
        log.append(*IMAGES[1], 1.0)
    for path in (log.path, log.tsv_path):
        assert read_records(path).idx.tolist() == [0, 5]


WRITER = """
import sys
from certify import RecordLog
log = RecordLog(sys.argv[1], {})
print("open", flush=True)
sys.stdin.read()
"""


def test_a_log_has_one_writer(tmp_path):
    """The second is refused in one line; the lock of a writer that is killed is gone with it."""
    stem = tmp_path / "run"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", WRITER, str(stem)], **pipes) as writer:
        assert writer.stdout.readline() == b"open\n"
        with pytest.raises(CertifyError, match="being written by another process") as caught:
            RecordLog(stem, {})
        assert "\n" not in str(caught.value)
        assert len(read_records(stem.with_suffix(".jsonl"))) == 0  # readers are let in
        writer.kill()
    with RecordLog(stem, {}) as log:
        log.append(*IMAGES[0], 1.0)
        with pytest.raises(CertifyError, match="being written"):
            RecordLog(stem, {})


KILLED = """
import os, signal, sys, torch
from certify import RecordLog, SmoothedClassifier, nim_noise
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 6 * 6, 4))
images = torch.rand((12, 3, 6, 6), generator=torch.Generator().manual_seed(1))
calls = 0  # the first three are the check that answers do not follow the batch

class Deadly(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model

    def forward(self, x):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.model(x)

smoothed = SmoothedClassifier(Deadly(), nim_noise(), 4, seed=3, batch_size=300)
with RecordLog(sys.argv[1], {"seed": 3}) as log:
    left = [index for index in range(12) if index not in log.done]
    if left:
        smoothed.certify(
            images[left], n=700, n0=50, indices=left, method=sys.argv[3], **eval(sys.argv[4]),
            on_certificate=lambda index, c, seconds: log.append(index, 0, c, seconds),
        )
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options", "kill_at"),
    [
        pytest.param("fixed", "{}", 9, marks=pytest.mark.acceptance),
        ("sequential", "{'radii': [0.05]}", 8),
    ],
)
def test_a_run_that_is_killed_and_resumed_writes_the_same_bytes(tmp_path, method, options, kill_at):
    def run(name, kill_at):
        command = [sys.executable, "-c", KILLED, str(tmp_path / name), str(kill_at), method, options]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert run("unbroken", 0) == 0
    assert run("killed", kill_at) == -9
    assert 1 < len((tmp_path / "killed.jsonl").read_bytes().splitlines()) < 13  # after some images
    assert run("killed", 0) == 0
    for suffix in (".jsonl", ".tsv"):
        unbroken, killed = (
            [line.split(b"\t0:")[0] for line in (tmp_path / f"{name}{suffix}").read_bytes().splitlines()]
            for name in ("unbroken", "killed")
        )
        assert len(unbroken) == 13
        assert unbroken == killed
    assert (tmp_path / "unbroken.jsonl").read_bytes() == (tmp_path / "killed.jsonl").read_bytes()
