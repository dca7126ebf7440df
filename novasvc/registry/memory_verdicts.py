"""What a registry in memory keeps for verdicts: the silences of services, and what observers were told."""

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

import attrs

from novasvc.registry.errors import ObserverSupersededError
from novasvc.registry.observation import Observation, Observations
from novasvc.registry.outage_search import find_outages
from novasvc.registry.outages import SILENCES_KEPT, Outages, Silence, VerdictRule, members_of
from novasvc.registry.record import ServiceRecord


@attrs.define(eq=False)
class MemoryVerdicts:
    """The tables ``novasvc_silences``, ``novasvc_observers`` and ``novasvc_observations``."""

    _silences: deque[Silence] = attrs.field(factory=deque, init=False)
    _fencing: dict[str, int] = attrs.field(factory=dict, init=False)
    _observations: dict[str, dict[int, Observation]] = attrs.field(factory=dict, init=False)

    def note(self, before: ServiceRecord, now: datetime, service_down_time: float) -> None:
        """Record the silence that a heartbeat ends, if it was long.

        :param before: the row before the heartbeat.
        """
        began = before.last_seen_up
        if began is None or (now - began).total_seconds() <= VerdictRule(service_down_time=service_down_time).late:
            return
        self._silences.append(Silence(service_id=before.id, began=began, ended=now))
        while (now - self._silences[0].ended).total_seconds() > SILENCES_KEPT:
            self._silences.popleft()

    def outages(self, rows: Iterable[ServiceRecord], now: datetime, rule: VerdictRule) -> Outages:
        """See :meth:`novasvc.interfaces.IServiceRegistry.outages`, as for the other methods."""
        oldest = now - timedelta(seconds=SILENCES_KEPT)
        return find_outages(
            [*members_of(rows)], [silence for silence in self._silences if silence.ended >= oldest], now, rule
        )

    def observations(self, observer: str) -> Observations:
        """Read what an observer was told."""
        return [observation for _, observation in sorted(self._observations.get(observer, {}).items())]

    def observe(self, observer: str, fencing: int, observations: Sequence[Observation]) -> None:
        """Write what an observer was told."""
        latest = self._fencing.get(observer, fencing)
        if fencing < latest:
            raise ObserverSupersededError(observer, fencing, latest)
        self._fencing[observer] = fencing
        known = self._observations.setdefault(observer, {})
        for observation in observations:
            known.pop(observation.service_id, None)
            if observation.status is not None:
                known[observation.service_id] = observation
