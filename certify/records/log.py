"""Per-image records of a certification run: append-only, resumable, re-certifiable from raw counts.

``RecordLog`` keeps two files in step. ``<stem>.jsonl`` is the record: a header line with the whole
configuration, then one JSON object an image in full precision, without timing, so that a resumed run writes
the same bytes. ``<stem>.tsv`` is the same in the field's format (idx, label, predict, radius, correct, time),
for other people's scripts.
"""

import fcntl
import os
from io import FileIO
from pathlib import Path
from typing import Any, Self

from certify.certificate import Certificate
from certify.errors import CertifyError, check_count
from certify.records.jsonl import FORMAT, Log, json_line, parse_log, plain_json
from certify.records.reader import check_proofs, not_proven
from certify.records.rows import (
    Fault,
    Row,
    check_alike,
    check_claim,
    check_config,
    check_votes,
    is_correct,
    number,
)
from certify.records.tsv import recover_tsv, tsv_line


class RecordLog:
    """Append certificates to ``<path_stem>.jsonl`` and ``.tsv``; opening an existing log resumes it.

    A context manager. A line torn by a crash is cut off. One writer at a time: the log is locked while it is open.

    Args:
        path_stem: Path without suffix.
        config: A JSON-able dict with everything that determines the votes (noise, n0, n, alpha, seed, model hash,
            versions); a log with another configuration is refused, and so is a certificate that contradicts it.
        sync_every: Force the files to disk after this many records (1: each).

    Raises:
        CertifyError: A file is not a record log, is damaged inside, belongs to another configuration, or is being
            written by another process.
    """

    def __init__(self, path_stem: str | Path, config: dict[str, Any], *, sync_every: int = 1) -> None:
        self._sync_every = check_count("sync_every", sync_every)
        stem = Path(path_stem)
        self.path, self.tsv_path = stem.with_name(stem.name + ".jsonl"), stem.with_name(stem.name + ".tsv")
        if not isinstance(config, dict):
            raise CertifyError(f"config must be a dict, got {type(config).__name__}: name every setting")
        header = json_line({"format": FORMAT, "config": config}, sort_keys=True)
        stem.parent.mkdir(parents=True, exist_ok=True)
        self._jsonl = _open_locked(self.path)
        try:
            log = _recover(self._jsonl, self.path, header)
            recover_tsv(self.tsv_path, log.rows)
            self._tsv = open(self.tsv_path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        except BaseException:
            self._jsonl.close()
            raise
        self._config = log.config
        self._done = {row["idx"] for row in log.rows}
        self._last = log.rows[-1] if log.rows else None
        self._unsynced = 0

    @property
    def done(self) -> set[int]:
        """Indices of the images that are recorded."""
        return set(self._done)

    def append(
        self,
        idx: int,
        label: int,
        certificate: Certificate,
        seconds: float,
        *,
        image: str | None = None,
        row: int | None = None,
    ) -> None:
        """Record the certificate of image ``idx`` with true ``label``; ``seconds`` goes to the TSV only.

        Args:
            idx: Number of the image among those that are certified.
            label: Its class.
            certificate: What is proven of it.
            seconds: How long that took.
            image: A digest of its pixels, so that the records of another run are paired with the same image.
            row: Its row in the file of data, from 0, where that is known.

        Raises:
            CertifyError: The image is recorded already, the certificate contradicts itself, the log's configuration
                or its other certificates' law, or the log was moved or deleted.
        """
        if idx in self._done:
            raise CertifyError(f"image {idx} is already in {self.path}: skip the indices in log.done")
        known = {"image": image, "row": row}
        record = self._row(idx, label, certificate, seconds, known)
        if not _is_at(self._jsonl, self.path):
            raise CertifyError(
                f"{self.path} was moved or deleted while it was written: put it back, or start again"
            )
        line = json_line(record)
        files = (self._tsv, self._jsonl)
        ends = [os.fstat(each.fileno()).st_size for each in files]
        try:
            # The TSV goes first: a crash may leave a row too many there, which is dropped, but never one too few.
            for file, content in zip(files, (tsv_line(record, seconds), line), strict=True):
                _write(file, content)
        except OSError:  # the disk is full: the next record is not to follow half of this one
            for file, end in zip(files, ends, strict=True):
                file.truncate(end)
            raise
        self._done.add(record["idx"])
        self._unsynced += 1
        if self._unsynced >= self._sync_every:
            self._sync()

    def close(self) -> None:
        """Force everything to disk, close the files and let another writer in."""
        if self._jsonl.closed:
            return
        try:
            self._sync()
        finally:
            self._tsv.close()
            self._jsonl.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _row(
        self, idx: int, label: int, certificate: Certificate, seconds: float, known: dict[str, Any]
    ) -> Row:
        """The record of a certificate, checked as the reader will; its law only where the header does not name it.

        ``known`` is what else is known of the image; None is left out.
        """
        prediction = int(certificate.prediction)
        row = {
            "idx": int(idx),
            "label": int(label),
            "predict": prediction,
            "radius": certificate.radius,
            "p_lower": certificate.p_lower,
            "counts": list(certificate.counts),
            "n0": certificate.n0,
            "n": certificate.n,
            "alpha": certificate.alpha,
            "method": certificate.method,
            "sound": certificate.sound,
            "selected": certificate.selected,
            "noise": certificate.noise,
            "correct": int(is_correct(prediction, int(label))),
        }
        row |= {name: value for name, value in known.items() if value is not None}
        if certificate.known_class:
            row["known_class"] = True
        if certificate.uniform is not None:
            row["uniform"] = certificate.uniform
        try:
            checked = plain_json(row)
            number({"seconds": seconds}, "seconds", 0.0, float("inf"))
            check_claim(checked)
            check_votes(checked)
            check_config(checked, self._config)
            check_alike(checked, self._last or checked)
            if not_proven(Log(self._config, [checked], 0)).any():
                raise Fault(f"radius {checked['radius']:g} and p_lower do not follow from its votes")
        except Fault as fault:
            raise CertifyError(
                f"image {idx} can't be recorded in {self.path} ({fault}): use another log"
            ) from None
        self._last = checked
        if checked["noise"] == self._config.get("noise"):
            del row["noise"]
        return row

    def _sync(self) -> None:
        os.fsync(self._tsv.fileno())
        os.fsync(self._jsonl.fileno())
        self._unsynced = 0


def _open_locked(path: Path) -> FileIO:
    """Open a file to append, as its only writer; the system takes the lock back when the process ends."""
    while True:
        try:
            file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by the log
        except OSError as error:
            raise CertifyError(f"{path} can't be written ({error.strerror}): choose another path") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise CertifyError(
                f"{path} is being written by another process: wait until it ends, or choose another path"
            ) from None
        except OSError:
            return file  # a file system without locks
        if _is_at(file, path):
            return file
        file.close()


def _write(file: FileIO, content: bytes) -> None:
    """Write all of it: an unbuffered file may take less at once."""
    while content:
        content = content[file.write(content) :]


def _is_at(file: FileIO, path: Path) -> bool:
    """Whether the open file is the one at ``path``: neither moved nor deleted."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _recover(file: FileIO, path: Path, header: bytes) -> Log:
    """Check the file, cut a torn last line off, write the header of a new one."""
    data = path.read_bytes()
    fresh = header.startswith(data)  # empty, or no more than its header, which may be torn
    if not fresh and b"\n" not in data:
        raise CertifyError(f"{path} is not a record log: choose another path")
    new = parse_log(path, header)
    log = new if fresh else parse_log(path, data)
    _check_config(path, log.config, new.config)
    check_proofs(path, log)
    whole = b"" if fresh else data[: log.whole]
    if whole != data:
        file.truncate(len(whole))
    if not whole.endswith(b"\n"):
        _write(file, b"\n" if whole else header)
    return log


def _check_config(path: Path, config: dict[str, Any], expected: dict[str, Any]) -> None:
    missing = object()
    keys = sorted({*config, *expected})
    differing = [key for key in keys if config.get(key, missing) != expected.get(key, missing)]
    if differing:
        names = ", ".join(differing)
        raise CertifyError(
            f"{path} has another configuration ({names}): resume with the same one, or rename it"
        )
