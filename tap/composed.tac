# A node inside another Twisted application, beside its own services: twistd -ny tap/composed.tac
#
# The application is a line-based TCP server that answers every line with the host's load, which it
# asks of the node by RPC. Port 8007 on loopback, or PORT in the environment; 0 takes a free one.
#
# Its signals are its own: TERM and INT drain all, HUP and USR2 end it at once unless it handles them.
import os
import sys

from twisted.application.internet import TCPServer
from twisted.application.service import Application
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.logger import ILogObserver
from twisted.protocols.basic import LineOnlyReceiver

from novasvc.context import RequestContext
from novasvc.run.plugin import compose
from novasvc.telemetry.logs import make_observer


class Load(LineOnlyReceiver):
    def lineReceived(self, line: bytes) -> None:
        Deferred.fromCoroutine(self.answer()).addErrback(self.refuse)

    async def answer(self) -> None:
        agent = node.rpc.prepare(topic="agent", timeout=5)
        load = await agent.call(RequestContext(), "get_host_fact", name="load")
        self.sendLine("{1m} {5m} {15m}".format(**load).encode())

    def refuse(self, failure) -> None:
        self.sendLine(b"error: " + failure.getErrorMessage().encode())


class LoadServer(TCPServer):
    def privilegedStartService(self) -> None:
        try:
            super().privilegedStartService()
        except CannotListenError as error:
            sys.exit(f"composed.tac: {error}; give another port as PORT")


application = Application("composed")
application.setComponent(ILogObserver, make_observer(sys.stdout))

services = compose({"topic": "agent"})
services.setServiceParent(application)
node = next(iter(services))

LoadServer(int(os.environ.get("PORT", "8007")), Factory.forProtocol(Load), interface="127.0.0.1").setServiceParent(
    application
)
