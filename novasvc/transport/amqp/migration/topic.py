"""Replace the queues of one topic."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any

import attrs

from novasvc.transport.amqp.channel import AMQPClosedError, Channel
from novasvc.transport.amqp.existing import KINDS
from novasvc.transport.amqp.migration.leftovers import move_leftovers
from novasvc.transport.amqp.migration.orders import Answer, Orders
from novasvc.transport.amqp.migration.request import Request, Step
from novasvc.transport.amqp.migration.route import Route
from novasvc.transport.amqp.migration.session import Session
from novasvc.transport.amqp.replacement import FINISH, Stage, interim_queue
from novasvc.transport.amqp.reply_codes import PRECONDITION_FAILED
from novasvc.transport.amqp.topology import declare_exchange
from novasvc.transport.errors import MigrationStalledError, NothingToMigrateError, UnknownConsumersError

LOOK = 0.25
"""Seconds between two looks at the queues."""
BATCH = 100
"""Queues that are replaced at the same time."""
_CENSUSES = 4
"""How often the processes of a topic are asked at most, until all consumers of its queue have answered."""
_EVENTS = "_events"
_LONGEST = 255
"""Octets of a name (AMQP 0-9-1, shortstr)."""


@attrs.define(eq=False)
class TopicMigration:
    """Replaces the queues of one topic.

    :param report: called with each step when it begins.
    :param mark: called before the first change; see Note [Accepted names] in existing.
    :param replaced: the queues that are replaced are added to it.
    """

    _session: Session
    _request: Request
    _topic: str
    _report: Callable[[Step], None]
    _mark: Callable[[], Awaitable[None]]
    _replaced: list[str]
    _orders: Orders = attrs.field(init=False)
    _routes: dict[str, Route] = attrs.field(factory=dict, init=False)

    async def check(self) -> None:
        """Check that no interrupted command was replacing one of the queues by one of another type. Called first.

        :raises NothingToMigrateError: one was.
        """
        self._orders = Orders(self._session, self._request.exchange, self._topic)
        try:
            await self._orders.open()
        except AMQPClosedError as reason:
            raise self._session.error(reason) from reason
        for queue in await self._find():
            await self._is_in_progress(queue)

    async def replace(self) -> None:
        """Replace them, at most BATCH at a time."""
        self._orders.processes.clear()  # those that answered to the check may have ended while others were replaced
        names = await self._find()
        for start in range(0, len(names), BATCH):
            await self._replace_some(names[start : start + BATCH])

    async def _find(self) -> list[str]:
        """Ask the processes of the topic, and return its queues."""
        for _ in range(_CENSUSES):
            await self._orders.ask(self._request.census)
            # Ask again if a process was slow: hosts that are not in the registry are known by their answers only.
            if await self._others(self._topic) <= 0:
                break
        return self._names()

    def _names(self) -> list[str]:
        """Return the topic's own queues, the one of its events, and those of its hosts."""
        answered = self._orders.queues()
        for queue, keys in answered.items():
            self._routes[queue] = Route(queue, self._request.exchange, keys, self._session.options)
        known = [self._topic, *(f"{self._topic}.{host}" for host in self._request.hosts[self._topic])]
        for queue in known:
            self._routes.setdefault(queue, Route(queue, self._request.exchange, (queue,), self._session.options))
        events = f"{self._topic}{_EVENTS}"
        own = [queue for queue in self._routes if queue in {self._topic, events} or queue.startswith(f"{self._topic}.")]
        for queue in own:
            if len(self._routes[queue].interim_exchange.encode()) > _LONGEST:
                problem = "its name is too long: names made of it would have more than 255 octets"
                raise NothingToMigrateError(
                    f"queue {queue}", problem, "restart its service with the new settings instead"
                )
        return sorted(own, key=lambda queue: (queue not in {self._topic, events}, queue))

    async def _replace_some(self, names: Sequence[str]) -> None:
        session, old, begun = self._session, [], []
        for queue in names:
            exists, in_progress = await session.exists(queue), await self._is_in_progress(queue)
            if exists and not await session.is_replaced(queue):
                old.append(queue)
                begun.append(queue)
            elif in_progress:
                begun.append(queue)
        if self._request.dry_run:
            await self._describe(names, old, begun)
            return
        if old:
            await self._check(old)
        if begun:
            await self._mark()
        if old:
            await self._empty(old)
        if begun:
            await self._lead_back(begun)
            self._replaced += begun
        # A command that was ended at its very end may have left nodes that still leave the bindings alone.
        left = {queue for queue in names for answer in self._orders.answers(queue) if answer["stage"]}.difference(begun)
        if left:
            await self._tell(FINISH, left, lambda answer: not answer["stage"])

    async def _is_in_progress(self, queue: str) -> bool:
        """Return whether an interrupted command has begun to replace a queue, and not ended.

        :raises NothingToMigrateError: it was replacing the queue by one of another type.
        """
        interim = interim_queue(queue)
        if not await self._session.exists(interim):
            return False
        if not await self._session.is_replaced(interim):
            # To turn back would need another interim queue: this one has the wrong type, and may have messages.
            other = next(kind for kind in KINDS if kind != self._request.kind)
            problem = f"an interrupted command has begun to replace it by a {other} queue"
            raise NothingToMigrateError(f"queue {queue}", problem, f"finish that first: --to {other}")
        return True

    async def _describe(self, names: Sequence[str], old: Collection[str], begun: Collection[str]) -> None:
        kind = self._request.kind
        for queue in names:
            if queue in old:
                messages, consumers = await self._session.count(queue)
                others = await self._others(queue)
                taking_part = f", {others} of which do not take part" if others > 0 else ""
                counts = f"{_count(messages, 'message')}, {_count(consumers, 'consumer')}"
                self._say(f"would be replaced by a {kind} queue: {counts}{taking_part}", queue)
            elif queue in begun:
                self._say("would go on to replace it", queue)
            else:
                existing = await self._session.exists(queue)
                self._say(f"is a {kind} queue already" if existing else "does not exist", queue)

    def _say(self, step: str, *queues: str) -> None:
        self._report(Step(topic=self._topic, step=step, queues=queues))

    # -- the old queues ------------------------------------------------------------------------

    async def _check(self, queues: Iterable[str]) -> None:
        """Check that all consumers of some queues take part, unless others are to be cut off.

        :raises UnknownConsumersError: some do not.
        """
        for queue in queues:
            for last in (False, False, True):
                if any(answer["auto_delete"] for answer in self._orders.answers(queue)):
                    remedy = "restart the services with other settings instead"
                    raise NothingToMigrateError(
                        f"queue {queue}", "it is auto-delete: it ends with its consumers", remedy
                    )
                others = await self._others(queue)
                if others <= 0 or self._request.cut_off_others:
                    break
                if last:
                    durable = await self._is_durable()
                    raise UnknownConsumersError(queue, others, durable)
                await self._orders.ask(self._request.census)  # some may have been slow, or about to start

    async def _others(self, queue: str) -> int:
        """Return how many consumers of a queue have not answered."""
        _, consumers = await self._session.count(queue)
        taking_part: int = sum(answer["consumes"] for answer in self._orders.answers(queue))
        return consumers - taking_part

    async def _is_durable(self) -> bool:
        """Return whether the control exchange is durable."""
        durable = attrs.evolve(self._session.options, durable_queues=True)
        refusal = await self._session.attempt(
            lambda channel: declare_exchange(channel, self._request.exchange, durable), PRECONDITION_FAILED
        )
        return refusal is None

    async def _empty(self, queues: Sequence[str]) -> None:
        """Lead the messages to the interim queues; empty, delete and renew the old queues; see Note, steps 1 to 4."""
        self._say("declaring the interim queues", *queues)
        for queue in queues:
            await self._session.run(self._routes[queue].prepare)
        remaining = list(queues)
        self._say("having the nodes consume from the interim queues, too", *queues)
        await self._tell(Stage.FOLLOWING, remaining, lambda answer: answer["stage"] == Stage.FOLLOWING)
        await self._each(remaining, Route.detach)
        await self._session.wait(self._request.pause)
        self._say("diverting new messages to the interim queues", *queues)
        await self._each(remaining, Route.divert)
        await self._session.wait(self._request.pause)
        until = self._session.reactor.seconds() + self._request.timeout
        while remaining:
            self._say("emptying the old queues", *remaining)
            await self._drain(remaining, until)
            await self._tell(Stage.RELEASED, remaining, _is_released, until)
            self._say("replacing the old queues", *remaining)
            remaining = [queue for queue in remaining if not await self._renew(queue)]
            if remaining:
                # A message came back to it, from a process that died, say; or somebody has begun to consume.
                self._check_time(until, f"{remaining[0]}: it is not empty, or still consumed")
                await self._session.wait(LOOK)
                await self._tell(Stage.FOLLOWING, remaining, lambda answer: answer["stage"] == Stage.FOLLOWING)

    async def _drain(self, queues: Sequence[str], until: float) -> None:
        """Wait until queues have no messages that nobody has got; move those of queues that nobody consumes."""
        waiting = list(queues)
        while True:
            await self._each(queues, Route.detach)
            waiting = [queue for queue in waiting if not await self._is_empty(queue, interim_queue(queue))]
            if not waiting:
                return
            self._check_time(until, f"{waiting[0]}: messages wait")
            await self._session.wait(LOOK)
            # A process that has started since consumes, too.
            await self._orders.tell(Stage.FOLLOWING, waiting, self._request.kind, lambda _: True)

    async def _is_empty(self, queue: str, other: str) -> bool:
        """Return whether a queue has no messages that wait.

        :param other: where they are moved if nobody consumes from the queue.
        """
        messages, consumers = await self._session.count(queue)
        if messages and not consumers:
            moved = await move_leftovers(self._session, queue, other)
            self._say(f"moved {moved} messages that nobody consumed", queue)
            messages, _ = await self._session.count(queue)
        return not messages

    async def _renew(self, queue: str) -> bool:
        """Delete and declare a queue; return whether that was possible."""
        route, others = self._routes[queue], self._request.cut_off_others
        await self._session.run(route.detach)
        old_is_quorum = self._request.kind != "quorum"
        # The broker deletes a quorum queue unconditionally, so look before.
        if old_is_quorum and (await self._session.count(queue))[0]:
            return False

        def renew(channel: Channel) -> Any:
            return route.renew(channel, old_is_quorum=old_is_quorum, in_use=others)

        refusal = await self._session.attempt(renew, PRECONDITION_FAILED)
        return refusal is None

    # -- the new queues ------------------------------------------------------------------------

    async def _lead_back(self, queues: Sequence[str]) -> None:
        """Lead the messages to the new queues, and empty and delete the interim queues; see Note, steps 4 and 5."""
        routes = [self._routes[queue] for queue in queues]
        routed = [route.queue for route in routes if await self._session.exchange_exists(route.route_exchange)]
        for queue in queues:
            if not await self._session.exists(queue):
                route, has_route = self._routes[queue], queue in routed
                await self._session.run(partial(route.declare_missing, routed=has_route))
        self._say("having the nodes consume from the new queues", *queues)
        await self._tell(Stage.RETURNED, queues, _is_returned)
        if routed:
            self._say("leading new messages to the new queues", *routed)
            await self._each(routed, Route.direct)
            await self._session.wait(self._request.pause)
        await self._each(queues, Route.attach)
        if routed:
            await self._session.wait(self._request.pause)
            await self._each(routed, Route.close)
            await self._session.wait(self._request.pause)
            await self._each(routed, Route.delete_route)
        until, remaining = self._session.reactor.seconds() + self._request.timeout, list(queues)
        while remaining:
            self._say("emptying the interim queues", *remaining)
            await self._drain_interim(remaining, until)
            await self._tell(Stage.FINISHING, remaining, _is_released, until)
            remaining = [queue for queue in remaining if not await self._delete_interim(queue)]
            if remaining:
                self._check_time(until, f"{interim_queue(remaining[0])}: it is not empty, or still consumed")
                await self._session.wait(LOOK)
                await self._tell(Stage.RETURNED, remaining, _is_returned)
        await self._tell(FINISH, queues, lambda answer: not answer["stage"])
        self._say("replaced", *queues)

    async def _drain_interim(self, queues: Sequence[str], until: float) -> None:
        waiting = list(queues)
        while waiting := [queue for queue in waiting if not await self._is_empty(interim_queue(queue), queue)]:
            self._check_time(until, f"{interim_queue(waiting[0])}: messages wait")
            await self._session.wait(LOOK)

    async def _delete_interim(self, queue: str) -> bool:
        route, session = self._routes[queue], self._session
        if session.options.quorum_queue:
            messages, consumers = await session.count(route.interim)
            if messages or consumers:
                return False
        return await session.attempt(route.delete_interim, PRECONDITION_FAILED) is None

    # -- parts ---------------------------------------------------------------------------------

    async def _each(self, queues: Iterable[str], step: Callable[[Route, Channel], Any]) -> None:
        for queue in queues:
            await self._session.run(partial(step, self._routes[queue]))

    async def _tell(
        self, do: str, queues: Collection[str], done: Callable[[Answer], bool], until: float | None = None
    ) -> None:
        """Send an order until all processes have carried it out."""
        clock = self._session.reactor
        until = clock.seconds() + self._request.timeout if until is None else until
        while not await self._orders.tell(do, queues, self._request.kind, done):
            left = self._orders.left(queues)
            waiting = f"requests in progress: {left}" if left else "a process does not answer"
            self._check_time(until, f"{self._topic}: {waiting} ({do})")
            if do in {Stage.FOLLOWING, Stage.RELEASED}:
                await self._each(queues, Route.detach)

    def _check_time(self, until: float, problem: str) -> None:
        if self._session.reactor.seconds() > until:
            raise MigrationStalledError(problem, self._request.timeout)


def _is_released(answer: Answer) -> bool:
    return answer["stage"] in {Stage.RELEASED, Stage.FINISHING} and not answer["left"]


def _is_returned(answer: Answer) -> bool:
    return answer["stage"] == Stage.RETURNED and not answer["waits"]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
