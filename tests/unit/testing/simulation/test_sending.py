"""Tests for novasvc.testing.simulation.sending."""

from random import Random

from twisted.internet.defer import succeed
from twisted.trial.unittest import SynchronousTestCase

from novasvc.errors import BrokerUnavailableError
from novasvc.testing.simulation.clock import ProcessClock, SimulationClock
from novasvc.testing.simulation.link import Link, Weather
from novasvc.testing.simulation.sending import Sender


class SenderTests(SynchronousTestCase):
    """Tests for novasvc.testing.simulation.sending.Sender."""

    def test_buffered_for(self) -> None:
        """Without a connection a call fails after 95 % of its timeout, a cast after 15 s, a reply when it is void."""
        world = SimulationClock()
        clock = ProcessClock(world)
        link = Link(world, clock, Random(1), Weather(), lambda: None, lambda: None, lambda: None)
        link.connected = False
        sender = Sender(link, clock, lambda: None)
        for ttl, wait, seconds in ((10.0, None, 9.5), (None, None, 15.0), (None, 40.0, 40.0)):
            sending = sender.send("stock", lambda _: succeed(None), ttl, wait)
            world.advance(seconds - 0.1)
            self.assertNoResult(sending)
            world.advance(0.2)
            self.failureResultOf(sending, BrokerUnavailableError)
