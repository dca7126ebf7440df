"""Calls to nodes, of operations and of the page."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

import attrs
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime

from novasvc.context import RequestContext
from novasvc.errors import NovasvcError
from novasvc.fleet.errors import NodeFailedError
from novasvc.reactor.coalesce import Waiters
from novasvc.registry.record import ServiceRecord
from novasvc.rpc import Client
from novasvc.rpc.errors import (
    NoSuchMethodError,
    RPCTimeoutError,
    UnconfirmedError,
    UndeliverableError,
    UnsupportedVersionError,
)
from novasvc.rpc.failures.reply import wait_for_reply

COMMAND_TIMEOUT = 15.0
"""Seconds for a node to take a command."""

STATUS_TIMEOUT = 5.0
"""Seconds for a node to answer a question."""


@attrs.frozen(eq=False)
class NodeCalls:
    """Calls nodes.

    :param client: on an open transport.
    :param clock: measures the times of answers.
    """

    _client: Client
    clock: IReactorTime

    async def ping(self, record: ServiceRecord, seconds: float) -> float:
        """Ping a node, and return the seconds until its answer.

        :param seconds: that it has.
        :raises NodeFailedError: it cannot be called, or does not answer.
        """
        began = self.clock.seconds()
        try:
            await self.call(record, "baseapi", "1.0", "ping", seconds, {"arg": 1})
        except NovasvcError as error:
            raise NodeFailedError(describe_failure(error)) from error
        return self.clock.seconds() - began

    async def command(
        self, record: ServiceRecord, method: str, version: str, seconds: float, args: Mapping[str, Any]
    ) -> bool:
        """Send a command. If its answer does not come, the node may have taken it: what the node does then shows that.

        :param method: of the namespace "node".
        :param version: the first version with this method.
        :param seconds: that it has to answer, at most COMMAND_TIMEOUT; in a queue, the command expires then.
        :return: whether the node may have taken it, or may still take it, without an answer.
        :raises NodeFailedError: it cannot be called, or refuses.
        """
        try:
            await self.call(record, "node", version, method, min(seconds, COMMAND_TIMEOUT), args)
        except RPCTimeoutError as error:
            return not error.unsent
        except UnconfirmedError:
            return True
        except NovasvcError as error:
            raise NodeFailedError(describe_failure(error)) from error
        return False

    async def status(self, record: ServiceRecord) -> Mapping[str, Any] | None:
        """Ask a node for its status; return None if it does not answer, or has no such method.

        :raises NodeFailedError: the node cannot be asked, and asking again will not help.
        """
        try:
            answer = await self.call(record, "node", "1.2", "status", STATUS_TIMEOUT, {})
        except (NoSuchMethodError, UnsupportedVersionError) as error:
            problem = "it runs an older release of novasvc, which does not tell its status"
            raise NodeFailedError(problem) from error
        except NovasvcError:
            return None
        return answer if isinstance(answer, Mapping) else None

    async def call(
        self, record: ServiceRecord, namespace: str, version: str, method: str, seconds: float, args: Mapping[str, Any]
    ) -> Any:
        """Call a method of a node, even of one that is down or forced down, and return its result.

        :param seconds: the call's timeout.
        :raises NodeFailedError: it serves no topic.
        :raises RemoteError: the node raised an exception that is not novasvc's.
        :raises NovasvcError: see :meth:`novasvc.rpc.Client.call`.
        """
        if record.topic is None:
            raise NodeFailedError("it serves no topic, so it cannot be called")
        client = self._client.prepare(
            topic=record.topic,
            server=record.host,
            namespace=namespace,
            version=version,
            timeout=seconds,
            check_liveness=False,  # to ask the node itself is the purpose
        )
        return await wait_for_reply(client.call(RequestContext.admin(), method, **args))


@attrs.define(eq=False)
class SharedCommand:
    """The command of an operation to a process, sent once for all services that the process runs.

    :param resumed: whether it may have been sent before the operation was resumed.
    """

    resumed: bool
    _state: Literal["unsent", "sending", "sent"] = attrs.field(default="unsent", init=False)
    _result: Any = attrs.field(default=None, init=False)
    _waiters: Waiters[None] = attrs.field(factory=Waiters, init=False)

    async def send(self, send: Callable[[], Awaitable[Any]]) -> Any:
        """Send it, unless it was sent. While it is sent for another service, wait, and send it if that fails.

        :return: the result of the ``send`` that succeeded.
        """
        while self._state == "sending":
            await self._waiters.wait()
        if self._state == "unsent":
            self._state = "sending"
            try:
                self._result = await send()
            except CancelledError:  # the operation ends: those who wait are cancelled too, and must not send it
                raise
            except Exception:
                self._enter("unsent")
                raise
            self._enter("sent")
        return self._result

    def _enter(self, state: Literal["unsent", "sent"]) -> None:
        self._state = state
        self._waiters.fire(None)


def describe_failure(error: NovasvcError) -> str:
    """Return in one line why a node could not be called."""
    match error:
        case NodeFailedError():
            return error.problem
        case NoSuchMethodError() | UnsupportedVersionError():
            return "it runs an older release of novasvc, which does not have this command: use it on its host"
        case UndeliverableError():
            return "no process serves it: messages to it cannot be delivered"
        case RPCTimeoutError():
            return "it did not answer in time"
    return " ".join(str(error).split())
