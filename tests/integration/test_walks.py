"""The walk of a call over RabbitMQ gets no longer unnoticed."""

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from tests.servers import vhost_url
from tests.walks.recorder import figures
from tests.walks.units import rpc_amqp

# A walk that is shorter now lowers its bound here; see docs/performance.md.
MOST = {"calls": 85, "files": 16, "changes": 50}


class WalkTests(TestCase):
    """Tests for tests.walks.units.rpc_amqp."""

    def test_bounds(self) -> Deferred[None]:
        """A call over RabbitMQ has at most as many calls, files and changes of file as before."""

        async def test() -> None:
            for what, number in figures(await rpc_amqp(reactor, vhost_url(self))).items():
                self.assertLessEqual(number, MOST[what], what)

        return Deferred.fromCoroutine(test())
