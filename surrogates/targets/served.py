"""A target behind HTTP: batches become requests, several at once where allowed, and lost attempts are counted."""

import json
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from surrogates.errors import Refused, TargetError
from surrogates.targets.base import Answers, Target
from surrogates.targets.formats import PixelFormat
from surrogates.targets.http import HttpClient, Reply


class Wire(Protocol):
    """What a protocol must tell: where a batch is posted, how it is written and how its answer is read."""

    @property
    def url(self) -> str:
        """Where batches are posted."""

    def encode(self, pixels: np.ndarray) -> tuple[bytes, dict[str, str]]:
        """Return body and headers for images in the target's own pixel format."""

    def decode(self, reply: Reply, count: int) -> Any:
        """Return labels (N,), scores (N, K) or a pair of top-k labels and scores; raises TargetError."""


class HttpTarget(Target):
    """A paid service, asked with at most `request_size` images a request.

    One query goes out as up to `concurrency` requests at once, so that batch_size is request_size times
    concurrency. Its answers carry what lost attempts may have cost (Answers.lost).
    """

    def __init__(
        self,
        wire: Wire,
        client: HttpClient,
        num_classes: int,
        output_kind: str,
        *,
        identity: str | None = None,
        input_shape: tuple[int, int, int] | None = None,
        num_features: int | None = None,
        request_size: int | None = None,
        pixels: PixelFormat | None = None,
    ) -> None:
        super().__init__(
            identity or client.url,
            num_classes,
            output_kind,
            charged_when_sent=True,
            input_shape=input_shape,
            num_features=num_features,
            batch_size=request_size,
            pixels=pixels,
        )
        self.request_size = request_size
        if request_size is not None:
            self.batch_size = request_size * client.options.concurrency
        self._wire = wire
        self._client = client

    def answer(self, pixels: np.ndarray) -> Answers:
        many = self._client.options.concurrency
        size = self.request_size or -(-len(pixels) // many)
        requests = [pixels[start : start + size] for start in range(0, len(pixels), size)]
        stop = threading.Event()
        if len(requests) == 1:
            return self._ask(pixels, stop)
        with ThreadPoolExecutor(min(many, len(requests))) as pool:
            futures = [pool.submit(self._ask, request, stop) for request in requests]
            try:
                wait(futures)
            except BaseException as error:
                stop.set()  # an interrupt ends retries too
                wait(futures)
                error.lost = max(0, _charged(requests, futures) - len(pixels))
                raise
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise _joined(errors, _charged(requests, futures), len(pixels))
        return Answers.concatenate([future.result() for future in futures])

    def _ask(self, pixels: np.ndarray, stop: threading.Event) -> Answers:
        body, headers = self._wire.encode(pixels)
        reply = self._client.post(self._wire.url, body, headers, len(pixels), stop)
        try:
            answers = self.parse_answer(self._wire.decode(reply, len(pixels)), len(pixels))
        except TargetError as error:
            error.lost = reply.lost
            raise
        except Exception as error:  # what no protocol foresaw is an answer all the same
            wrong = TargetError(f"target's answer cannot be read ({type(error).__name__}: {error})")
            wrong.lost = reply.lost
            raise wrong from error
        return replace(answers, lost=reply.lost)


def probe(
    wire: Wire, client: HttpClient, shape: tuple[int, int, int], pixels: PixelFormat
) -> tuple[int, str]:
    """Return the number of classes and the kind of output, by asking about one grey image: one paid query."""
    body, headers = wire.encode(pixels.encode(np.full((1, *shape), 0.5, np.float32)))
    answer = np.asarray(wire.decode(client.post(wire.url, body, headers, 1), 1))
    if answer.ndim != 2 or answer.shape[1] < 2 or answer.dtype.kind not in "fiu":
        raise TargetError(
            f"target answered shape {answer.shape} to the probe, expected scores (1, K): "
            "give num_classes and output_kind='labels' or 'top_k'"
        )
    alike = answer.min() >= 0 and abs(float(answer.sum()) - 1) < 1e-2
    return answer.shape[1], "probabilities" if alike else "logits"


def read_json(reply: Reply) -> Any:
    """Return the body of a reply as JSON; TargetError shows how it begins."""
    try:
        return json.loads(reply.body)
    except ValueError as error:
        start = " ".join(reply.body[:80].decode("utf-8", "replace").split())
        raise TargetError(
            f"target answered no JSON but {start!r}: check the address and the protocol"
        ) from error


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
    error.lost = max(0, charged - count)
    return error
