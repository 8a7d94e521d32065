"""Requests, the queue they wait in, and the thread that draws them, several at once where they fit together."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from PIL import Image

from fewstep.configs import Draw, Where
from fewstep.errors import FewstepError, number_of
from fewstep.events import Event, Preview
from fewstep.server.metrics import BATCH, DRAWING_S, PICTURES, WAITED_S, WAITING
from fewstep.session import Picture, Session

LOGGER = logging.getLogger("fewstep.server")
FORGETTING = 0.8  # of the mean time of a picture, with each batch


class Busy(FewstepError):
    """The queue is full."""

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        waiting_now = f"the server is busy, with {number_of(waiting, 'picture')} waiting"
        super().__init__(waiting_now, f"try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Late(FewstepError):
    """A request took longer than its deadline."""

    def __init__(self) -> None:
        super().__init__("the request took too long", "ask for fewer pictures or steps, or try again later")


class Abandoned(Exception):
    """Nobody waits for any picture of a batch."""


class StepDone(NamedTuple):
    """A picture has taken a step."""

    number: int  # of the picture in its request
    step: int
    steps: int
    image: Image.Image | None  # what it looks like so far, for a request that wants to see it


class PictureDone(NamedTuple):
    """A picture is ready."""

    number: int
    picture: Picture


class Failed(NamedTuple):
    """The request cannot be drawn."""

    error: FewstepError


Message = StepDone | PictureDone | Failed


class BatchKind(NamedTuple):
    """What pictures must have in common to be drawn together."""

    model: str
    loras: tuple[str, ...] | None
    draw: Draw  # without prompts and seeds


@dataclass(eq=False)
class Job:
    """A request. Its pictures may be drawn in several batches, beside those of others."""

    draw: Draw
    model: str  # as the server's own config names it
    loras: tuple[str, ...] | None  # FILE:WEIGHT each; None are the server's own
    client: str  # who asks, so that clients take turns
    previews: bool = False
    tell: Callable[[Message], object] = lambda message: None  # called in the worker's thread
    abandoned: bool = False  # nobody waits for it any longer
    asked_s: float = field(default_factory=time.monotonic)

    @property
    def pictures(self) -> int:
        """How many it asks for."""
        return len(self.draw.prompts) * self.draw.count

    @property
    def kind(self) -> BatchKind:
        """What others must share to be drawn beside it."""
        alike = self.draw.model_copy(update={"prompts": ("",), "seed": 0, "count": 1, "batch_size": 1})
        return BatchKind(self.model, self.loras, alike)

    def units(self) -> "Iterator[Unit]":
        """Its pictures one by one."""
        kind, prompts = self.kind, [prompt for prompt in self.draw.prompts for _ in range(self.draw.count)]
        return (Unit(self, kind, number, prompt, self.draw.seed + number) for number, prompt in enumerate(prompts))


class Unit(NamedTuple):
    """One picture of a request."""

    job: Job
    kind: BatchKind
    number: int
    prompt: str
    seed: int


class Queue:
    """Pictures that wait. Clients take turns: next is the oldest picture of the client whose last turn was first."""

    def __init__(self, limit: int) -> None:
        """limit: pictures that may wait."""
        self.limit, self.s_per_picture = limit, 1.0
        self._units: list[Unit] = []  # in order of arrival
        self._turns: dict[str, int] = {}  # client that waits -> its last turn
        self._turn, self._closed = 0, False
        self._changed = threading.Condition()

    def put(self, job: Job) -> None:
        """Let a request wait. Raises Busy if its pictures would be too many, and FewstepError once closed."""
        with self._changed:
            if self._closed:
                raise FewstepError("the server is stopping", "try again later")
            if len(self._units) + job.pictures > self.limit:
                raise Busy(len(self._units), max(1, math.ceil(len(self._units) * self.s_per_picture)))
            self._units += job.units()
            WAITING.set(len(self._units))
            self._changed.notify_all()

    def close(self) -> None:
        """Take no more requests. Those that wait are still drawn."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, most: int, gather_s: float) -> list[Unit]:
        """The pictures to draw next, at most so many, all of one kind; none once the queue is closed and empty.

        gather_s: how long to wait for others if nothing was waiting before.
        """
        with self._changed:
            idle = not self._waiting()
            self._changed.wait_for(lambda: self._waiting() or self._closed)
            if not self._waiting():
                return []
            if idle:
                self._changed.wait_for(lambda: len(self._units) >= most or self._closed, gather_s)
            return self._next(most)

    def _waiting(self) -> bool:
        """Whether something waits that somebody still wants."""
        self._units = [unit for unit in self._units if not unit.job.abandoned]
        WAITING.set(len(self._units))
        return bool(self._units)

    def _next(self, most: int) -> list[Unit]:
        self._waiting()
        in_turn = sorted(self._units, key=lambda unit: self._turns.get(unit.job.client, 0))  # stable: oldest first
        batch = [unit for unit in in_turn if unit.kind == in_turn[0].kind][:most] if in_turn else []
        taken = set(map(id, batch))
        self._units = [unit for unit in self._units if id(unit) not in taken]
        self._turn += 1
        clients = {unit.job.client for unit in self._units}
        self._turns = {client: turn for client, turn in self._turns.items() if client in clients}
        self._turns |= {unit.job.client: self._turn for unit in batch}
        WAITING.set(len(self._units))
        return batch

    def drew(self, pictures: int, seconds: float) -> None:
        """Remember how long pictures take, for those who must come again."""
        self.s_per_picture = FORGETTING * self.s_per_picture + (1 - FORGETTING) * seconds / pictures


class Worker(threading.Thread):
    """Draws what waits in the queue, with one session at a time."""

    def __init__(self, queue: Queue, where: Where, batch_size: int, gather_s: float) -> None:
        """where: the model and LoRAs of requests that name none."""
        super().__init__(name="fewstep-draws", daemon=True)
        self.queue, self.where, self.batch_size, self.gather_s = queue, where, batch_size, gather_s
        self._session: Session | None = None
        self._plugged: tuple[str, ...] | None = None
        self._batch: Sequence[Unit] = ()

    def open(self) -> None:
        """Load the model, so that the first request need not wait for it."""
        self._ready(self.where.model, self.where.loras)

    def run(self) -> None:
        """Draw until the queue is closed and empty."""
        while batch := self.queue.take(self.batch_size, self.gather_s):
            begun = time.monotonic()
            for unit in batch:
                WAITED_S.observe(begun - unit.job.asked_s)
            try:
                self._draw(batch)
            except Abandoned:
                pass
            except FewstepError as error:
                fail(batch, error)
            except Exception:
                LOGGER.exception("drawing failed")
                fail(batch, FewstepError("the server failed to draw this", "its log has the reason"))
            seconds = time.monotonic() - begun
            DRAWING_S.observe(seconds)
            BATCH.observe(len(batch))
            self.queue.drew(len(batch), seconds)
        if self._session is not None:
            self._session.close()

    def _draw(self, batch: Sequence[Unit]) -> None:
        kind, self._batch = batch[0].kind, batch
        session = self._ready(kind.model, kind.loras)
        prompts, seeds = zip(*((unit.prompt, unit.seed) for unit in batch), strict=True)
        draw = kind.draw.model_copy(update={"prompts": prompts, "batch_size": len(batch)})
        pictures = session.pictures(draw, session.plan(draw), seeds=seeds)
        for unit, picture in zip(batch, pictures, strict=True):
            PICTURES.inc()
            unit.job.tell(PictureDone(unit.number, picture))

    def _ready(self, model: str, loras: tuple[str, ...] | None) -> Session:
        """The session with this model and these LoRAs; None are the server's own."""
        if self._session is None or self._session.where.model != model:
            if self._session is not None:
                self._session.close()
                self._session = None
            where = self.where.model_copy(update={"model": model, "loras": self._own(model)})
            self._session, self._plugged = Session.open(where, self._receive), None
        if loras != self._plugged:
            self._session.plug(self._own(model) if loras is None else loras)
            self._plugged = loras
        return self._session

    def _own(self, model: str) -> tuple[str, ...] | None:
        """The LoRAs of a model when a request names none: the server's for its first model, else the model's."""
        return self.where.loras if model == self.where.model else None

    def _receive(self, event: Event) -> None:
        """Pass a step on to those who wait for it. Raises Abandoned, which ends the batch, if nobody does."""
        if not isinstance(event, Preview):
            return
        if all(unit.job.abandoned for unit in self._batch):
            raise Abandoned
        seen = any(unit.job.previews for unit in self._batch) and event.step < event.steps
        images = event.images() if seen else []
        for i, unit in enumerate(self._batch):
            image = images[i] if seen and unit.job.previews else None
            unit.job.tell(StepDone(unit.number, event.step, event.steps, image))


def fail(batch: Sequence[Unit], error: FewstepError) -> None:
    """Tell every request in the batch, once, that it cannot be drawn; its other pictures need not be drawn either."""
    for job in {id(unit.job): unit.job for unit in batch}.values():
        with suppress(RuntimeError):  # the loop that waited is closed
            job.tell(Failed(error))
        job.abandoned = True
