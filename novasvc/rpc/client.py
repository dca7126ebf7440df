"""The caller's side: address a target, send, wait for the reply."""

from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime

from novasvc.context import RequestContext
from novasvc.errors import InvalidTargetError, RPCError, RPCVersionCapError, UnconfirmedError
from novasvc.interfaces import ITransport
from novasvc.rpc.message import SHORTEST_KEEPALIVE, encode_request
from novasvc.rpc.replies import RESENDS, Explain, PendingCalls
from novasvc.rpc.target import Target
from novasvc.rpc.version import compatible
from novasvc.telemetry import metrics

_SAME: Any = object()
"""Stands for "as it is" where None means something."""
_NO_TARGET = "none", "the client addresses no topic yet; give one by prepare(topic=...)"


class Client:
    """Calls methods of services.

    :param transport: open before the first call.
    :param clock: measures the timeouts.
    :param timeout: seconds to wait for a reply, > 0. None, which takes a call_monitor_timeout, is
        "as long as the server says that the method runs".
    :param call_monitor_timeout: whole seconds, at least 2: a call that runs longer fails if the
        server has not said for so long that it still runs. The timeout holds all the same. None:
        the server need not say anything.
    :param target: whom :meth:`call` and :meth:`cast` address; :meth:`prepare` gives another.
    :param version_cap: the highest version to send, for the time of an upgrade; None is no cap.
    :param idempotent: the methods that are called may run twice. A message whose connection was lost
        before the broker confirmed it is then sent again.
    :param explain: finds out more about a target that nobody can be reached for, see
        :class:`novasvc.registry.lookup.ServiceLookup`; None leaves the error as the transport has it.
    :raises ValueError: of the timeouts.

    Source: oslo_messaging.RPCClient.
    """

    def __init__(
        self,
        transport: ITransport,
        *,
        clock: IReactorTime,
        timeout: float | None = 60.0,
        call_monitor_timeout: float | None = None,
        target: Target | None = None,
        version_cap: str | None = None,
        idempotent: bool = False,
        explain: Explain | None = None,
        _calls: PendingCalls | None = None,
    ) -> None:
        if call_monitor_timeout is not None and not SHORTEST_KEEPALIVE <= call_monitor_timeout < inf:
            raise ValueError(f"call_monitor_timeout is {call_monitor_timeout!r}; give seconds >= {SHORTEST_KEEPALIVE}")
        if timeout is None and call_monitor_timeout is None:
            raise ValueError("timeout is None, and would let a call wait for ever; give a call_monitor_timeout with it")
        if timeout is not None and not timeout < inf:
            raise ValueError(f"timeout is {timeout!r}; give seconds")
        self._transport = transport
        self._clock = clock
        self._timeout = timeout
        self._keepalive = None if call_monitor_timeout is None else int(call_monitor_timeout)
        self._target = target
        self._version_cap = version_cap
        self._idempotent = idempotent
        self._calls = PendingCalls(transport, clock, explain) if _calls is None else _calls

    @property
    def pending(self) -> int:
        """Calls that wait for a reply, of this client and of those prepared from it."""
        return len(self._calls)

    def operations(self) -> set[str]:
        """Return the request ids of the calls that wait for a reply, of this client and of those prepared from it."""
        return self._calls.request_ids()

    @property
    def unmatched_replies(self) -> int:
        """Replies that no call waited for, since the start: late, double or forged ones."""
        return self._calls.unmatched

    def prepare(
        self,
        *,
        topic: str = _SAME,
        server: str | None = _SAME,
        fanout: bool = _SAME,
        namespace: str | None = _SAME,
        version: str | None = _SAME,
        timeout: float | None = _SAME,
        call_monitor_timeout: float | None = _SAME,
        version_cap: str | None = _SAME,
        idempotent: bool = _SAME,
    ) -> "Client":
        """Make a client for another target; what is not given stays as it is here.

        Cheap: both wait for their replies at one address.

        :raises InvalidTargetError: there is no topic, or topic or server cannot be used.
        :raises ValueError: of the timeouts.
        """
        given = {"topic": topic, "server": server, "fanout": fanout, "namespace": namespace, "version": version}
        changes = {name: value for name, value in given.items() if value is not _SAME}
        return Client(
            self._transport,
            clock=self._clock,
            timeout=self._timeout if timeout is _SAME else timeout,
            call_monitor_timeout=self._keepalive if call_monitor_timeout is _SAME else call_monitor_timeout,
            target=_retarget(self._target, changes) if changes else self._target,
            version_cap=self._version_cap if version_cap is _SAME else version_cap,
            idempotent=self._idempotent if idempotent is _SAME else idempotent,
            _calls=self._calls,
        )

    def can_send_version(self, version: str | None) -> bool:
        """Tell whether the cap lets a version through."""
        return compatible(self._version_cap, version)

    def call(self, context: RequestContext, method: str, /, **args: Any) -> Deferred[Any]:
        """Call a method and wait for what it returns.

        :param context: travels with the call; if its deadline comes before the timeout, it counts.
        :param method: the name of an exposed method.
        :param args: for the method; see :func:`novasvc.rpc.payload.dumps` for what can be sent.
        :return: Deferred firing with the result (JSON types); cancelling it forgets the reply.
        :raises RPCTimeoutError: no reply, or no sign of life, in time.
        :raises UnconfirmedError: the connection was lost before the broker had confirmed the message, and
            the call is not idempotent, or could not be sent again in time. It may run, or not.
        :raises UndeliverableError: no queue is bound for the target.
        :raises BrokerError: the broker refuses the message, takes none now, or is not there; it was not sent.
        :raises TransportFullError: too many messages wait already.
        :raises InvalidTargetError: no target, or a fanout.
        :raises RPCVersionCapError: the target's version is over the cap.
        :raises InvalidArgumentsError: JSON cannot hold an argument, or the method does not take it.
        :raises TooManyCallsError: too many calls wait already.
        :raises TransportClosedError: it was, or is while the call waits.
        :raises RemoteError: the method raised what is neither Python's own nor one of
            :data:`novasvc.errors.WIRE_ERRORS`; those are raised as they are.
        """
        try:
            target = self._target
            if target is None or self._version_cap is not None:
                target = self._checked_target()
            if target.fanout:
                raise InvalidTargetError(str(target), "a fanout has no reply; use fanout() or cast()")
        except RPCError as error:
            return fail(error)

        timeout = self._timeout
        if context.deadline is not None:
            left = context.deadline - self._clock.seconds()
            timeout = left if timeout is None else min(timeout, left)
        body = partial(
            encode_request,
            method,
            args,
            context.to_wire(),
            namespace=target.namespace,
            version=target.version,
            keepalive=self._keepalive,
        )
        return self._calls.call(
            target, method, body, timeout, self._keepalive, context.request_id, idempotent=self._idempotent
        )

    def cast(self, context: RequestContext, method: str, /, **args: Any) -> Deferred[None]:
        """Have a method run, and wait for no result.

        :return: Deferred fired when the transport answers for the message. Nobody may be there.
        :raises InvalidTargetError: no target.
        :raises RPCVersionCapError: the target's version is over the cap.
        :raises InvalidArgumentsError: JSON cannot hold an argument.
        :raises TransportFullError: too many messages wait already.
        :raises BrokerError: the broker refuses the message, takes none now, or is not there; it was not sent.
        :raises UnconfirmedError: the connection was lost before the broker had confirmed the message, and
            the cast is not idempotent, or could not be sent again.
        :raises TransportClosedError: it was.
        """
        try:
            return self._cast(self._checked_target(), context, method, args)
        except RPCError as error:
            return fail(error)

    def fanout(self, context: RequestContext, method: str, /, **args: Any) -> Deferred[None]:
        """Have a method run by every service of the topic; otherwise as :meth:`cast`."""
        try:
            return self._cast(attrs.evolve(self._checked_target(), fanout=True), context, method, args)
        except RPCError as error:
            return fail(error)

    def close(self) -> Deferred[None]:
        """Fail the calls that wait, of this client and of those prepared from it.

        They fail with TransportClosedError. The transport stays open.

        :return: Deferred[None], fired when the address for replies is given up.
        """
        return self._calls.close()

    def _cast(self, target: Target, context: RequestContext, method: str, args: Mapping[str, Any]) -> Deferred[None]:
        self._calls.check_open()
        body = encode_request(method, args, context.to_wire(), namespace=target.namespace, version=target.version)
        metrics.casts.at(target.topic, method).value += 1
        send: Callable[[], Deferred[None]] = partial(self._transport.send, target, body, None, False)
        return Deferred.fromCoroutine(_send_again(send)) if self._idempotent else send()

    def _checked_target(self) -> Target:
        target = self._target
        if target is None:
            raise InvalidTargetError(*_NO_TARGET)
        if self._version_cap is not None and not compatible(self._version_cap, target.version):
            raise RPCVersionCapError(str(target.version), self._version_cap)
        return target


async def _send_again(send: Callable[[], Deferred[None]]) -> None:
    """Send until the broker confirms; the transport holds the message while there is no connection."""
    for attempt in range(RESENDS + 1):
        try:
            await send()
        except UnconfirmedError:
            if attempt == RESENDS:
                raise
            metrics.resent.at().value += 1
        else:
            return


def _retarget(target: Target | None, changes: Mapping[str, Any]) -> Target:
    if target is not None:
        return attrs.evolve(target, **changes)
    if "topic" not in changes:
        raise InvalidTargetError(*_NO_TARGET)
    return Target(**changes)
