"""A node whose methods depend on calls that come back to it: A calls B, and B calls A."""

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from novasvc import Manager, RequestContext, rpc

TOPIC = "agent"
PATIENCE = 30.0
"""Seconds for each of the calls."""


class Origin(Manager):
    """A. Notes in a file what it begins and has done, one a line."""

    @rpc.expose
    async def operate(self, context: RequestContext, what: str, through: str, seconds: float) -> str:
        """Have B call back.

        :param through: B's topic.
        :param seconds: that B takes before it calls.
        """
        self._note("begun", what)
        client = self.attachments.rpc.prepare(topic=through, timeout=PATIENCE)
        answer = await client.call(context, "receive", what=what, topic=TOPIC, server=self.host, seconds=seconds)
        self._note("done", what)
        return f"{answer} at {self.host}"

    @rpc.expose
    def confirm(self, context: RequestContext, what: str) -> str:
        """Be called back."""
        self._note("confirmed", what)
        return what

    @rpc.expose
    def unrelated(self, context: RequestContext, what: str) -> str:
        """Begin something else."""
        self._note("unrelated", what)
        return what

    def _note(self, how: str, what: str) -> None:
        with Path("journal").open("a") as journal:
            journal.write(f"{how} {what}\n")


class Middle:
    """B.

    :param reactor: measures its time.
    :param client: calls back.
    """

    def __init__(self, reactor: Any, client: rpc.Client) -> None:
        self._reactor = reactor
        self._client = client

    @rpc.expose
    async def receive(self, context: RequestContext, what: str, topic: str, server: str, seconds: float) -> Any:
        """Call A back, when some time has passed, with a context of its own making."""
        waited: Deferred[None] = deferLater(self._reactor, seconds, lambda: None)
        await waited
        client = self._client.prepare(topic=topic, server=server, timeout=PATIENCE)
        return await client.call(RequestContext(), "confirm", what=what)
