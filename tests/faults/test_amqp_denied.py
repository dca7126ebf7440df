"""A broker that permits no queue that is neither durable nor exclusive: 4.3, and 4.0 if it is told so."""

from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.internet.threads import deferToThread

from novasvc.errors import DeclarationDeniedError
from novasvc.rpc.target import Target
from novasvc.transport.amqp.private_names import PrivateNames
from tests.e2e.process import Process, program
from tests.faults.amqp_rig import CONTEXT, TOPIC, AMQPCase
from tests.servers import Broker, denying_broker


class DeniedTests(AMQPCase):
    def choose_broker(self) -> Broker:
        return denying_broker()

    def start(self, name: str, *arguments: str, durable: bool) -> Process:
        """Start one of our programs, with the address of the broker."""
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        environment = {
            "NOVASVC_STATE_DIR": "state",
            "NOVASVC_TRANSPORT_URL": self.url,
            "NOVASVC_AMQP_DURABLE_QUEUES": str(durable).lower(),
        }
        return Process(self, [program(name), *arguments], folder.resolve(), **environment)

    def start_node(self, *, durable: bool) -> Process:
        return self.start("twistd", "-n", "--pidfile=", "novasvc", "--host", "h1", durable=durable)

    async def test_default_node(self) -> None:
        """A node whose settings cannot be used there ends, and one line names those that can."""
        node = self.start_node(durable=False)
        self.assertNotEqual(await deferToThread(node.wait), 0)
        (line,) = {line.partition("broker ")[2] for line in node.lines if "amqp_durable_queues" in line}
        for part in ("transient_nonexcl_queues", "rabbit_quorum_queue", "127.0.0.1"):
            self.assertIn(part, line)
        self.assertNotIn("Traceback", node.output)
        self.assertNotIn("is not there", node.output)

    async def test_durable_node(self) -> None:
        """With durable queues a node runs and is called; that its own queues are durable too is said once."""
        node = self.start_node(durable=True)
        await deferToThread(node.wait_for, "is running")
        command = self.start("novasvc", "call", "agent.h1", "get_host_facts", durable=True)
        self.assertEqual(await deferToThread(command.wait), 0, command.output)
        self.assertEqual(node.output.count("declared durable from now on"), 1)
        self.assertNotIn("is down", node.output)
        await deferToThread(node.stop)

    async def test_command(self) -> None:
        """The command says that nobody serves, and not that the broker is away."""
        command = self.start("novasvc", "call", "nobody", "ping", durable=False)
        self.assertNotEqual(await deferToThread(command.wait), 0)
        self.assertIn("no server for nobody", command.output)

    async def test_shared(self) -> None:
        """A topic's queue that is not durable is refused, and others on the connection go on."""
        transport = await self.connect(durable_queues=True)
        server = await self.serve(transport)
        await self.assert_serves(await self.client(transport))
        default = await self.connect(exchange="other")
        listening = default.listen(Target("other"), lambda delivery: None, 1)
        error = await self.assertFailure(listening, DeclarationDeniedError)
        self.assertIn("amqp_durable_queues", str(error))
        self.assertTrue(server.live)

    async def test_fanout(self) -> None:
        """Fanouts and replies arrive, also after the connections were cut."""
        transport = await self.connect(durable_queues=True)
        server = await self.serve(transport)
        client = await self.client(transport)
        for number in range(2):
            await client.prepare(fanout=True).cast(CONTEXT, "note", what=number)
            await self.until(lambda number=number: number in self.diary.calls)
            await self.assert_serves(client)
            self.broker.close_connections(self.vhost)
            await self.until(lambda: not server.live)
            await self.assert_comes_back(client)
        self.assertEqual(len(self.said("declared durable")), 1)

    async def test_quorum(self) -> None:
        """With quorum queues all is as with durable ones."""
        transport = await self.connect(quorum_queue=True)
        await self.serve(transport)
        await self.assert_serves(await self.client(transport))
        queues = self.broker.queues(self.vhost)
        self.assertIn(TOPIC, queues)
        self.assertTrue(any(queue.startswith("reply_") for queue in queues))

    async def test_killed(self) -> None:
        """A process that was killed leaves durable queues, and its successor uses them."""
        holder = TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        left: list[str] = []
        for _ in range(3):
            names = PrivateNames(Path(holder.name), "h1", "agent")
            transport = await self.connect(durable_queues=True, private_names=names)
            await self.serve(transport)
            await self.assert_serves(await self.client(transport))
            private = sorted(name for name in self.broker.queues(self.vhost) if ":agent:" in name)
            self.assertEqual(len(private), 2)
            left = left or private
            self.assertEqual(private, left)
            for connection in transport.connections:
                await connection.close()
            names.release()
