"""Queues of this process that an operator replaces by queues of another type; see docs/protocol.md.

The operator's command (:mod:`novasvc.transport.amqp.migration`) sends orders to the fanout queues of a topic's
processes; each process that consumes one of the queues in question carries the order out, and answers.
"""

import json
import os
import re
from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger

from novasvc.transport.amqp.channel import AMQPClosedError
from novasvc.transport.amqp.reply_codes import NOT_FOUND
from novasvc.transport.errors import BrokerError

if TYPE_CHECKING:
    from novasvc.transport.amqp.listener import Listener
    from novasvc.transport.amqp.publisher import Publisher

_log = Logger()

_NO_QUEUE = re.compile(r"no queue '([^']*)'")
"""RabbitMQ's reply text for a queue that does not exist."""
_INTERIM = "_interim"


class Stage(StrEnum):
    """What a process consumes while a queue is replaced. In every stage it leaves the queue's bindings alone."""

    FOLLOWING = "following"
    """The queue and the interim queue."""
    RELEASED = "released"
    """The interim queue only; an old quorum queue also, as long as it exists."""
    RETURNED = "returned"
    """The interim queue, and the new queue of the same name."""
    FINISHING = "finishing"
    """The new queue only."""

    @property
    def consumed(self) -> str:
        """What is consumed, for the log."""
        return {
            Stage.FOLLOWING: "the queue and its interim queue are consumed",
            Stage.RELEASED: "only its interim queue is consumed",
            Stage.RETURNED: "its interim queue and the new queue are consumed",
            Stage.FINISHING: "only the new queue is consumed",
        }[self]

    @property
    def with_interim(self) -> bool:
        """Whether the interim queue is consumed."""
        return self is not Stage.FINISHING


REPORT, FINISH = "report", "finish"
"""Orders that change no stage: say what you consume; forget the replacement."""


def interim_queue(queue: str) -> str:
    """Return the name of the queue that takes a queue's messages while it is replaced."""
    return f"{queue}{_INTERIM}"


@attrs.frozen(kw_only=True)
class Order:
    """What a process is to do.

    :param do: a :class:`Stage`, REPORT or FINISH.
    :param queues: the queues that it is about; others are left as they are. Empty for REPORT: all.
    :param kind: the type that the queues get: "classic" or "quorum".
    :param number: identifies the order in its answers.
    """

    do: str
    queues: tuple[str, ...] = ()
    kind: str = ""
    number: int = 0

    def encode(self) -> bytes:
        """Return the body of its message."""
        return json.dumps(attrs.asdict(self)).encode()

    @classmethod
    def decode(cls, body: bytes) -> "Order":
        """Read the body of its message.

        :raises ValueError: it is not an order.
        """
        read = json.loads(body)
        if not isinstance(read, dict) or not isinstance(queues := read.get("queues"), list):
            raise ValueError("not an order")  # noqa: TRY004 - for the caller, as malformed JSON is
        do, number = str(read.get("do")), read.get("number")
        if do not in {*Stage, REPORT, FINISH} or not isinstance(number, int):
            raise ValueError(f"unknown order {do!r}")
        return cls(do=do, queues=tuple(map(str, queues)), kind=str(read.get("kind")), number=number)


@attrs.define(eq=False)
class Replacements:
    """The queues of one transport's listeners that are being replaced.

    :param accepted: the queues and exchanges whose type is not the configured one; see BrokerOptions.
    """

    _accepted: dict[str, str]
    _stages: dict[str, Stage] = attrs.field(factory=dict, init=False)
    _listeners: "list[Listener]" = attrs.field(factory=list, init=False)
    _lock: DeferredLock = attrs.field(factory=DeferredLock, init=False)
    _process: str = attrs.field(factory=lambda: os.urandom(8).hex(), init=False)

    def __bool__(self) -> bool:
        return bool(self._stages)

    # -- what a listener asks ------------------------------------------------------------------

    def add(self, listener: "Listener") -> None:
        """Have a listener carry out the orders."""
        if listener not in self._listeners:
            self._listeners.append(listener)

    def remove(self, listener: "Listener") -> None:
        """Forget a listener that is closed."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def stage(self, queue: str) -> Stage | None:
        """Return a queue's stage; None if it is not being replaced."""
        return self._stages.get(queue)

    def is_released(self, queue: str) -> bool:
        """Return whether a queue is not to be consumed."""
        return bool(self._stages) and self._stages.get(queue) is Stage.RELEASED

    def destination(self, queue: str) -> str:
        """Return where copies of a queue's messages go: to the interim queue, while the queue itself is emptied."""
        if self._stages.get(queue) in {Stage.FOLLOWING, Stage.RELEASED}:
            return interim_queue(queue)
        return queue

    def adapt(self, reason: AMQPClosedError) -> None:
        """Release a queue that does not exist, if the channel was closed for that."""
        found = _NO_QUEUE.search(reason.problem) if reason.code == NOT_FOUND else None
        if found is not None and found[1] in self._stages:
            self._stages[found[1]] = Stage.RELEASED

    # -- orders --------------------------------------------------------------------------------

    def receive(self, body: bytes) -> Deferred[bytes | None]:
        """Carry out an order.

        :return: Deferred of the answer's body; None if the order is unreadable, or about none of our queues.
        """
        return Deferred.fromCoroutine(self._receive(body))

    async def _receive(self, body: bytes) -> bytes | None:
        try:
            order = Order.decode(body)
        except ValueError as error:
            _log.warn("ignored an order to replace queues: {error}", error=error)
            return None
        # One after the other: two orders would start the same consumer twice.
        await self._lock.acquire()
        try:
            ours = [each for each in self._queues() if not order.queues or each[0] in order.queues]
            if order.do != REPORT:
                for queue, listener in ours:
                    await self._carry_out(order, queue, listener)
        finally:
            self._lock.release()
        if not ours:
            return None
        answers: dict[str, dict[str, Any]] = {}
        for queue, listener in ours:
            self._add_answer(answers.setdefault(queue, {}), queue, listener)
        return json.dumps({"number": order.number, "process": self._process, "queues": answers}).encode()

    def _queues(self) -> "Iterator[tuple[str, Listener]]":
        for listener in list(self._listeners):
            for queue in listener.request_queues():
                yield queue, listener

    async def _carry_out(self, order: Order, queue: str, listener: "Listener") -> None:
        before = self._stages.get(queue)
        if order.do == FINISH:
            self._stages.pop(queue, None)
        else:
            self._stages[queue] = Stage(order.do)
        if order.do in {Stage.RETURNED, Stage.FINISHING, FINISH}:
            self._accepted[queue] = order.kind
        stage = self._stages.get(queue)
        if before != stage:
            _log_stage(queue, order.kind, stage)
        await self._apply(queue, listener, keep=order.kind == "classic")

    async def _apply(self, queue: str, listener: "Listener", *, keep: bool) -> None:
        """Start and stop a listener's consumers by the queue's stage."""
        try:
            await listener.interim.apply(queue, self._stages.get(queue), keep=keep)
        except AMQPClosedError as reason:
            # The channel's loss restores the consumers, by the new stage; the answer says what is consumed by now.
            _log.warn("{queue}: cannot change its consumers: {reason}", queue=queue, reason=reason)

    def _add_answer(self, answer: dict[str, Any], queue: str, listener: "Listener") -> None:
        """Add what a listener says about a queue; several of a process may consume from the same one."""
        answer["stage"] = self._stages.get(queue, "")
        answer["consumes"] = answer.get("consumes", 0) + listener.consumes_from(queue)
        answer["left"] = answer.get("left", 0) + listener.interim.left_of(queue)
        answer["waits"] = answer.get("waits", False) or listener.interim.waits_for_end_of(queue)
        answer["keys"] = list(listener.routing_keys(queue))
        answer["auto_delete"] = listener.subscriptions.options.auto_delete

    async def check(self, publisher: "Publisher") -> None:
        """End the replacements that are over without our knowing: their interim queues do not exist any more.

        A process that was cut off from the broker misses orders. All queues are checked, also one whose listener is
        closed: as long as one has a stage, no listener of the transport proves that messages reach it.

        :param publisher: asks the broker.
        """
        for queue in list(self._stages):
            try:
                await publisher.count(interim_queue(queue))
            except BrokerError as error:
                if type(error) is not BrokerError or not _NO_QUEUE.search(error.problem):
                    continue
                self._stages.pop(queue, None)
                _log_stage(queue, "", None)
                for each, listener in self._queues():
                    if each == queue:
                        await self._apply(queue, listener, keep=False)


def _log_stage(queue: str, kind: str, stage: Stage | None) -> None:
    if stage is None:
        _log.info("the replacement of {queue} has ended", queue=queue)
    else:
        replaced = "an operator replaces {queue} by a {kind} queue; now {consumed}"
        _log.info(replaced, queue=queue, kind=kind, consumed=stage.consumed)
