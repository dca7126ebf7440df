"""A web server that counts visits, and a node among its services."""

import sys

from twisted.application.internet import StreamServerEndpointService, TimerService
from twisted.application.service import Application, MultiService
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from novasvc import Manager, RequestContext, rpc
from novasvc.run.plugin import compose
from novasvc.service import Service
from novasvc.telemetry.logs import make_observer

_log = Logger()


class Greeter(Manager):
    """The manager of the node."""

    @rpc.expose
    def greet(self, context: RequestContext, number: int) -> str:
        """Greet a visitor."""
        return f"visit {number}, greeted by novasvc"


class Visits(Resource):
    """A page that asks the node what to say."""

    isLeaf = True
    count = 0

    def __init__(self, node: Service) -> None:
        super().__init__()
        self._node = node

    def render_GET(self, request: Request) -> int:
        """Answer when the node has."""
        self.count += 1
        Deferred.fromCoroutine(self._answer(request)).addErrback(self._fail, request)
        return NOT_DONE_YET

    async def _answer(self, request: Request) -> None:
        greeter = self._node.rpc.prepare(topic="greeter", timeout=5)
        text: str = await greeter.call(RequestContext(), "greet", number=self.count)
        request.write(f"{text}\n".encode())
        request.finish()

    def _fail(self, failure: Failure, request: Request) -> None:
        _log.failure("no greeting", failure)
        request.setResponseCode(503)
        request.finish()


def make_application(endpoint: str) -> Componentized:
    """Make the application.

    :param endpoint: where the web server listens, as Twisted writes it.
    """
    from twisted.internet import reactor  # noqa: PLC0415 - importing a module must not install a reactor

    application: Componentized = Application("visits")
    application.setComponent(ILogObserver, make_observer(sys.stdout))
    tree = MultiService()
    tree.setServiceParent(application)

    nodes = compose({"manager": "visits.Greeter", "topic": "greeter", "binary": "visits-greeter"})
    nodes.setServiceParent(tree)

    page = Visits(next(iter(nodes)))
    StreamServerEndpointService(serverFromString(reactor, endpoint), Site(page)).setServiceParent(tree)
    TimerService(60, lambda: _log.info("{count} visits", count=page.count)).setServiceParent(tree)
    return application
