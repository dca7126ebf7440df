"""A whole node whose broker is not there, or goes."""

import signal
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from tests.e2e.process import Process, program
from tests.faults.amqp_rig import CONTEXT, ProxyCase

PROMPT = 3.0
"""Seconds in which a node ends that has nothing to finish."""


class NodeTests(ProxyCase):
    def setUp(self) -> None:
        super().setUp()
        self.user, self.secret = f"u-{self.vhost}", f"secret-{self.vhost}"
        self.broker.add_user(self.user, self.secret)
        self.broker.permit(self.user, self.vhost)

    def start(self) -> Process:
        url = self.broker.url(self.vhost, (self.user, self.secret), self.proxy.port)
        command = [program("twistd"), "-n", "--pidfile=", "novasvc", "--host", "h1", "--transport-url", url]
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        return Process(self, command, folder.resolve(), NOVASVC_STATE_DIR="state")

    async def end(self, node: Process) -> None:
        """See that SIGTERM ends it promptly, in order, and that it kept its secret."""
        begun = reactor.seconds()
        self.assertEqual(await deferToThread(node.stop), -signal.SIGTERM)
        self.assertLess(reactor.seconds() - begun, PROMPT)
        self.assertIn("is stopped", node.output)
        self.assertNotIn(self.secret, node.output)
        self.assertNotIn("Traceback", node.output)

    async def test_absent(self) -> None:
        """A node whose broker is not there says so once, tries until it is, and serves then."""
        self.proxy.refuses = True
        node = self.start()
        await deferToThread(node.wait_for, "the broker is unavailable")
        self.proxy.heal()
        await deferToThread(node.wait_for, "is running")
        client = (await self.client(await self.connect(self.direct_url))).prepare(topic="agent", server="h1")
        facts = await client.call(CONTEXT, "get_host_facts")
        self.assertIsInstance(facts, dict)
        self.assertEqual(node.output.count("the broker is unavailable"), 1)
        await self.end(node)

    async def test_refused(self) -> None:
        """A node whose broker refuses it does not say that it is away, tries until it is let in, and serves then."""
        self.broker.permit(self.user, self.vhost, configure="^$")
        node = self.start()
        said = await deferToThread(node.wait_for, "the broker refuses the connection; retrying: .*")
        self.assertIn("ACCESS_REFUSED", said[0])
        self.broker.permit(self.user, self.vhost)
        await deferToThread(node.wait_for, "is running")
        self.assertNotIn("is not there", node.output)
        await self.end(node)

    async def test_stopped_while_starting(self) -> None:
        """A node that waits for its broker ends promptly."""
        self.proxy.refuses = True
        node = self.start()
        await deferToThread(node.wait_for, "the broker is unavailable")
        await self.end(node)

    async def test_stopped_while_connecting(self) -> None:
        """A node that waits for the first word of its broker ends promptly."""
        self.proxy.change(hangs=True)
        node = self.start()
        await self.until(lambda: self.proxy.accepted)
        await self.end(node)

    async def test_stopped_while_reconnecting(self) -> None:
        """A node that has lost its broker, and tries to come back, ends promptly."""
        node = self.start()
        await deferToThread(node.wait_for, "is running")
        self.proxy.refuses = True
        self.proxy.reset()
        await deferToThread(node.wait_for, "is down")
        await self.end(node)
