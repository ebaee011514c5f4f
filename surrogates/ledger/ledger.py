"""The query ledger: every query to a paid target is budgeted, charged once, and its answer kept."""

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType

import numpy as np
import torch

from surrogates.errors import BudgetExceeded, LedgerError, Refused, SurrogateError
from surrogates.ledger.bill import PURPOSES, Bill, Charge, check_purpose, checked_budget
from surrogates.ledger.canaries import Canaries
from surrogates.ledger.keys import FRESH_PURPOSES, KEPT_TOGETHER, Keyed, Keys
from surrogates.ledger.packing import Kept, pack, share, unpack
from surrogates.ledger.store import Batch, LedgerStore
from surrogates.targets.answers import Answers, kind_of_kept
from surrogates.targets.base import Target, check_images
from surrogates.targets.kinds import OUTPUT_KINDS
from surrogates.targets.paid_repeats import paid_by

POLL_SECONDS = 0.02


class QueryLedger:
    """A durable record of the queries to one target, of their answers and of what they cost.

    The budget is held before a query is sent, and before an attempt is repeated whose outcome is unknown. Only a target
    of your own that repeats attempts without asking `repeats.payer` and tells of them afterwards (Answers.lost) can pass
    it, by their number: they are booked as unknown and nothing more is sent. After a killed process nothing is missing;
    after a power failure
    the last moments may be (a second where the disk takes 10 ms). A file that is deleted, moved or replaced while
    it is open pays nothing more.

    Args:
        path: An SQLite file (its directory must exist). It belongs to the first target attached. Processes on one
            machine may share it, in whatever containers, and forked children may go on with this object.
        budget: Number of training queries, or a mapping from purposes ("training", "evaluation", "certification",
            "attack", "canary", "preflight") to numbers; a purpose left out has none.
        canaries: Images that are queried from their own budget while others pay; a target that has changed stops the
            query with DriftError.

    Raises:
        LedgerError: The file cannot be used or is damaged, or the budget is none.

    Examples:
        >>> import surrogates
        >>> target = surrogates.open_target(lambda x: (x.mean((1, 2, 3)) > 0.5).astype(int), num_classes=2, output_kind="labels")
        >>> images = np.linspace(0, 1, 3, dtype=np.float32).reshape(3, 1, 1, 1) * np.ones((1, 1, 4, 4), dtype=np.float32)
        >>> with QueryLedger("ledger.db", {"evaluation": 5}) as ledger:
        ...     paid = ledger.attach(target, purpose="evaluation")
        ...     _ = paid.query(images), paid.query(images)  # the second time from the ledger
        ...     print(ledger.bill())
        ...     print(ledger.bill()["evaluation"].recalled, "recalled,", ledger.remaining("evaluation"), "left")
        Bill(evaluation 3 of 5)
        3 recalled, 2 left
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        budget: int | Mapping[str, int],
        canaries: Canaries | None = None,
    ) -> None:
        self.budget = checked_budget(budget)
        self.canaries = canaries
        self.store = LedgerStore(path)
        self.recalled: Counter[str] = Counter()

    def __repr__(self) -> str:
        budget = ", ".join(f"{purpose} {queries:,}" for purpose, queries in self.budget.items() if queries)
        return f"QueryLedger({self.path!r}, {budget})"

    @property
    def path(self) -> str:
        """The ledger's file."""
        return str(self.store.path)

    def attach(
        self,
        target: Target,
        *,
        purpose: str = "training",
        experiment: str | None = None,
        formerly: Sequence[str] = (),
    ) -> "PaidTarget":
        """Return the target as one that pays from this ledger's budget for `purpose`.

        For training, evaluation and preflight an image is paid once: repeated images, in one batch, later or by another process,
        get the kept answer. For certification and attack every image is queried afresh; its answer is kept as a
        receipt of the experiment, so that the same experiment, run again from its start after an interruption, gets
        back what it has paid for, in whatever batches, and no other experiment ever does. Certification answers are
        labels only. Canaries are queried afresh too; without an experiment their answers are nobody's receipt.

        Args:
            experiment: Fingerprint of what determines the queries (seed and configuration). Training, evaluation
                and preflight ignore it.
            formerly: Experiments under which older versions kept the same receipts. What was answered under one of them
                is not paid again; new answers are kept under `experiment`.

        Raises:
            LedgerError: No opened target, a target that already pays, one that the file does not belong to, or a fresh
                purpose without an experiment.
        """
        if isinstance(target, PaidTarget):
            raise LedgerError(
                f"target {target.identity!r} already pays from {target.ledger.path}: attach the one behind it"
            )
        if not isinstance(target, Target):
            raise LedgerError(
                f"only an opened target can be attached, got {type(target).__name__}: open_target it"
            )
        check_purpose(purpose)
        if isinstance(formerly, str):
            raise LedgerError(
                f"formerly must be a sequence of experiments, got {formerly!r}: try [{formerly!r}]"
            )
        if purpose == "canary":
            experiment = experiment or os.urandom(16).hex()  # one that nobody can repeat
        elif purpose in FRESH_PURPOSES and not experiment:
            raise LedgerError(
                f"purpose {purpose!r} needs an experiment, got {experiment!r}: "
                "give a fingerprint of its seed and configuration"
            )
        self.store.claim(target.identity, target.num_classes)
        return PaidTarget(self, target, purpose, experiment, formerly)

    def bill(self) -> Bill:
        """Return the charges so far, over all processes."""
        tally = self.store.tally()
        charges = {
            purpose: Charge(
                budget=self.budget[purpose],
                answered=tally.get((purpose, "answered"), 0),
                unknown=tally.get((purpose, "unknown"), 0),
                in_flight=tally.get((purpose, "reserved"), 0) + tally.get((purpose, "sent"), 0),
                recalled=self.recalled[purpose],
                refused=tally.get((purpose, "refused"), 0),
            )
            for purpose in PURPOSES
        }
        return Bill(self.store.identity(), charges)

    def remaining(self, purpose: str = "training") -> int:
        """Return how many more queries the budget of a purpose allows."""
        check_purpose(purpose)
        return self.bill()[purpose].remaining

    def close(self) -> None:
        """Close the ledger's file; attached targets can no longer be queried."""
        self.store.close()

    def __enter__(self) -> "QueryLedger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PaidTarget(Target):
    """A target behind a ledger; QueryLedger.attach returns it."""

    def __init__(
        self,
        ledger: QueryLedger,
        target: Target,
        purpose: str,
        experiment: str | None,
        formerly: Sequence[str] = (),
    ) -> None:
        super().__init__(
            target.identity,
            target.num_classes,
            "labels" if purpose == "certification" else target.kind,
            charged_when_sent=target.charged_when_sent,
            input_shape=target.input_shape,
            num_features=target.num_features,
            reading=target.reading,
            pixels=target.pixels,
            # batch_size stays with the target: a query is planned, and refused, as a whole.
        )
        self.ledger = ledger
        self.purpose = purpose
        self._target = target
        together = KEPT_TOGETHER if purpose in KEPT_TOGETHER else (purpose,)
        older = ledger.store.holds(together)
        self.keys = Keys(
            target,
            self.kind.key,
            purpose,
            experiment,
            formerly,
            older=older,
            batch_sizes=ledger.store.former_sizes(purpose) if purpose in FRESH_PURPOSES else (),
        )
        # The same answers may be kept under the kind that somebody declared, or under the one that nobody did.
        others = OUTPUT_KINDS if older and purpose != "certification" else ()
        self._other_keys = [
            Keys(target, kind, purpose, experiment, formerly) for kind in others if kind != self.kind.key
        ]

    def query(
        self,
        images: torch.Tensor | np.ndarray,
        *,
        bounded: bool = True,
        draws: torch.Tensor | np.ndarray | None = None,
    ) -> Answers:
        """Return the answers to images, paying for those that are not kept.

        Args:
            images: (N, C, H, W), float32 or float64 in [0, 1].
            bounded: False drops the range check alone, for images under additive noise that is not clipped.
            draws: (N, ...) float32, what the images were made of: the noisy images in front of a denoiser, whose rounding
                may depend on the batch. Receipts are then kept for these; where an image is paid once, it is ignored.

        Raises:
            TargetError: Bad images, before the target gets them; a bad answer or a failing target, after.
            BudgetExceeded: The budget does not allow all of them; nothing is sent.
        """
        pixels = check_images(images, bounded=bounded, copy=False)
        self.check_shape(pixels.shape[1:])
        return self._pay(pixels, None if draws is None else check_images(draws, bounded=False, copy=False))

    def checked_answer(self, pixels: np.ndarray) -> Answers:
        return self._pay(pixels)  # the target behind copies what it gets and checks what it answers

    def answer(self, pixels: np.ndarray) -> Answers:
        """Return kept answers where there are any, and pay for the others."""
        return self._pay(pixels)

    def _pay(self, pixels: np.ndarray, draws: np.ndarray | None = None) -> Answers:
        store, keyed = self.ledger.store, self.keys.of(pixels, draws)
        answers = self._answers_of_older_versions(keyed)
        if self._other_keys:
            answers = self._answers_of_other_kinds(keyed, pixels, draws) | answers
        paid = 0
        while missing := [key for key in keyed.rows if key not in answers]:
            self._check_canaries(missing)
            plan = store.plan(
                dict.fromkeys(missing, 1),
                purpose=self.purpose,
                budget=self.ledger.budget[self.purpose],
                limit=self._target.batch_size,
                charged_when_sent=self.charged_when_sent,
            )
            answers |= plan.known
            self._agree(plan.known)
            answers |= self._send(plan.batches, pixels, keyed.rows)
            paid += sum(len(batch.keys) for batch in plan.batches)
            if plan.awaited:
                time.sleep(POLL_SECONDS)  # another process waits for the answers to the same images
        self.keys.count(keyed)
        self.ledger.recalled[self.purpose] += len(pixels) - paid
        labels_alone = self.output_kind == "labels"
        whole = unpack([answers[key] for key in keyed.order], self.num_classes)
        return Answers(whole.labels) if labels_alone else whole

    @property
    def _canaries(self) -> Canaries | None:
        return None if self.purpose == "canary" else self.ledger.canaries

    def _check_canaries(self, keys: list[bytes]) -> None:
        """Check the target where it is time, and something of these is to be paid for."""
        canaries = self._canaries
        if canaries is not None and canaries.due and len(self.ledger.store.recall(keys)) < len(keys):
            canaries.check(self.ledger, self._target)

    def _answers_of_older_versions(self, keyed: Keyed) -> dict[bytes, Kept]:
        """Return the answers that are kept under a former key, for keys that have none of their own."""
        if not keyed.former:
            return {}
        kept = self.ledger.store.recall([*keyed.rows, *(key for key, _ in keyed.former)])
        answers = {key: kept[key] for key in keyed.rows if key in kept}
        for former, rows in keyed.former:
            if former in kept:
                labels, scores = kept[former]
                for position, row in enumerate(rows):
                    own = None if scores is None else share(scores, position, len(rows))
                    answers.setdefault(keyed.order[row], (share(labels, position, len(rows)), own))
        return answers

    def _answers_of_other_kinds(
        self, keyed: Keyed, pixels: np.ndarray, draws: np.ndarray | None
    ) -> dict[bytes, Kept]:
        """Return answers that are kept under another kind, where they are of the kind that is wanted now.

        The first one found tells the kind where it is not known yet.
        """
        answers: dict[bytes, Kept] = {}
        for keys in self._other_keys:
            other = keys.of(pixels, draws)
            kept = self.ledger.store.recall(list(other.rows))
            keys.count(other)
            for place, key in enumerate(other.order):
                if key in kept and self._is_of_kind(kept[key]):
                    answers[keyed.order[place]] = kept[key]
        return answers

    def _is_of_kind(self, kept: Kept) -> bool:
        kind = kind_of_kept(unpack([kept], self.num_classes), self.kind)
        if self.kind.is_assumed and kind in self.kind.possible:
            self.kind.settle(kind)
        return kind == self.kind.name

    def _agree(self, known: dict[bytes, Kept]) -> None:
        """Take the kind of kept answers where none is known yet.

        Raises:
            LedgerError: They are of another kind than was declared.
        """
        if not known or self.purpose == "certification":
            return
        answers = unpack(list(known.values()), self.num_classes)
        kind = kind_of_kept(answers, self.kind)
        if kind in self.kind.possible:
            self.kind.settle(kind)
        fits = self.output_kind in ("labels", "logits", kind) and (
            kind != "labels" or self.output_kind == kind
        )
        if not fits and not (self.output_kind == "top_k" and kind == "probabilities"):
            raise LedgerError(
                f"ledger {self.ledger.path} keeps {kind} for images that are queried again, and output_kind is "
                f"{self.output_kind!r}: leave output_kind out, or say {kind!r}"
            )

    def _send(self, batches: list[Batch], pixels: np.ndarray, rows: dict[bytes, int]) -> dict[bytes, Kept]:
        """Query batches one after the other, keeping each answer before the next is sent."""
        settled: dict[bytes, Kept] = {}
        store, budget = self.ledger.store, self.ledger.budget[self.purpose]
        for position, batch in enumerate(batches):
            following = batches[position + 1] if position + 1 < len(batches) else None
            places = [rows[key] for key in batch.keys]
            images = pixels if len(places) == len(pixels) else pixels[places]
            repeats: list[Batch] = []
            try:
                with paid_by(partial(self._refuse_repeat, batch, repeats)):
                    # the range was checked at our own door
                    answers = self._target.query(images, bounded=False)
                kept = pack(answers, self.num_classes, scores=self.output_kind != "labels")
                due = self._canaries is not None and self._canaries.count(len(batch.keys))
                after = None if due else following  # what is sent next waits for the check
                store.settle(batch, kept, after, budget=budget, repeats=repeats, lost=answers.lost)
                if due and self._canaries is not None:
                    self._canaries.check(self.ledger, self._target)
                    if following is not None:
                        store.send(following, budget=budget)
            except BaseException as error:  # an interrupt too leaves a query of unknown fate
                store.fail(
                    batches[position:],
                    f"{type(error).__name__}: {error}",
                    refused=isinstance(error, Refused | BudgetExceeded),
                    repeats=repeats,
                    lost=getattr(error, "lost", 0),
                )
                raise
            settled |= zip(batch.keys, kept, strict=True)
        return settled

    def _refuse_repeat(self, batch: Batch, repeats: list[Batch], queries: int) -> str | None:
        """Book one attempt more at a batch, or return why it may not be made."""
        try:
            repeats.append(self.ledger.store.repeat(batch, queries, budget=self.ledger.budget[self.purpose]))
        except SurrogateError as error:
            return str(error)
        return None
