"""Whether the server that a call names is down, from the registry, without a query for each call."""

from collections.abc import Callable, Mapping

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime

from novasvc.interfaces import IServiceRegistry
from novasvc.reactor.refresh import RefreshedValue
from novasvc.registry.liveness import is_up
from novasvc.registry.lookup import LIST_TIMEOUT
from novasvc.registry.query import ServicePage, ServiceQuery
from novasvc.registry.record import ServiceRecord
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

_Down = Mapping[str, ServiceRecord]


@attrs.define(eq=False)
class TargetLiveness:
    """Check that a server is not down; see ``liveness`` of :class:`novasvc.rpc.Client`.

    :param registry: returns the registry, or None while it is not connected.
    :param clock: measures the times.
    :param service_down_time: seconds without a heartbeat after which a service is down.
    """

    _registry: Callable[[], IServiceRegistry | None]
    _clock: IReactorTime
    _service_down_time: float
    _topics: dict[str, RefreshedValue[_Down]] = attrs.field(factory=dict, init=False)

    def __call__(self, target: Target) -> Checked:
        """Check a target with a server; see :data:`novasvc.rpc.checks.Check`."""
        topic = self._topics.get(target.topic) or self._add(target.topic)
        down = topic.get()
        if not isinstance(down, Deferred):
            if not down or target.server not in down:
                return None
            # It may be up again: wait for the read that has just begun, if what is known is older than REFRESH.
            down = topic.next()
        if isinstance(down, Deferred):
            return down.addCallback(self._judge, target)
        return self._judge(down, target)

    def _judge(self, down: _Down | None, target: Target) -> TargetDownError | None:
        record = None if down is None else down.get(target.server or "")
        if record is None:
            return None
        since = record.last_seen_up
        reason = "forced down by an operator"
        if not record.forced_down:
            reason = f"no heartbeat since {since:%Y-%m-%d %H:%M:%S} UTC" if since else "no heartbeat since its start"
        return TargetDownError(str(target), 1, 0, reason, since.isoformat() if since else None)

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
        down_time = self._service_down_time
        # The last ones to go down first, in case there are too many.
        query = ServiceQuery(
            topic=topic, up=False, service_down_time=down_time, sort="seen", descending=True, limit=_MAX_DOWN
        )
        asking: Deferred[ServicePage] = registry.page(query)
        asking.addTimeout(LIST_TIMEOUT, self._clock)
        return asking.addCallback(lambda page: {row.host: row for row in page.rows if _is_down(row, down_time)})


def _is_down(record: ServiceRecord, service_down_time: float) -> bool:
    """Return whether a row says that its service is down, and not only that it sends no heartbeats."""
    if record.last_seen_up is None and not record.forced_down:
        return False  # a service with report_interval = 0, or one that starts
    return not is_up(record, service_down_time)
