"""Servers on a model of a broker, with any order of deliveries, lost channels, completions, crashes and drains."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from zope.interface import implementer
from zope.interface.verify import verifyObject

from novasvc import rpc
from novasvc.context import RequestContext
from novasvc.errors import TransportClosedError
from novasvc.interfaces import IDelivery, IListener, ISession, Reachability, WriteProbe
from novasvc.rpc.message import ReplyTo, encode_request, read_reply, unwrap
from novasvc.rpc.target import Target
from tests.support.examples import examples

CONCURRENCY = 2
PREFETCH = 4
"""More than the concurrency, so that some calls wait."""
HOLD_AFTER = 600.0
WINDOW = 600.0
MAX_DELIVERIES = 3
LIVES = 3
"""Servers that run at a time."""


@attrs.define(eq=False)
class Message:
    """A copy of a request.

    :param redelivered: the broker's redelivered flag.
    :param unclaimed: it comes from the holding queue of a process that has exited.
    :param resent: its caller sent it again; it expires long before ids are forgotten.
    """

    number: int
    body: bytes
    deliveries: int = 0
    deaths: int = 0
    redelivered: bool = False
    unclaimed: bool = False
    resent: bool = False


@implementer(ISession)
@attrs.define(eq=False)
class Session:
    """A channel to the broker.

    :param unread: acknowledged deliveries whose acknowledgements the broker has not processed.
    """

    ended: bool = False
    redelivers: bool = True
    unacknowledged: list["Delivery"] = attrs.field(factory=list)
    unread: list["Delivery"] = attrs.field(factory=list)

    def read(self) -> None:
        """Let the broker process all acknowledgements."""
        for delivery in self.unread:
            self.unacknowledged.remove(delivery)
        self.unread.clear()


@implementer(IDelivery)
@attrs.define(eq=False)
class Delivery:
    """A delivery of one copy to one server."""

    life: "Life"
    session: Session
    message: Message
    holding: bool
    settled: bool = False
    expires_at: None = None
    expires_in: None = None
    sent_to: str = "topic"

    @property
    def body(self) -> bytes:
        return self.message.body

    @property
    def _again(self) -> bool:
        return not self.holding and (self.message.redelivered or self.message.unclaimed)

    @property
    def deliveries(self) -> int:
        return self.message.deliveries + self._again

    @property
    def deaths(self) -> int:
        return self.message.deaths + (self.message.unclaimed and not self.holding)

    @property
    def counts_death(self) -> bool:
        return not self._again

    def _settle(self) -> bool:
        if self.session.ended or self.settled:
            return False
        self.settled = True
        self.session.unread.append(self)
        return True

    def _copy(self, deliveries: int) -> Message:
        return Message(self.message.number, self.body, deliveries, self.deaths, resent=self.message.resent)

    def ack(self) -> None:
        self._settle()

    reject = ack

    def hold(self) -> None:
        if self._settle():
            self.life.holding.append(self._copy(self.deliveries))

    def requeue(self, deliveries: int) -> None:
        if self._settle():
            self.life.world.queue.append(self._copy(deliveries))

    def requeue_here(self, deliveries: int) -> None:
        if self._settle():
            self.life.holding.append(self._copy(deliveries))

    def quarantine(self, reason: str) -> None:
        if self._settle():
            self.life.world.quarantined.append((self.message.number, reason))


@implementer(IListener)
class Life:
    """A process with a server, from its start to its death or exit; also its own transport and manager.

    :ivar holding: messages in this process's holding queue.
    :ivar running: Deferreds that end its running methods, by number.
    :ivar said: when it replied, by number.
    """

    hold_after = HOLD_AFTER

    def __init__(self, world: "World") -> None:
        self.world = world
        self.session = Session()
        self.holding: list[Message] = []
        self.running: dict[int, Deferred[Any]] = {}
        self.said: dict[int, float] = {}
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

    @rpc.expose(expected=(LookupError,))
    def once(self, context: RequestContext, number: int) -> Deferred[Any]:
        return self._begin(number)

    @rpc.expose(idempotent=True, expected=(LookupError,))
    def again(self, context: RequestContext, number: int) -> Deferred[Any]:
        return self._begin(number)

    def _begin(self, number: int) -> Deferred[Any]:
        if self.gone:
            return Deferred()  # A dead process runs nothing; here its objects still exist.
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

    def cancel_topic(self, prefetch: int) -> Deferred[None]:
        return self.cancel()  # This model only has the topic's consumer.

    def verify(self, write: WriteProbe, timeout: float) -> Deferred[Reachability]:
        return succeed(Reachability())

    def cancel(self) -> Deferred[None]:
        self.live = False
        return succeed(None)

    def close(self) -> Deferred[None]:
        while self.holding and not self.session.ended:
            self.take(holding=True)
        self.session.read()
        self.lose()
        return succeed(None)

    def problem(self) -> str | None:
        return None

    def reply(self, address: str, body: bytes, timeout: float | None = None) -> Deferred[None]:
        number = int(read_reply(unwrap(body)).msg_id)
        if self.gone:
            return Deferred()
        self.said[number] = self.world.clock.seconds()
        if not self.slow_replies:
            self.world.answered[number] += 1
            return succeed(None)
        publishing: Deferred[None] = Deferred()
        self.replies.append((number, publishing))
        return publishing

    # -- what the world does to it ----------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether the broker can deliver to this process."""
        return self.live and not self.session.ended and len(self.session.unacknowledged) < PREFETCH

    def take(self, *, holding: bool = False) -> None:
        """Receive the next message."""
        message = (self.holding if holding else self.world.queue).pop(0)
        delivery = Delivery(self, self.session, message, holding)
        self.session.unacknowledged.append(delivery)
        self.receive(delivery)

    def lose(self) -> None:
        """Lose the channel: the broker requeues the messages it counts as unacknowledged, in order."""
        self.session.ended = True
        shared, holding = self.world.queue, self.holding
        for delivery in reversed(self.session.unacknowledged):
            delivery.message.redelivered = True
            (holding if delivery.holding else shared).insert(0, delivery.message)
            self.world.excused.add(delivery.message.number)
        self.session.unacknowledged, self.session.unread = [], []

    def leave(self) -> None:
        """Exit: messages in this process's holding queue go back to the topic's queue, unclaimed."""
        self.live, self.gone = False, True
        for message in self.holding:
            message.unclaimed = True
            self.world.excused.add(message.number)
        self.world.queue.extend(self.holding)
        self.holding = []
        self.world.lives.remove(self)


ANY = st.integers(0, 7)


def one_of(things: list[Any], number: int) -> Any:
    return things[number % len(things)]


def possible(condition: Callable[[Life], Any]) -> Callable[..., Any]:
    """Enable a rule while there is a process that meets a condition."""
    return precondition(lambda world: any(condition(life) for life in world.lives))


class NotHereError(LookupError):
    """The error that methods raise here."""


class World(RuleBasedStateMachine):
    """A topic with a queue, callers and several servers."""

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
        self.expired: set[int] = set()
        self.wrong: list[str] = []
        self.lives: list[Life] = []
        self.lives += [Life(self) for _ in range(LIVES)]
        verifyObject(IListener, self.lives[0])

    # -- what must hold ------------------------------------------------------------------------

    def is_forgotten(self, life: Life, number: int) -> bool:
        """Whether a process may have dropped the id of a request that it answered, after ten minutes."""
        return self.clock.seconds() - life.said[number] >= WINDOW

    def begun(self, life: Life, number: int) -> None:
        """Record what is wrong with a method's start; the server would catch an error raised here."""
        self.runs[number] += 1
        # Only a process that never had the request may begin it after its answer, and only if the broker has
        # redelivered it, or its caller has sent it again.
        wrong = {
            "runs twice in one process": number in life.running,
            "was answered by the process that begins it": number in life.said and not self.is_forgotten(life, number),
            "runs twice, and is not idempotent": self.runs[number] > 1 and not self.idempotent[number],
            "begins after its caller was answered": self.answered[number] and number not in self.excused,
        }
        self.wrong += [f"{number} {what}" for what, is_so in wrong.items() if is_so]

    @invariant()
    def nothing_is_wrong(self) -> None:
        assert not self.wrong, self.wrong

    @invariant()
    def quarantine_is_true(self) -> None:
        for number, reason in self.quarantined:
            assert self.deaths[number] >= MAX_DELIVERIES, f"{number}: {reason}"

    @invariant()
    def deaths_are_deaths(self) -> None:
        copies = [*self.queue, *(message for life in self.lives for message in life.holding)]
        for message in copies:
            assert message.deaths + message.unclaimed <= self.deaths[message.number]

    # -- what may happen -----------------------------------------------------------------------

    @rule(kinds=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=4))
    def send(self, kinds: list[tuple[bool, bool]]) -> None:
        """Send requests: idempotent or not, calls or casts."""
        for idempotent, cast in kinds:
            number = len(self.idempotent)
            self.idempotent[number] = idempotent
            reply_to = None if cast else ReplyTo(str(number), "caller")
            method = "again" if idempotent else "once"
            self.bodies[number] = encode_request(method, {"number": number}, {}, reply_to=reply_to)
            self.queue.append(Message(number, self.bodies[number]))

    @property
    def unanswered(self) -> list[int]:
        return [number for number, idempotent in self.idempotent.items() if idempotent and not self.answered[number]]

    @precondition(lambda self: self.unanswered)
    @rule(which=ANY)
    def send_twice(self, which: int) -> None:
        """Send a request again with the same id, as a caller does whose message was not confirmed."""
        number = one_of(self.unanswered, which)
        self.queue.append(Message(number, self.bodies[number], resent=True))
        self.excused.add(number)

    @possible(lambda life: life.has_room and life.world.queue)
    @rule(which=ANY, many=st.integers(1, PREFETCH))
    def deliver(self, which: int, many: int) -> None:
        """Deliver messages from the topic's queue."""
        life = self.which(which, lambda life: life.has_room)
        for _ in range(many):
            if self.queue and life.has_room:
                life.take()

    @possible(lambda life: life.holding and not life.session.ended)
    @rule(which=ANY)
    def deliver_private(self, which: int) -> None:
        """Deliver a message from a process's own queue."""
        self.which(which, lambda life: life.holding and not life.session.ended).take(holding=True)

    @possible(lambda life: life.running)
    @rule(which=ANY, second=ANY, fails=st.booleans())
    def complete(self, which: int, second: int, fails: bool) -> None:
        """End a method, with a result or an error."""
        life = self.which(which, lambda life: life.running)
        number = one_of(sorted(life.running), second)
        running = life.running[number]
        if fails:
            running.errback(NotHereError())
        else:
            running.callback(number)

    @rule(which=ANY)
    def change_replies(self, which: int) -> None:
        """Switch a process between replies that publish at once and slow ones."""
        life = one_of(self.lives, which)
        life.slow_replies = not life.slow_replies

    @possible(lambda life: life.replies)
    @rule(which=ANY, fails=st.booleans())
    def publish(self, which: int, fails: bool) -> None:
        """Confirm a reply, or fail its publishing."""
        life = self.which(which, lambda life: life.replies)
        number, publishing = life.replies.pop(0)
        if fails:
            life.said.pop(number, None)
            publishing.errback(TransportClosedError("replying"))
        else:
            self.answered[number] += 1
            publishing.callback(None)

    @possible(lambda life: life.session.unread)
    @rule(which=ANY)
    def read(self, which: int) -> None:
        """Let the broker process a server's acknowledgements."""
        self.which(which, lambda life: life.session.unread).session.read()

    @possible(lambda life: life.session.unacknowledged)
    @rule(which=ANY)
    def lose_channel(self, which: int) -> None:
        """Lose a server's channel, with the acknowledgements that the broker has not processed."""
        self.which(which, lambda life: life.session.unacknowledged).lose()

    @possible(lambda life: life.session.ended)
    @rule(which=ANY)
    def reconnect(self, which: int) -> None:
        """Give a server a new channel."""
        self.which(which, lambda life: life.session.ended).session = Session()

    @possible(lambda life: life.session.unacknowledged or life.holding)
    @rule(which=ANY)
    def crash(self, which: int) -> None:
        """Kill a process, and start another one."""
        life = self.which(which, lambda life: life.session.unacknowledged or life.holding)
        held = {delivery.message.number for delivery in life.session.unacknowledged}
        for number in held | {message.number for message in life.holding}:
            self.deaths[number] += 1
        life.gone = True
        life.lose()
        life.leave()
        life.server.close()
        self.lives.append(Life(self))

    @possible(lambda life: life.live and life.session.unacknowledged)
    @rule(which=ANY, at_once=st.booleans())
    def drain(self, which: int, at_once: bool) -> None:
        """Drain a server, or stop its consuming."""
        server = self.which(which, lambda life: life.live and life.session.unacknowledged).server
        if at_once:
            server.stop_consuming()
        else:
            server.drain()

    @possible(lambda life: not life.live and not life.replies)
    @rule(which=ANY)
    def end(self, which: int) -> None:
        """Close a draining server, finished or not, and start another one."""
        life = self.which(which, lambda life: not life.live and not life.replies)
        life.slow_replies = False
        life.server.close()
        assert not life.holding or life.session.ended
        for message in life.holding:
            self.deaths[message.number] += 1  # The process exits before the message is delivered to it.
        life.leave()
        self.lives.append(Life(self))

    @rule(seconds=st.sampled_from([1.0, HOLD_AFTER, 4 * HOLD_AFTER]))
    def time_passes(self, seconds: float) -> None:
        """Let time pass: methods run for long, and ids of settled messages may be dropped."""
        if seconds >= HOLD_AFTER:
            self.expired |= {message.number for message in self.queue if message.resent}
            self.queue[:] = [message for message in self.queue if not message.resent]
        self.clock.pump([HOLD_AFTER / 2] * round(2 * seconds / HOLD_AFTER) or [seconds])

    def which(self, number: int, condition: Callable[[Life], Any]) -> Life:
        return one_of([life for life in self.lives if condition(life)], number)

    # -- the end -------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Let all calls end; check that each idempotent request was answered, or quarantined with enough deaths."""
        for life in self.lives:
            life.slow_replies = False
        self.lives.append(Life(self))  # All others may be draining.
        for _ in range(200):
            if self.is_quiet():
                break
            for life in self.lives:
                self.settle(life)
            self.clock.pump([0.0, 1.0])
        else:
            raise AssertionError("it never becomes quiet")
        aside = {number for number, _ in self.quarantined}
        for number, idempotent in self.idempotent.items():
            if idempotent and number not in self.expired:
                assert self.runs[number] or number in aside, f"{number} is lost"
                assert self.answered[number] or b"caller" not in self.bodies[number], f"{number} has no answer"
        self.quarantine_is_true()
        self.nothing_is_wrong()

    def settle(self, life: Life) -> None:
        """Let a process reconnect, run and answer everything it has."""
        if life.session.ended:
            life.session = Session()
        while life.holding:
            life.take(holding=True)
        while life.replies:
            number, publishing = life.replies.pop(0)
            self.answered[number] += 1
            publishing.callback(None)
        for number in sorted(life.running):
            life.running[number].callback(number)
        life.session.read()
        while self.queue and life.has_room:
            life.take()

    def is_quiet(self) -> bool:
        """Whether no message waits, runs or is unacknowledged."""
        return not self.queue and not any(
            life.holding or life.running or life.replies or life.session.unacknowledged for life in self.lives
        )


World.TestCase.settings = settings(
    max_examples=examples(120),
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # It measures wall-clock time, on a shared machine.
)
ServerStories = World.TestCase
