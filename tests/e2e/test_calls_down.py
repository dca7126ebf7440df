"""A call to a host whose process was killed, between real processes over RabbitMQ."""

import json
import signal
import tempfile
from pathlib import Path
from unittest import TestCase

import pytest

from tests.e2e.process import Process, program
from tests.servers import vhost_url

PARTS = '''
import time

from novasvc import Manager, RequestContext, rpc
from novasvc.errors import RPCTimeoutError, TargetDownError
from twisted.internet.task import deferLater


class Store(Manager):
    @rpc.expose
    def where(self, context: RequestContext) -> str:
        return self.host


class Caller(Manager):
    @rpc.expose(timeout=60)
    async def until_down(self, context: RequestContext, host: str) -> dict[str, object]:
        """Call a host until the registry says that it is down; tell how its last call ended."""
        store = self.attachments.rpc.prepare(topic="store", server=host, timeout=1)
        before = "never"
        while True:
            began = time.monotonic()
            try:
                before = await store.call(context, "where")
                print("it was reached:", before, flush=True)
            except RPCTimeoutError:
                before = "timeout"
            except TargetDownError as error:
                return {"before": before, "seconds": time.monotonic() - began, "text": str(error)}
            await deferLater(self.attachments.reactor, 0.1)
'''


@pytest.mark.slow
@pytest.mark.timeout(180)
class CallsDownTests(TestCase):
    """A node that is killed, and one that calls it."""

    def test_killed(self) -> None:
        """Calls to a killed host wait for it until it counts as down; from then on they fail at once, with a reason."""
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        folder = Path(holder.name)
        (folder / "parts.py").write_text(PARTS)
        environment = {
            "NOVASVC_TRANSPORT_URL": vhost_url(self),
            "NOVASVC_STATE_DIR": str(folder / "state"),
            "NOVASVC_REPORT_INTERVAL": "1",
            "NOVASVC_SERVICE_DOWN_TIME": "3",
        }

        def begin(*arguments: str) -> Process:
            return Process(self, [program("novasvc"), *arguments], folder, **environment)

        caller = begin("run", "parts:Caller", "--host", "h1")
        caller.wait_for(" describe caller")
        store = begin("run", "parts:Store", "--host", "h2")
        store.wait_for(" describe store")
        calling = begin("call", "caller", "until_down", "host=h2", "--timeout", "60", "--json")
        caller.wait_for("it was reached: h2")
        store.popen.send_signal(signal.SIGKILL)
        self.assertEqual(calling.wait(), 0, calling.output)
        told = json.loads(calling.output)
        self.assertEqual(told["before"], "timeout")
        self.assertLess(told["seconds"], 0.5)
        self.assertIn("store.h2 is down, and the call was not sent: no heartbeat since ", told["text"])
