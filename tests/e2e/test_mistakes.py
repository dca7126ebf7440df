"""The commonest mistakes of authors and first users, each with what novasvc says about it.

Each table has a row a mistake: what is done, and what must be in the one line that answers, or in the node's log.
"""

import socket
import tempfile
from pathlib import Path
from unittest import TestCase
from urllib.parse import urlsplit

import pytest

from tests.e2e.process import Process, program
from tests.servers import shared_broker, vhost_url

GOOD = '''
import time
from dataclasses import dataclass
from twisted.internet.threads import deferToThread
from novasvc import Manager, RequestContext, periodic_task, rpc


class Stock(Manager):
    """Its methods make the mistakes that show when they run."""

    def forgotten(self, context: RequestContext) -> int:
        return 1

    @rpc.expose
    def reserve(self, context: RequestContext, item: str, amount: int = 1) -> str:
        return f"{amount} {item}"

    @rpc.expose
    def opaque(self, context: RequestContext):
        return {"lock": object()}

    @rpc.expose
    def other_type(self, context: RequestContext) -> int:
        return "many"

    @rpc.expose
    async def by_position(self, context: RequestContext) -> str:
        return await self.attachments.rpc.prepare(topic="stock").call(context, "reserve", "tea")

    @rpc.expose
    async def without_context(self, context: RequestContext) -> str:
        return await self.attachments.rpc.prepare(topic="stock").call("reserve", "tea")

    @rpc.expose
    async def without_topic(self, context: RequestContext) -> str:
        return await self.attachments.rpc.call(context, "reserve", item="tea")

    @rpc.expose(blocking=True)
    def in_a_thread(self, context: RequestContext) -> None:
        self.attachments.rpc.prepare(topic="stock").call(context, "reserve", item="tea")

    async def refill(self) -> None:
        pass

    @rpc.expose
    def not_awaited(self, context: RequestContext) -> None:
        self.refill()

    @periodic_task(spacing=1000)
    def slow_task(self, context: RequestContext) -> None:
        time.sleep(2.5)

    @periodic_task(spacing=1000)
    def broken_task(self, context: RequestContext) -> None:
        raise KeyError("shelf 7")


class Silent(Manager):
    """Every method lacks its decorator."""

    def reserve(self, context: RequestContext, item: str) -> str:
        return item


class Plain:
    """Not derived from Manager."""

    def __init__(self, host):
        self.host = host


class WithoutHost(Manager):
    def __init__(self):
        self.items = {}
'''

NO_CONTEXT = """
from novasvc import Manager, rpc

class Stock(Manager):
    @rpc.expose
    def reserve(self, item: str) -> str:
        return item
"""

CALLS = (
    ("@rpc.expose forgotten", "call stock forgotten", "no method 'forgotten'; it has: ", "with @rpc.expose"),
    ("method misspelt", "call stock reserv item=tea", "did you mean 'reserve'? `novasvc describe stock` lists all"),
    ("topic misspelt", "call stok reserve item=tea", "did you mean the topic 'stock'?"),
    ("method behind a dot", "call stock.reserve item=tea", "Did you mean `novasvc call stock reserve item=tea`?"),
    ("the same without arguments", "call stock.opaque x", "'opaque' is a method of stock, and in TOPIC.HOST a host"),
    ("host misspelt", "call stock.h11 reserve item=tea", "did you mean stock.h1?"),
    ("command misspelt", "cal stock reserve", "No such command 'cal'. Did you mean 'call'?"),
    ("option misspelt", "call stock reserve --timout 3", "No such option", "--timeout"),
    ("argument misspelt", "call stock reserve itm=tea", "unknown: itm; did you mean item=?; it takes (item: str"),
    ("argument missing", "call stock reserve", "missing: item; it takes (item: str, amount: int = 1)"),
    ("argument not named", "call stock reserve tea", "arguments are passed by name, such as item=tea"),
    ("argument of a wrong type", "call stock reserve item=tea amount=many", "amount: expected int, got str"),
    ("string that is a number", "call stock reserve item=5", "expected str, got int", "write item='\"5\"'"),
    ("number that is none", "call stock reserve item=tea amount=2x", "amount=2x is not a number in JSON, so it was"),
    ("result that JSON cannot hold", "call stock opaque", "its result cannot be sent", "object"),
    ("result of another type", "call stock other_type", "its result cannot be sent", "expected int, got str, by"),
    ("arguments by position in code", "call stock by_position", "takes arguments by name, but got 'tea'"),
    ("context forgotten in code", "call stock without_context", "call() takes a RequestContext first, not 'reserve'"),
    ("topic forgotten in code", "call stock without_topic", "the client has no topic; set one with prepare(topic=...)"),
    ("call from a thread", "call stock in_a_thread", "in another thread than the reactor's", "attachments.blocking"),
)  # fmt: skip
"""Mistake, command while the node "stock" runs on h1, parts of its one line."""

STARTS = (
    ("file for a module", "shop/stock.py", "is not PACKAGE.MODULE:CLASS; did you mean shop.stock:Stock?"),
    ("class forgotten", "shop", "'shop' is not PACKAGE.MODULE:CLASS; did you mean shop:Shop?"),
    ("module misspelt", "shopp:Stock", "there is no module 'shopp'; did you mean 'shop'?"),
    ("class misspelt", "shop:Stok", "shop has no 'Stok'; it has: Plain, Silent, Stock, WithoutHost"),
    ("not a manager", "shop:Plain", "it does not provide IManager; derive the class from novasvc.Manager"),
    ("constructor without host", "shop:WithoutHost", "its constructor takes ()", "def __init__(self, host): super()"),
    ("import that fails", "broken:Stock", "broken imports 'redis_of_tomorrow', which is not installed"),
    ("syntax error", "syntax:Stock", "SyntaxError: invalid syntax", "syntax.py:1: class Stock(:"),
    ("context forgotten", "no_context:Stock", "its first parameters are not (self, context)", "no_context.py:5"),
    ("setting misspelt", "shop:Stock --config typo.toml", "report_intervall", "did you mean report_interval?"),
    ("option misspelt", "shop:Stock --topik x", "option --topik not recognized; did you mean --topic?"),
    ("state_dir not writable", "shop:Stock --state-dir shop.py/state", "shop.py/state", "set state_dir"),
)
"""Mistake, arguments of `novasvc run`, parts of what it says last."""

LOGS = (
    ("async def never awaited", "call stock not_awaited", r"coroutine 'Stock.refill' was never awaited"),
    ("exception in a task", "call stock run_task name=broken_task --namespace node", r"task broken_task failed"),
    ("its traceback", "", r"KeyError: 'shelf 7'"),
    ("task that blocks the reactor", "call stock run_task name=slow_task --namespace node",
     r"the reactor was blocked for \d.\d s \(last events: .*slow_task .*@rpc.expose\(blocking=True\)"),
)  # fmt: skip
"""Mistake, command, what the log of the node says."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class MistakesTests(TestCase):
    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.folder = Path(holder.name)
        for name, text in (
            ("shop.py", GOOD),
            ("no_context.py", NO_CONTEXT),
            ("broken.py", "import redis_of_tomorrow\n"),
            ("syntax.py", "class Stock(:\n    pass\n"),
            ("typo.toml", "report_intervall = 5\n"),
        ):
            (self.folder / name).write_text(text)
        self.environment = {"NOVASVC_STATE_DIR": str(self.folder / "state")}

    def begin(self, *arguments: str) -> Process:
        return Process(self, [program("novasvc"), *arguments], self.folder, **self.environment)

    def line(self, *arguments: str) -> str:
        """Run a command that fails; return its one line."""
        command = self.begin(*arguments)
        self.assertIn(command.wait(), (1, 2), command.output)
        self.assertRegex(command.output, r"^novasvc: [^\n]+\n$")
        return command.output

    def node(self, target: str) -> Process:
        node = self.begin("run", target, "--host", "h1")
        node.wait_for(" describe ")
        return node

    def test_calls(self) -> None:
        """A command that fails says in one line what is wrong, and what was probably meant."""
        self.node("shop:Stock")
        for mistake, command, *parts in CALLS:
            with self.subTest(mistake):
                line = self.line(*command.split())
                for part in parts:
                    self.assertIn(part, line)

    def test_nothing_exposed(self) -> None:
        """If no method of a manager has its decorator, that is what the caller reads."""
        self.node("shop:Silent")
        self.assertIn("decorate the methods of its manager with @rpc.expose", self.line("call", "silent", "reserve"))

    def test_starts(self) -> None:
        """A node that cannot start says why, without a traceback of novasvc's own."""
        for mistake, command, *parts in STARTS:
            with self.subTest(mistake):
                run = self.begin("run", *command.split())
                self.assertIn(run.wait(), (1, 2), run.output)
                self.assertNotIn("Traceback", run.output)
                for part in parts:
                    self.assertIn(part, run.output)

    def test_logs(self) -> None:
        """What goes wrong while nobody waits is in the log, with its name."""
        node = self.node("shop:Stock")
        for mistake, command, pattern in LOGS:
            with self.subTest(mistake):
                if command:
                    called = self.begin(*command.split())
                    self.assertEqual(called.wait(), 0, called.output)
                node.wait_for(pattern)

    def test_not_running(self) -> None:
        """Without any node, the command says so, and what it looked at."""
        line = self.line("call", "stock", "reserve")
        self.assertIn(f"no service of this user runs on this host with state_dir = '{self.folder}/state'", line)

    @pytest.mark.long
    def test_two_of_one_name(self) -> None:
        """A second node of the same topic and host is refused once the first is heard of; the reason comes last."""
        self.node("shop:Stock")
        second = self.begin("run", "shop:Stock", "--host", "h1")
        second.wait_for("service novasvc-stock@h1 runs already: on machine .* another host. Waiting until")
        self.assertEqual(second.wait(), 1)
        refused = "^novasvc: novasvc-stock@h1 did not start; .*runs already: on machine .* give this one another host$"
        self.assertRegex(second.lines[-1], refused)

    def test_module_in_this_folder(self) -> None:
        """twistd does not search the current directory for managers; the error says what to do."""
        command = [program("twistd"), "-n", "--pidfile=", "novasvc", "--manager", "shop.Stock"]
        node = Process(self, command, self.folder, **self.environment)
        self.assertEqual(node.wait(), 1)
        self.assertIn("it is in the current directory: set PYTHONPATH=., or use `novasvc run shop", node.output)

    def test_port_taken(self) -> None:
        """A port that another process has is named."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            run = self.begin("run", "shop:Stock", "--api", "--api-listen-port", str(port))
            self.assertEqual(run.wait(), 1)
        last = run.lines[-1]
        self.assertIn(f"cannot listen on 127.0.0.1:{port}: Address already in use; end the process", last)

    def test_no_broker(self) -> None:
        """A broker that is not there is named by command and node, the password masked; the node tries again."""
        url = "amqp://shop:s3cret@127.0.0.1:1/"
        line = self.line("--transport-url", url, "call", "stock", "reserve")
        self.assertIn("broker amqp://shop:***@127.0.0.1:1/", line)
        self.assertIn("Connection was refused", line)
        node = self.begin("run", "shop:Stock", "--transport-url", url)
        node.wait_for(r"broker amqp://shop:\*\*\*@127.0.0.1:1/.*Connection was refused")
        node.stop()
        self.assertNotIn("s3cret", node.output + line)

    @pytest.mark.long
    def test_wrong_password(self) -> None:
        """A wrong password is named as such by command and node, and is not shown."""
        good = urlsplit(vhost_url(self, shared_broker()))
        url = f"amqp://{good.username}:s3cret@{good.hostname}:{good.port}{good.path}"
        line = self.line("--transport-url", url, "call", "stock", "reserve")
        self.assertRegex(line, "ACCESS_REFUSED|[Ll]ogin|[Pp]assword")
        node = self.begin("run", "shop:Stock", "--transport-url", url)
        node.wait_for("ACCESS_REFUSED|[Ll]ogin|[Pp]assword")
        node.stop()
        self.assertNotIn("s3cret", node.output + line)
