"""Whether the server that a call names is down, from the registry, without a query for each call."""

from collections.abc import Callable, Collection, Mapping
from math import inf

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from novasvc.interfaces import IServiceRegistry
from novasvc.reactor.coalesce import CoalescingCache
from novasvc.reactor.refresh import RefreshedValue
from novasvc.registry.lookup import LIST_TIMEOUT
from novasvc.registry.outages import Outages, VerdictRule
from novasvc.registry.query import ServicePage, ServiceQuery
from novasvc.registry.record import ServiceRecord
from novasvc.registry.verdict import Judge, Verdict, needs_outages
from novasvc.registry.verdicts import read_outages
from novasvc.rpc.checks import Checked
from novasvc.rpc.errors import TargetDownError
from novasvc.rpc.replies import PendingCalls
from novasvc.rpc.target import Target

# Note [Calls to a server that is down]
#
# A call to "topic.host" is checked before it is sent, so that its error means that the method does not run. The
# registry is asked for the services of the topic that are not up, at most once a second, and only while servers of the
# topic are called. A caller that calls steadily does not wait for it: what is older than a second is read again in the
# background. After a pause of more than two seconds the first call waits for the answer, at most _PATIENCE.
#
# "Down" is never older than a second, so a service that is up again is called again within a second. A service that
# goes down is noticed within two seconds. Everything else is called as if there were no check: a service that is up,
# draining or suspect, one that is not registered, and any service while the registry does not answer.
#
# Casts are not checked: they are messages to a queue, which keeps them until the server is up again.

REFRESH = 1.0
"""Seconds after which the registry is asked again."""

_KEEP = 2.0
"""Seconds for which a service is taken to be up."""

_PATIENCE = 0.25
"""Seconds that a call waits for the registry; then it is sent."""

_MAX_TOPICS = 100
_MAX_DOWN = 1000
"""Services of a topic that are known to be down, the last ones to go down. Calls to others are sent."""


@attrs.frozen(eq=False)
class _Down:
    """The services of a topic that were not up when they were read.

    :param rows: by host.
    :param judge: judges those that may be suspect; read when it is needed first, which is after the rows.
    """

    rows: Mapping[str, ServiceRecord]
    judge: CoalescingCache[Callable[[ServiceRecord], Verdict]]


@attrs.define(eq=False)
class TargetLiveness:
    """Check that a server is not down; see ``liveness`` of :class:`novasvc.rpc.Client`.

    :param registry: returns the registry, or None while it is not connected.
    :param clock: measures the times.
    :param rule: when a service is down, and when it is suspect.
    """

    _registry: Callable[[], IServiceRegistry | None]
    _clock: IReactorTime
    _rule: VerdictRule
    _topics: dict[str, RefreshedValue[_Down]] = attrs.field(factory=dict, init=False)

    def __call__(self, target: Target) -> Checked:
        """Check a target with a server; see :data:`novasvc.rpc.checks.Check`."""
        topic = self._topics.get(target.topic) or self._add(target.topic)
        down = topic.value
        # Most calls end here; see docs/decisions.md for what that costs.
        if down is not None and self._clock.seconds() < topic.fresh_until and target.server not in down.rows:
            return None
        return self._check(topic, target)

    def _check(self, topic: RefreshedValue[_Down], target: Target) -> Checked:
        down = topic.get()
        if not isinstance(down, Deferred):
            if down is None or target.server not in down.rows:
                return None
            # It may be up again: wait for the read that has just begun, if what is known is older than REFRESH.
            down = topic.next()
        if isinstance(down, Deferred):
            return down.addCallback(self._judge, target)
        return self._judge(down, target)

    def _judge(self, down: _Down | None, target: Target) -> Checked:
        record = None if down is None else down.rows.get(target.server or "")
        if down is None or record is None:
            return None
        if not needs_outages(record, self._rule):
            return _error(Judge(self._rule, Outages())(record), target)
        judging = down.judge.get().addTimeout(_PATIENCE, self._clock)
        return judging.addCallbacks(lambda judge: _error(judge(record), target), _call_unjudged)

    def _add(self, topic: str) -> RefreshedValue[_Down]:
        added = self._topics[topic] = RefreshedValue(
            lambda: self._read(topic), self._clock, refresh=REFRESH, keep=_KEEP, patience=_PATIENCE
        )
        if len(self._topics) > _MAX_TOPICS:
            del self._topics[next(iter(self._topics))]
        return added

    def _read(self, topic: str) -> Deferred[_Down]:
        PendingCalls.check_thread()
        registry = self._registry()
        if registry is None:
            return fail(LookupError("the registry is not connected"))
        # The last ones to go down first, in case there are too many.
        query = ServiceQuery(
            topic=topic,
            up=False,
            service_down_time=self._rule.service_down_time,
            sort="seen",
            descending=True,
            limit=_MAX_DOWN,
        )

        def found(page: ServicePage) -> _Down:
            rows = {row.host: row for row in page.rows if _sends_heartbeats(row)}
            judge = CoalescingCache(lambda: self._read_judge(registry, rows.values()), self._clock, lambda _: inf)
            return _Down(rows, judge)

        asking: Deferred[ServicePage] = registry.page(query)
        return asking.addTimeout(LIST_TIMEOUT, self._clock).addCallback(found)

    def _read_judge(
        self, registry: IServiceRegistry, rows: Collection[ServiceRecord]
    ) -> Deferred[Callable[[ServiceRecord], Verdict]]:
        async def read() -> Callable[[ServiceRecord], Verdict]:
            outages, again = await read_outages(
                registry, [row for row in rows if needs_outages(row, self._rule)], self._rule
            )
            judge = Judge(self._rule, outages)
            return lambda record: judge(again.get(record.id, record))

        return Deferred.fromCoroutine(read()).addTimeout(LIST_TIMEOUT, self._clock)


def _sends_heartbeats(record: ServiceRecord) -> bool:
    """Return whether the age of a row means anything: not of a service with report_interval = 0, which may well run."""
    incarnation = record.incarnation
    if record.forced_down or (incarnation is not None and incarnation.state != "ready"):
        return True
    since = None if incarnation is None else incarnation.started_at
    return record.last_seen_up is not None and (since is None or record.last_seen_up >= since)


def _call_unjudged(failure: Failure) -> Failure | None:
    """Allow the call to a service that cannot be judged, unless the call was cancelled meanwhile."""
    return failure if failure.check(CancelledError) else None


def _error(verdict: Verdict, target: Target) -> TargetDownError | None:
    if not verdict.is_down:
        return None
    since = None if verdict.since is None else f"{verdict.since.isoformat(timespec='seconds')}Z"
    return TargetDownError(str(target), 1, 0, verdict.reason, since)
