"""Servers on a broker, in any order of deliveries, losses, completions, crashes and drains."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from zope.interface import implementer
from zope.interface.verify import verifyObject

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import TransportClosedError
from novasvc.interfaces import IDelivery, IListener, ISession
from novasvc.rpc.message import WayBack, encode_request, read_reply, unwrap
from novasvc.target import Target

CONCURRENCY = 2
PREFETCH = 4
"""More than run at a time, so that some wait."""
HOLD_AFTER = 600.0
MAX_DELIVERIES = 3
LIVES = 3
"""Servers that live at a time."""


@attrs.define(eq=False)
class Message:
    """A copy of a request.

    :param redelivered: the broker's mark.
    :param unclaimed: it comes from the queue of a process that is gone.
    """

    number: int
    body: bytes
    deliveries: int = 0
    deaths: int = 0
    redelivered: bool = False
    unclaimed: bool = False


@implementer(ISession)
@attrs.define(eq=False)
class Session:
    """A channel.

    :param unread: what the broker has not read yet of what was acknowledged.
    """

    ended: bool = False
    kept: bool = True
    unacknowledged: list["Delivery"] = attrs.field(factory=list)
    unread: list["Delivery"] = attrs.field(factory=list)

    def read(self) -> None:
        """Have the broker read all acknowledgements."""
        for delivery in self.unread:
            self.unacknowledged.remove(delivery)
        self.unread.clear()


@implementer(IDelivery)
@attrs.define(eq=False)
class Delivery:
    """A copy in the hands of a server."""

    life: "Life"
    session: Session
    message: Message
    private: bool
    settled: bool = False
    expires_in: None = None

    @property
    def body(self) -> bytes:
        return self.message.body

    @property
    def _again(self) -> bool:
        return not self.private and (self.message.redelivered or self.message.unclaimed)

    @property
    def deliveries(self) -> int:
        return self.message.deliveries + self._again

    @property
    def deaths(self) -> int:
        return self.message.deaths + (self.message.unclaimed and not self.private)

    @property
    def counted(self) -> bool:
        return not self._again

    def _settle(self) -> bool:
        if self.session.ended or self.settled:
            return False
        self.settled = True
        self.session.unread.append(self)
        return True

    def _copy(self, deliveries: int) -> Message:
        return Message(self.message.number, self.body, deliveries, self.deaths)

    def ack(self) -> None:
        self._settle()

    reject = ack

    def hold(self) -> None:
        if self._settle():
            self.life.private.append(self._copy(self.deliveries))

    def requeue(self, deliveries: int) -> None:
        if self._settle():
            self.life.world.queue.append(self._copy(deliveries))

    def requeue_here(self, deliveries: int) -> None:
        if self._settle():
            self.life.private.append(self._copy(deliveries))

    def quarantine(self, reason: str) -> None:
        if self._settle():
            self.life.world.quarantined.append((self.message.number, reason))


@implementer(IListener)
class Life:
    """A process with a server, from its start to its death or its end; its own transport, and its own manager.

    :ivar private: what waits in a queue of its own.
    :ivar running: what its methods wait for, by number.
    :ivar said: numbers that it has answered.
    """

    hold_after = HOLD_AFTER

    def __init__(self, world: "World") -> None:
        self.world = world
        self.session = Session()
        self.private: list[Message] = []
        self.running: dict[int, Deferred[Any]] = {}
        self.said: set[int] = set()
        self.replies: list[tuple[int, Deferred[None]]] = []
        self.slow_replies = False
        self.live = True
        self.gone = False
        self.receive: Callable[[Any], None]
        self.server = rpc.Server(
            self,
            Target("compute"),
            rpc.Endpoints(self),
            clock=world.clock,
            concurrency=CONCURRENCY,
            run_blocking=lambda function: function(),
            max_deliveries=MAX_DELIVERIES,
        )
        self.server.start()

    # -- the manager ---------------------------------------------------------------------------

    @rpc.expose
    def once(self, context: RequestContext, number: int) -> Deferred[Any]:
        return self._begin(number)

    @rpc.expose(idempotent=True)
    def again(self, context: RequestContext, number: int) -> Deferred[Any]:
        return self._begin(number)

    def _begin(self, number: int) -> Deferred[Any]:
        if self.gone:
            return Deferred()  # It is dead; Python does not know.
        self.world.begun(self, number)
        running = self.running[number] = Deferred()
        running.addBoth(self._ended, number)
        return running

    def _ended(self, result: Any, number: int) -> Any:
        self.running.pop(number, None)
        return result

    # -- the transport -------------------------------------------------------------------------

    def listen(self, target: Target, receiver: Callable[[Any], None], prefetch: int) -> Deferred["Life"]:
        self.receive = receiver
        return succeed(self)

    def cancel(self) -> Deferred[None]:
        self.live = False
        return succeed(None)

    def close(self) -> Deferred[None]:
        while self.private and not self.session.ended:
            self.take(private=True)
        self.session.read()
        self.lose()
        return succeed(None)

    def reply(self, address: str, body: bytes) -> Deferred[None]:
        number = int(read_reply(unwrap(body)).msg_id)
        if self.gone:
            return Deferred()
        self.said.add(number)
        if not self.slow_replies:
            self.world.answered[number] += 1
            return succeed(None)
        publishing: Deferred[None] = Deferred()
        self.replies.append((number, publishing))
        return publishing

    # -- what happens to it --------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether the broker delivers to it."""
        return self.live and not self.session.ended and len(self.session.unacknowledged) < PREFETCH

    def take(self, *, private: bool = False) -> None:
        """Get the next message."""
        message = (self.private if private else self.world.queue).pop(0)
        delivery = Delivery(self, self.session, message, private)
        self.session.unacknowledged.append(delivery)
        self.receive(delivery)

    def lose(self) -> None:
        """Lose the channel: the broker has back what it thinks is unacknowledged, in its order."""
        self.session.ended = True
        shared, private = self.world.queue, self.private
        for delivery in reversed(self.session.unacknowledged):
            delivery.message.redelivered = True
            (private if delivery.private else shared).insert(0, delivery.message)
            self.world.excused.add(delivery.message.number)
        self.session.unacknowledged, self.session.unread = [], []

    def leave(self) -> None:
        """Be gone: what nobody claims goes back to where it came from."""
        self.live, self.gone = False, True
        for message in self.private:
            message.unclaimed = True
            self.world.excused.add(message.number)
        self.world.queue.extend(self.private)
        self.private = []
        self.world.lives.remove(self)


class World(RuleBasedStateMachine):
    """A topic with a queue, callers, and some servers."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.queue: list[Message] = []
        self.quarantined: list[tuple[int, str]] = []
        self.idempotent: dict[int, bool] = {}
        self.bodies: dict[int, bytes] = {}
        self.runs: Counter[int] = Counter()
        self.answered: Counter[int] = Counter()
        self.deaths: Counter[int] = Counter()
        self.excused: set[int] = set()
        self.lives: list[Life] = []
        self.lives += [Life(self) for _ in range(LIVES)]
        verifyObject(IListener, self.lives[0])

    # -- what must hold ------------------------------------------------------------------------

    def begun(self, life: Life, number: int) -> None:
        """A method has begun."""
        self.runs[number] += 1
        assert number not in life.running, f"{number} runs twice in one process"
        assert number not in life.said, f"{number} was answered by the process that begins it"
        if not self.idempotent[number]:
            assert self.runs[number] == 1, f"{number} runs twice, and is not idempotent"
        if self.answered[number]:
            # Only who never had it may do so, and only if the broker lost sight of who had: its channel was lost.
            assert number in self.excused, f"{number} begins after its caller was answered"

    @invariant()
    def quarantine_is_true(self) -> None:
        for number, reason in self.quarantined:
            assert self.deaths[number] >= MAX_DELIVERIES, f"{number}: {reason}"

    @invariant()
    def deaths_are_deaths(self) -> None:
        copies = [*self.queue, *(message for life in self.lives for message in life.private)]
        for message in copies:
            assert message.deaths + message.unclaimed <= self.deaths[message.number]

    # -- what may happen -----------------------------------------------------------------------

    @rule(idempotent=st.booleans(), cast=st.booleans())
    def send(self, idempotent: bool, cast: bool) -> None:
        """A caller sends a request."""
        number = len(self.idempotent)
        self.idempotent[number] = idempotent
        back = None if cast else WayBack(str(number), "caller")
        method = "again" if idempotent else "once"
        self.bodies[number] = encode_request(method, {"number": number}, {}, back=back)
        self.queue.append(Message(number, self.bodies[number]))

    @rule(data=st.data())
    def send_twice(self, data: st.DataObject) -> None:
        """A caller whose message was not confirmed sends it again, under the same id."""
        numbers = [number for number, idempotent in self.idempotent.items() if idempotent and not self.answered[number]]
        if numbers:
            number = data.draw(st.sampled_from(numbers))
            self.queue.append(Message(number, self.bodies[number]))
            self.excused.add(number)

    @precondition(lambda self: self.queue and any(life.has_room for life in self.lives))
    @rule(data=st.data(), many=st.integers(1, PREFETCH))
    def deliver(self, data: st.DataObject, many: int) -> None:
        """The broker delivers."""
        life = data.draw(st.sampled_from([life for life in self.lives if life.has_room]))
        for _ in range(many):
            if self.queue and life.has_room:
                life.take()

    def some(self, data: st.DataObject, condition: Callable[[Life], Any]) -> Life | None:
        lives = [life for life in self.lives if condition(life)]
        return data.draw(st.sampled_from(lives)) if lives else None

    @rule(data=st.data())
    def deliver_private(self, data: st.DataObject) -> None:
        """The broker delivers from a process's own queue."""
        life = self.some(data, lambda life: life.private and not life.session.ended)
        if life is not None:
            life.take(private=True)

    @rule(data=st.data(), fails=st.booleans())
    def complete(self, data: st.DataObject, fails: bool) -> None:
        """A method ends."""
        life = self.some(data, lambda life: life.running)
        if life is not None:
            number = data.draw(st.sampled_from(sorted(life.running)))
            running = life.running[number]
            if fails:
                running.errback(LookupError("no such instance"))
            else:
                running.callback(number)
            self.flush()

    @rule(data=st.data(), slow=st.booleans())
    def replies(self, data: st.DataObject, slow: bool) -> None:
        """From now on replies take their time, or do not."""
        life = self.some(data, lambda life: life.slow_replies != slow)
        if life is not None:
            life.slow_replies = slow

    @rule(data=st.data(), fails=st.booleans())
    def publish(self, data: st.DataObject, fails: bool) -> None:
        """A reply is confirmed, or cannot be published."""
        life = self.some(data, lambda life: life.replies)
        if life is not None:
            number, publishing = life.replies.pop(0)
            if fails:
                life.said.discard(number)
                publishing.errback(TransportClosedError("replying"))
            else:
                self.answered[number] += 1
                publishing.callback(None)

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        """The broker reads what was acknowledged."""
        life = self.some(data, lambda life: life.session.unread)
        if life is not None:
            life.session.read()

    @rule(data=st.data())
    def lose_channel(self, data: st.DataObject) -> None:
        """A server loses its channel, and what it acknowledged a moment ago was not read."""
        life = self.some(data, lambda life: not life.session.ended)
        if life is not None:
            life.lose()

    @rule(data=st.data())
    def reconnect(self, data: st.DataObject) -> None:
        """A server has its channel again."""
        life = self.some(data, lambda life: life.session.ended)
        if life is not None:
            life.session = Session()

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """A process dies, and another one starts."""
        life = self.some(data, lambda life: True)
        if life is not None:
            held = {delivery.message.number for delivery in life.session.unacknowledged}
            for number in held | {message.number for message in life.private}:
                self.deaths[number] += 1
            life.gone = True
            life.lose()
            life.leave()
            life.server.close()
            self.lives.append(Life(self))

    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        """A server takes in nothing more."""
        life = self.some(data, lambda life: life.live)
        if life is not None:
            life.server.stop_consuming()

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """A server that drains ends, finished or not, and another one starts."""
        life = self.some(data, lambda life: not life.live and not life.replies)
        if life is not None:
            life.slow_replies = False
            life.server.close()
            # What was nowhere but in its hands, with a void delivery, is not in a queue of its own.
            assert not life.private or life.session.ended
            for message in life.private:
                self.deaths[message.number] += 1  # It is gone before it could claim it.
            life.leave()
            self.lives.append(Life(self))

    @rule(seconds=st.sampled_from([1.0, HOLD_AFTER, 4 * HOLD_AFTER]))
    def time_passes(self, seconds: float) -> None:
        """Methods run for long, and what was settled may be forgotten."""
        self.clock.pump([HOLD_AFTER / 2] * round(2 * seconds / HOLD_AFTER) or [seconds])

    def flush(self) -> None:
        self.clock.advance(0)

    # -- the end -------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Let everything become well: then each idempotent request was answered, unless it was put aside in truth."""
        for life in list(self.lives):
            if not life.live:
                self.lives.append(Life(self))
            life.slow_replies = False
        for _ in range(200):
            for life in self.lives:
                if life.session.ended:
                    life.session = Session()
                while life.private:
                    life.take(private=True)
                while life.replies:
                    number, publishing = life.replies.pop(0)
                    self.answered[number] += 1
                    publishing.callback(None)
                for number in sorted(life.running):
                    life.running[number].callback(number)
                life.session.read()
                while self.queue and life.has_room:
                    life.take()
            self.clock.pump([0.0, 1.0])
            if self.is_quiet():
                break
        else:
            raise AssertionError("it never becomes quiet")
        aside = {number for number, _ in self.quarantined}
        for number, idempotent in self.idempotent.items():
            if idempotent:
                assert self.runs[number] or number in aside, f"{number} is lost"
                if b"caller" in self.bodies[number]:
                    assert self.answered[number], f"{number} has no answer"
        self.quarantine_is_true()

    def is_quiet(self) -> bool:
        """Whether nothing waits, runs or is unacknowledged."""
        return not self.queue and not any(
            life.private or life.running or life.replies or life.session.unacknowledged for life in self.lives
        )


World.TestCase.settings = settings(max_examples=120, stateful_step_count=50)
ServerStories = World.TestCase
