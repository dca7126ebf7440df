from typing import Any

from novasvc import rpc
from novasvc.context import RequestContext
from tests.interop.peer import InteropCase

CONTEXT = RequestContext(request_id="req-1", user_id="u1")


class Ours:
    def __init__(self) -> None:
        self.noted: list[Any] = []

    @rpc.expose
    def echo(self, context: RequestContext, value: Any) -> Any:
        return value


class CallsByPeerTests(InteropCase):
    async def test_call(self) -> None:
        """A client written with oslo.messaging calls a method of ours."""
        await self.we_serve(Ours())
        peer = await self.peer()
        self.assertEqual(await peer.call("echo", value={"a": [1, None, "é"]}), {"a": [1, None, "é"]})


class CallsToPeerTests(InteropCase):
    async def test_call(self) -> None:
        """A server written with oslo.messaging is called by ours."""
        await self.peer_serves()
        client = await self.our_client()
        self.assertEqual(await client.call(CONTEXT, "echo", value={"a": [1, None, "é"]}), {"a": [1, None, "é"]})
