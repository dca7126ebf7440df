"""The network between one process and the broker: latency, order, and lost connections."""

from collections.abc import Callable, Iterable
from random import Random

import attrs

from novasvc.testing.simulation.clock import ProcessClock, SimulationClock

HEARTBEAT = 10.0
"""Seconds between the heartbeats of a connection; a side that hears nothing for twice as long gives it up."""


@attrs.define(eq=False)
class Weather:
    """What slows the network down, for all processes.

    :param latency: seconds that most messages take at most.
    :ivar held_until: seconds on the shared clock until which the broker does nothing.
    """

    latency: float = 0.002
    held_until: float = 0.0


@attrs.define(eq=False)
class Link:
    """The connection of one process to the broker.

    What travels in one stream and one direction arrives in the order in which it was sent; two streams do not know of
    each other. Whatever is under way when the connection is lost never arrives.

    :param world: the clock that all share, which is the broker's.
    :param clock: the clock of the process.
    :param random: draws the latencies.
    :param lost: called on the side of the process when it notices that the connection is lost.
    :param lost_by_broker: called when the broker notices it: it takes back what the process had not settled.
    :param restored: called when the process has another connection.
    :ivar connected: the process believes that it is connected.
    """

    # Note [Half of a connection]
    #
    # A connection is lost for each direction by itself, and each side notices it at its own time, by its heartbeats. A
    # process whose messages do not get through any more goes on receiving, running and acknowledging, and knows nothing
    # of it. So the broker gives to another process what this one has acknowledged: that is when a method could run
    # twice.

    world: SimulationClock
    clock: ProcessClock
    random: Random
    weather: Weather
    lost: Callable[[], None]
    lost_by_broker: Callable[[], None]
    restored: Callable[[], None]
    connected: bool = attrs.field(default=True, init=False)
    slow: float = attrs.field(default=0.0, init=False)
    held_until: float = attrs.field(default=0.0, init=False)
    _gets_out: bool = attrs.field(default=True, init=False)
    _gets_in: bool = attrs.field(default=True, init=False)
    _intact: bool = attrs.field(default=True, init=False)
    _noticed_by_broker: bool = attrs.field(default=False, init=False)
    _number: int = attrs.field(default=0, init=False)
    _back_at: float = attrs.field(default=0.0, init=False)
    _last: dict[tuple[str, bool], float] = attrs.field(factory=dict, init=False)

    def to_broker(self, stream: str, do: Callable[[], object]) -> None:
        """Call a function at the broker when a message of the process arrives there."""
        if self._gets_out:
            self.world.callLater(self._delay(stream, inwards=False), self._arrive, self._number, do)

    def to_process(self, stream: str, do: Callable[[], object], *, after: Iterable[str] = ()) -> None:
        """Call a function in the process when a message of the broker arrives there.

        :param after: other streams, of which nothing may be overtaken.
        """
        if self._gets_in:
            delay = self._delay(stream, after, inwards=True)
            self.clock.callLater(delay * self.clock.rate, self._arrive, self._number, do)

    def _delay(self, stream: str, after: Iterable[str] = (), *, inwards: bool) -> float:
        now, draw = self.world.rightNow, self.random.random
        latency = self.weather.latency * (0.2 + draw() ** 4) + (self.slow and self.slow * draw())
        arrival = max(now, self.held_until, self.weather.held_until) + latency
        for name in (stream, *after):
            arrival = max(arrival, self._last.get((name, inwards), 0.0))
        self._last[stream, inwards] = arrival
        return arrival - now

    def _arrive(self, number: int, do: Callable[[], object]) -> None:
        if number == self._number:
            do()

    def cut(
        self,
        *,
        gets_out: bool = False,
        gets_in: bool = False,
        noticed_after: float = 0.0,
        broker_notices_after: float = 0.0,
        back_after: float = 0.0,
    ) -> None:
        """Lose the connection.

        :param gets_out: what the process sends still arrives, until it notices.
        :param gets_in: what the broker sends still arrives, until the process notices.
        :param noticed_after: seconds until the process notices.
        :param broker_notices_after: seconds until the broker notices.
        :param back_after: seconds for which no other connection can be made.
        """
        self._back_at = max(self._back_at, self.world.rightNow + back_after)
        if not self.connected:
            return
        self._gets_out, self._gets_in = self._gets_out and gets_out, self._gets_in and gets_in
        if self._intact:
            self._intact = False
            self.clock.callLater(noticed_after * self.clock.rate, self._lose, self._number)
            self.world.callLater(broker_notices_after, self._lose_at_broker, self._number)

    def die(self, broker_notices_after: float) -> None:
        """Note that the process has died; what it has sent still arrives."""
        self._gets_in = False
        self.world.callLater(broker_notices_after, self._lose_at_broker, self._number)

    def _lose(self, number: int) -> None:
        if number == self._number and self.connected:
            self.connected = self._gets_out = self._gets_in = False
            self.lost()
            self._reconnect_later()

    def _lose_at_broker(self, number: int) -> None:
        if number == self._number and not self._noticed_by_broker:
            self._noticed_by_broker = True
            self.lost_by_broker()

    def _reconnect_later(self) -> None:
        self.clock.callLater(self.random.uniform(0.2, 1.0), self._reconnect)

    def _reconnect(self) -> None:
        held = max(self._back_at, self.held_until, self.weather.held_until)
        if held > self.world.rightNow:
            self._reconnect_later()
            return
        self._lose_at_broker(self._number)  # at the latest: two connections of one process are not simulated
        self._number += 1
        self._last.clear()
        self.connected = self._gets_out = self._gets_in = self._intact = True
        self._noticed_by_broker = False
        self.restored()
