"""A target behind HTTP: batches become requests, several at once where allowed, and lost attempts are counted."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from surrogates.errors import Refused, TargetError, note_lost
from surrogates.targets.base import Answers, Target
from surrogates.targets.declared import Declared
from surrogates.targets.formats import PixelFormat
from surrogates.targets.http import HttpClient, Reply
from surrogates.targets.http_options import HttpOptions
from surrogates.targets.kinds import detected

# A request of this many images is welcome at most servers; what the target reports or batch_size comes first.
REQUEST_SIZE = 32
PROBE_REMEDY = (
    "give open_target(..., num_classes=...), or input_shape and probe=True, which pays for one query"
)


class Wire(Protocol):
    """A protocol: where a batch is posted, how it is written and how its answer is read."""

    @property
    def url(self) -> str:
        """Where batches are posted."""

    def encode(self, pixels: np.ndarray) -> tuple[bytes, dict[str, str]]:
        """Return body and headers for images in the target's own pixel format."""

    def decode(self, reply: Reply, count: int) -> Any:
        """Return labels (N,), scores (N, K) or a pair of top-k labels and scores.

        Raises:
            TargetError: The answer cannot be read.
        """


class HttpTarget(Target):
    """A paid service that gets at most `request_size` images a request.

    One query goes out as up to `concurrency` requests at once, so that batch_size is request_size times concurrency.
    Its answers carry what lost attempts may have cost (Answers.lost).

    Raises:
        ClassesUnknown: num_classes was not declared.
    """

    def __init__(
        self,
        wire: Wire,
        client: HttpClient,
        declared: Declared,
        num_features: int | None = None,
        lossy: str = "",
        assumed: str = "probabilities",
    ) -> None:
        self.request_size = declared.batch_size or REQUEST_SIZE
        super().__init__(
            declared.identity or client.name,
            declared.classes_of(f"target {client.url}", PROBE_REMEDY),
            declared.kind(assumed),
            charged_when_sent=True,
            num_features=num_features,
            batch_size=self.request_size * client.options.concurrency,
            **declared.handed,
        )
        self._wire = wire
        self._client = client
        self._lossy = lossy

    @property
    def options(self) -> HttpOptions:
        """How the service is queried."""
        return self._client.options

    @property
    def preprocessing(self) -> str:
        return ", ".join(filter(None, (super().preprocessing, self._lossy)))

    def answer(self, pixels: np.ndarray) -> Answers:
        many, size = self._client.options.concurrency, self.request_size
        requests = [pixels[start : start + size] for start in range(0, len(pixels), size)]
        stop = threading.Event()
        if len(requests) == 1:
            return self._request(pixels, stop)
        with ThreadPoolExecutor(min(many, len(requests))) as pool:
            futures = [pool.submit(copy_context().run, self._request, request, stop) for request in requests]
            try:
                wait(futures)
            except BaseException as error:
                stop.set()  # an interrupt ends retries too
                wait(futures)
                note_lost(error, max(0, _charged(requests, futures) - len(pixels)))
                raise
        errors = [failed for future in futures if (failed := future.exception()) is not None]
        if errors:
            raise _joined(errors, _charged(requests, futures), len(pixels))
        return Answers.concatenate([future.result() for future in futures])

    def _request(self, pixels: np.ndarray, stop: threading.Event) -> Answers:
        body, headers = self._wire.encode(pixels)
        reply = self._client.post(self._wire.url, body, headers, len(pixels), stop)
        try:
            with self._client.discreet():
                answers = self.parse_values(self._wire.decode(reply, len(pixels)), len(pixels))
        except TargetError as error:  # an answer that makes no sense is an answer all the same
            error.lost = reply.lost
            raise
        return replace(answers, lost=reply.lost)


def open_served(
    wire: Wire,
    client: HttpClient,
    declared: Declared,
    *,
    probe: bool = False,
    num_features: int | None = None,
    lossy: str = "",
    assumed: str = "probabilities",
) -> Target:
    """Return a service as a target.

    Args:
        lossy: What becomes of the pixels on the way besides their format, as part of the target.
        assumed: The kind of its answers until the first one tells.
        probe: Pay for one query, outside any ledger, where the number of classes is unknown.

    Raises:
        ClassesUnknown: Neither the service nor the caller gives the number of classes.
    """
    if declared.num_classes is None and probe and declared.input_shape:
        classes, kind = probed(wire, client, declared.input_shape, declared.pixels)
        declared = replace(declared, num_classes=classes, output_kind=declared.output_kind or kind)
    return HttpTarget(wire, client, declared, num_features, lossy, assumed)


def probed(
    wire: Wire, client: HttpClient, shape: tuple[int, int, int], pixels: PixelFormat
) -> tuple[int, str]:
    """Return the number of classes and the kind of output of a service, from its answer to one gray image, which is paid."""
    body, headers = wire.encode(pixels.encode(np.full((1, *shape), 0.5, np.float32)))
    reply = client.post(wire.url, body, headers, 1)
    with client.discreet():
        answer = np.asarray(wire.decode(reply, 1))
    if answer.ndim != 2 or answer.shape[1] < 2 or answer.dtype.kind not in "fiu":
        raise TargetError(
            f"target answered shape {answer.shape} to the probe, expected scores (1, K): "
            "give num_classes and output_kind='labels' or 'top_k'"
        )
    return answer.shape[1], detected(answer, answer.shape[1], "probabilities")


def _charged(requests: list[np.ndarray], futures: list[Future[Answers]]) -> int:
    """Return how many queries the requests of a query may have been charged in all their attempts."""
    charged = 0
    for request, future in zip(requests, futures, strict=True):
        error = future.exception()
        if not isinstance(error, Refused):
            charged += len(request) + (future.result().lost if error is None else getattr(error, "lost", 0))
    return charged


def _joined(errors: list[BaseException], charged: int, count: int) -> BaseException:
    """Return one error for a query of `count` images: a refusal only where no part of it can be charged."""
    if not charged:
        return errors[0]
    known = [error for error in errors if not isinstance(error, Refused)]
    error = known[0] if known else TargetError(str(errors[0]))
    note_lost(error, max(0, charged - count))
    return error
