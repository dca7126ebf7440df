"""The RPC client: send calls, casts and fanouts to a target."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from functools import partial
from math import inf
from typing import Any, Never

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from novasvc.context import RequestContext, current_context
from novasvc.interfaces import ITransport
from novasvc.middleware import SENDING, Chain, load_middleware
from novasvc.middleware.invocation import CALL, CAST, Invocation
from novasvc.rpc.around import send_through, target_fields
from novasvc.rpc.auto_version import AutoCap, FleetVersions, OldestFunction, choose
from novasvc.rpc.checks import Check, Checked, both, send_when_checked
from novasvc.rpc.errors import (
    InvalidTargetError,
    RPCError,
    RPCVersionCapError,
)
from novasvc.rpc.gather import Gathering, HostsFunction, failed
from novasvc.rpc.identity.signature import Signer
from novasvc.rpc.message import SHORTEST_KEEPALIVE, encode_request
from novasvc.rpc.progress import OnProgress
from novasvc.rpc.replies import EncodeCall, PendingCalls, ServiceLookupFunction
from novasvc.rpc.resend import send_until_confirmed
from novasvc.rpc.retry import Retry, call_with_retries
from novasvc.rpc.target import Target
from novasvc.rpc.version import compatible
from novasvc.telemetry import metrics

_UNSET: Any = object()
"""Sentinel for an argument that was not given: the client's value stays. None is a value of its own."""
AUTO = "auto"
"""The version cap that follows the services of a topic."""

VersionCap = str | Mapping[int, str | Sequence[str]] | None
"""A version, AUTO, or a table: service version -> RPC version."""

_ASK_TIMEOUT = 2.0
"""Seconds for a node to say what it serves."""
_NO_TARGET = "(none)", "the client has no topic; set one with prepare(topic=...)"


class Client:
    """Call methods of remote services.

    :param transport: open before the first call; the client does not close it.
    :param clock: measures the timeouts.
    :param timeout: seconds to wait for a reply, > 0. None waits for as long as keepalives arrive, and
        requires a call_monitor_timeout.
    :param call_monitor_timeout: whole seconds, at least 2: ask the server for keepalives, and fail a call
        if none arrives for this long. The timeout applies as well. None asks for no keepalives.
    :param target: the target of :meth:`call`, :meth:`cast` and :meth:`fanout`; :meth:`prepare` changes it.
    :param version_cap: the highest version to send, used during an upgrade; None for no cap. "auto" follows the
        oldest services of the topic that are up: those with the lowest ``service_version``, which are asked what they
        serve. A table does the same for services that cannot be asked, such as those of oslo.messaging:
        ``{3: "1.0", 7: "1.2"}`` is 1.0 while the lowest service version is 3 to 6. See :meth:`choose_version`.
    :param idempotent: the called methods may run twice, so a message whose connection was lost before
        the broker confirmed it is sent again.
    :param mandatory: a cast that is not a fanout fails if no queue is bound for its target, as a call does.
    :param retry: repeats calls that fail; requires ``idempotent``. Casts are not repeated.
    :param on_progress: called with the fraction (0.0 to 1.0) and the text of each report of a called method, see
        :meth:`novasvc.context.RequestContext.progress`. An error that it raises is logged.
    :param cancels: cancelling the Deferred of a call cancels the method at the server, too; see
        :mod:`novasvc.rpc.cancellation`.
    :param hosts: asks the registry which hosts serve a topic, see :class:`novasvc.registry.lookup.UpHosts`; without it
        a gather ends at its timeout only.
    :param explain: looks up an unreachable target in the registry, see
        :class:`novasvc.registry.lookup.ServiceLookup`; None raises the transport's error unchanged.
    :param middleware: what :func:`novasvc.middleware.load_middleware` takes, outermost first, around calls and casts;
        a gather does not pass through it.
    :param signer: signs all calls and casts; None leaves them unsigned.
    :param liveness: tells whether a server is down, see :class:`novasvc.registry.targets.TargetLiveness`; None calls
        every server.
    :param check_liveness: a call to a server that is down fails at once, and is not sent. Casts are sent: the queue of
        the server keeps them until it is up again.
    :param oldest: finds the oldest services of a topic, for version caps that follow them; see
        :class:`novasvc.registry.versions.OldestUp`.
    :raises ValueError: a timeout is not valid, or both timeouts are None; or ``retry`` without ``idempotent``.

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
        version_cap: VersionCap = None,
        idempotent: bool = False,
        mandatory: bool = False,
        explain: ServiceLookupFunction | None = None,
        retry: Retry | None = None,
        on_progress: OnProgress | None = None,
        cancels: bool = True,
        hosts: HostsFunction | None = None,
        middleware: Iterable[Any] = (),
        signer: Signer | None = None,
        liveness: Check | None = None,
        check_liveness: bool = True,
        oldest: OldestFunction | None = None,
        _calls: PendingCalls | None = None,
    ) -> None:
        if call_monitor_timeout is not None and not _within(SHORTEST_KEEPALIVE, call_monitor_timeout):
            raise ValueError(f"call_monitor_timeout is {call_monitor_timeout!r}; give seconds >= {SHORTEST_KEEPALIVE}")
        if timeout is None and call_monitor_timeout is None:
            raise ValueError("timeout and call_monitor_timeout are None, so a call could wait for ever; give one")
        if timeout is not None and not _within(-inf, timeout):
            raise ValueError(f"timeout is {timeout!r}; give a finite number of seconds, or None")
        if retry is not None and not idempotent:
            raise ValueError(
                "retry repeats calls, and these calls are not declared idempotent; "
                "give idempotent=True if the methods may run twice, else no retry"
            )
        self._transport = transport
        self._clock = clock
        self._timeout = timeout
        self._keepalive = None if call_monitor_timeout is None else int(call_monitor_timeout)
        self._target = target
        self._version_cap = version_cap
        self._fixed_cap: str | None = None
        self._auto_cap: AutoCap | None = None
        self._checks: tuple[Check | None, Check | None] = (None, None)
        self._idempotent = idempotent
        self._mandatory = mandatory
        self._retry = retry
        self._on_progress = on_progress
        self._cancels = cancels
        self._calls = PendingCalls(transport, clock, explain, hosts) if _calls is None else _calls
        self._signer = signer
        self._liveness, self._check_liveness = liveness, check_liveness
        self._versions = None if oldest is None else FleetVersions(oldest, self._ask_interface, clock)
        if _calls is None:  # else prepare() does it
            self._set_checks()
        self._chain = Chain.of(load_middleware(middleware), *SENDING) if middleware else None

    @property
    def pending(self) -> int:
        """The number of calls that wait for a reply; prepared clients share it."""
        return len(self._calls)

    def request_ids_in_flight(self) -> set[str]:
        """Return the request ids of the calls that wait for a reply; prepared clients share them.

        A draining server admits the requests that carry one of them, in any worker of its node; see
        :class:`novasvc.rpc.server.admission.Admission`.
        """
        return self._calls.request_ids()

    @property
    def unmatched_replies(self) -> int:
        """The number of replies that matched no pending call since the start: late, duplicate, forged or malformed."""
        return self._calls.unmatched + self._calls.gathers.unmatched

    def prepare(
        self,
        *,
        topic: str = _UNSET,
        server: str | None = _UNSET,
        fanout: bool = _UNSET,
        namespace: str | None = _UNSET,
        version: str | None = _UNSET,
        timeout: float | None = _UNSET,
        call_monitor_timeout: float | None = _UNSET,
        version_cap: VersionCap = _UNSET,
        idempotent: bool = _UNSET,
        retry: Retry | None = _UNSET,
        on_progress: OnProgress | None = _UNSET,
        cancels: bool = _UNSET,
        check_liveness: bool = _UNSET,
    ) -> "Client":
        """Return a client with some parameters changed; the others are this client's.

        This is cheap: both clients share the reply address and the pending calls.

        :raises InvalidTargetError: there is no topic, or the topic or server is not valid.
        :raises ValueError: as the constructor.
        """
        given = {"topic": topic, "server": server, "fanout": fanout, "namespace": namespace, "version": version}
        changes = {name: value for name, value in given.items() if value is not _UNSET}
        prepared = Client(
            self._transport,
            clock=self._clock,
            timeout=self._timeout if timeout is _UNSET else timeout,
            call_monitor_timeout=self._keepalive if call_monitor_timeout is _UNSET else call_monitor_timeout,
            target=_retarget(self._target, changes) if changes else self._target,
            version_cap=self._version_cap if version_cap is _UNSET else version_cap,
            idempotent=self._idempotent if idempotent is _UNSET else idempotent,
            mandatory=self._mandatory,
            retry=self._retry if retry is _UNSET else retry,
            on_progress=self._on_progress if on_progress is _UNSET else on_progress,
            cancels=self._cancels if cancels is _UNSET else cancels,
            check_liveness=self._check_liveness if check_liveness is _UNSET else check_liveness,
            liveness=self._liveness,
            _calls=self._calls,
        )
        prepared._chain, prepared._signer, prepared._versions = self._chain, self._signer, self._versions
        prepared._set_checks()
        return prepared

    def _set_checks(self) -> None:
        """Set what is checked before a message is sent to a server, and to a topic."""
        cap = self._version_cap
        follow: Check | None = None
        if cap is None or (isinstance(cap, str) and cap != AUTO):
            self._fixed_cap = cap
        else:
            if self._versions is None:
                raise ValueError(
                    f"version_cap is {cap!r}, and this client has no registry to follow; use that of a node, such as "
                    "manager.attachments.rpc, or give a version"
                )
            self._auto_cap = AutoCap(self._versions, None if isinstance(cap, str) else cap)
            follow = self._auto_cap.check
        self._checks = both(follow, self._liveness if self._check_liveness else None), follow

    def _ask_interface(self, target: Target) -> Deferred[Any]:
        asking = Client(
            self._transport, clock=self._clock, timeout=_ASK_TIMEOUT, target=target, idempotent=True, _calls=self._calls
        )
        asking._signer = self._signer
        return asking.call(RequestContext.admin(), "interface")

    def can_send_version(self, version: str | None) -> bool:
        """Return whether a version is within the version cap.

        A cap that follows the services is taken as it is known now, and every version is within one that is not known
        yet; :meth:`choose_version` waits for it.

        :param version: "major.minor"; with a cap, None is never sendable. Without a cap every version is.
        :raises ValueError: the version is malformed.
        """
        if self._auto_cap is None:
            return compatible(self._fixed_cap, version)
        if self._target is None or version is None:
            return False
        return self._auto_cap.check_known(attrs.evolve(self._target, version=version)) is None

    def choose_version(self, *versions: str) -> Deferred[str]:
        """Choose the version of the next calls: the first of these that is within the version cap.

        During an upgrade: ``version = await client.choose_version("1.4", "1.0")``, and then
        ``client.prepare(version=version).call(...)``, without the arguments that 1.4 has added if it is "1.0".

        :param versions: "major.minor", the best first.
        :return: Deferred firing with one of them; with the first if the cap follows the services, and neither the
            registry nor a service says what they serve. The Deferred fails with:
        :raises RPCVersionCapError: none is within the cap.
        :raises InvalidTargetError: there is no target.
        :raises ValueError: at once: a version is malformed, or there is none.
        """
        if self._target is None:
            return fail(InvalidTargetError(*_NO_TARGET))
        return choose(self._auto_cap or self._fixed_cap, self._target, versions)

    def call(self, context: RequestContext, method: str = "", /, *positional: Never, **args: Any) -> Deferred[Any]:
        """Call a method and wait for its result.

        :param context: sent with the call. Its deadline applies if it is earlier than the timeout, and so does that of
            the request, or of the periodic task, in which the call is made, whatever context is given; see
            :func:`novasvc.context.without_deadline`.
        :param method: the name of an exposed method.
        :param args: the method's arguments, by name; see :func:`novasvc.rpc.payload.dumps` for the types.
        :return: Deferred firing with the result (JSON types). Cancelling it discards the message or the reply, and
            cancels the method. The Deferred fails with:
        :raises RPCTimeoutError: no reply, or no keepalive, arrived in time.
        :raises UnconfirmedError: the connection was lost before the broker confirmed the message, and the
            call is not idempotent, or could not be sent again in time. The method may or may not run.
        :raises UndeliverableError: no queue is bound for the target.
        :raises TargetDownError: the target is a server that is down; an UndeliverableError.
        :raises BrokerError: the broker refused or blocked the message, or is unreachable; it was not sent.
        :raises TransportFullError: too many messages wait to be sent.
        :raises InvalidTargetError: there is no target, or it is a fanout.
        :raises RPCVersionCapError: the target's version is over the cap.
        :raises InvalidArgumentsError: JSON cannot hold an argument, or the method does not accept it.
        :raises TooManyCallsError: too many calls wait for replies.
        :raises TransportClosedError: the client or the transport was closed, before the call or during it.
        :raises RemoteError: the method raised an error that is neither a Python built-in, nor registered with
            :func:`novasvc.rpc.error`, nor one of :data:`novasvc.errors.WIRE_ERRORS`; those are raised with their own
            class. :func:`novasvc.rpc.origin_of` says which service raised an error.
        :raises MiddlewareError: a middleware of this client does not do what IMiddleware asks of it.
        :raises TypeError: at once: an argument is not given by name, or the first parameter is no context.
        :raises ProblemError: at once: called in another thread than that of the reactor.
        """
        if positional or not method or not isinstance(context, RequestContext):
            raise _misused("call", context, method, positional)
        if self._chain is not None:
            return self._send_through(CALL, Client.call, context, method, args)
        try:
            target = self._target
            if target is None or target.fanout or self._fixed_cap is not None:
                target = self._checked_target(replies=True)
        except RPCError as error:
            return fail(error)

        timeout, deadline, current = self._timeout, context.deadline, current_context.get()
        if current is not None and current.deadline is not None and current is not context:
            deadline = current.deadline if deadline is None else min(deadline, current.deadline)
        if deadline is not None:
            left = deadline - self._clock.seconds()
            timeout = left if timeout is None else min(timeout, left)
        if self._retry is not None:
            return self._call_again(self._retry, timeout, target, context, method, args)
        options: dict[str, Any] | None = None
        if self._on_progress is not None or self._keepalive is not None:
            options = {"progress": self._on_progress is not None, "timeout": timeout}
        body = partial(
            encode_request,
            method,
            args,
            context.to_wire(),
            namespace=target.namespace,
            version=target.version,
            keepalive=self._keepalive,
            options=options,
            sign=None if self._signer is None else partial(self._signer.sign, target),
        )
        check = self._checks[target.server is None]
        if check is not None and ((answer := check(target)) is not None or self._auto_cap is not None):
            return self._call_checked(answer, target, method, body, timeout, context.request_id)
        return self._calls.call(
            target,
            method,
            body,
            timeout,
            self._keepalive,
            context.request_id,
            idempotent=self._idempotent,
            cancels=self._cancels,
            on_progress=self._on_progress,
        )

    def _call_checked(
        self,
        answer: Checked,
        target: Target,
        method: str,
        body: EncodeCall,
        timeout: float | None,
        request_id: str,
    ) -> Deferred[Any]:
        """Call if the answer of a check allows it; wait for it if it is not known."""
        self._calls.check_thread()
        if isinstance(answer, RPCError):
            return self._calls.refuse(target, method, answer)
        send = partial(
            self._calls.call,
            target,
            method,
            body,
            keepalive=self._keepalive,
            request_id=request_id,
            idempotent=self._idempotent,
            cancels=self._cancels,
            on_progress=self._on_progress,
        )
        calling = send(timeout) if answer is None else send_when_checked(answer, self._clock, timeout, send)
        return calling if self._auto_cap is None else calling.addErrback(self._doubt_cap, self._auto_cap, target)

    @staticmethod
    def _doubt_cap(failure: Failure, cap: AutoCap, target: Target) -> Failure:
        cap.answered(target, failure.value)
        return failure

    def gather(self, context: RequestContext, method: str = "", /, *positional: Never, **args: Any) -> Gathering:
        """Call a method of all servers of the topic, and take their answers one by one.

        It ends when all hosts have answered that are up according to the registry, or at the timeout. A host whose
        node has several workers answers once. Servers of oslo.messaging answer too, and do not say their host: take
        their answers from the iteration, or from :attr:`Gathered.replies`.

        :param context: as for :meth:`call`.
        :return: the answers, as they arrive; see :class:`Gathering`. It fails with the errors of a :meth:`call` that
            could not be sent. A missing answer is no error; over RabbitMQ a topic that nobody serves is none either.
        :raises ValueError: the client has no timeout, and the context no deadline.
        :raises TypeError: at once: see :meth:`call`.
        :raises ProblemError: at once: see :meth:`call`.
        """
        if positional or not method or not isinstance(context, RequestContext):
            raise _misused("gather", context, method, positional)
        self._calls.check_thread()
        timeout = self._timeout
        for deadline in (context.deadline, None if (now := current_context.get()) is None else now.deadline):
            if deadline is not None:
                left = deadline - self._clock.seconds()
                timeout = left if timeout is None else min(timeout, left)
        if timeout is None:
            raise ValueError(
                "a gather ends at its timeout, and this client has none; give one with prepare(timeout=...)"
            )
        try:
            target = self._checked_target()
            if target.server is not None:
                problem = (
                    "gather asks all servers of a topic, and this target has one; leave the server out, or use call()"
                )
                raise InvalidTargetError(str(target), problem)
            answer = None if self._auto_cap is None else self._auto_cap.check(target)
            if isinstance(answer, RPCError):
                raise answer
        except RPCError as error:
            return failed(error)
        target = attrs.evolve(target, fanout=True)
        body = partial(
            encode_request,
            method,
            args,
            context.to_wire(),
            namespace=target.namespace,
            version=target.version,
            options={"gather": True},
            sign=None if self._signer is None else partial(self._signer.sign, target),
        )
        return self._calls.gathers.gather(
            target,
            method,
            body,
            timeout,
            context.request_id,
            cancels=self._cancels,
            checking=answer,
            failed=None if self._auto_cap is None else partial(self._auto_cap.answered, target),
        )

    def _call_again(
        self,
        retry: Retry,
        timeout: float | None,
        target: Target,
        context: RequestContext,
        method: str,
        args: Mapping[str, Any],
    ) -> Deferred[Any]:
        self._calls.check_thread()

        def attempt(seconds: float | None) -> Deferred[Any]:
            return self.prepare(retry=None, timeout=seconds).call(context, method, **args)

        named = target.topic, method
        return Deferred.fromCoroutine(call_with_retries(retry, self._clock, timeout, attempt, named))

    def cast(self, context: RequestContext, method: str = "", /, *positional: Never, **args: Any) -> Deferred[None]:
        """Send a message that runs a method, and do not wait for a result.

        :return: Deferred[None], fired when the broker has confirmed the message. A confirm does not mean
            that a server exists. The Deferred fails with:
        :raises UndeliverableError: no queue is bound for the target, and this client's casts are mandatory.
        :raises InvalidTargetError: there is no target.
        :raises RPCVersionCapError: the target's version is over the cap.
        :raises InvalidArgumentsError: JSON cannot hold an argument.
        :raises TransportFullError: too many messages wait to be sent.
        :raises BrokerError: the broker refused or blocked the message, or is unreachable; it was not sent.
        :raises UnconfirmedError: the connection was lost before the broker confirmed the message, and the
            cast is not idempotent, or could not be sent again. The method may or may not run.
        :raises RPCTimeoutError: this client has middleware, and the cast took longer than a minute with it.
        :raises TransportClosedError: the client or the transport was closed.
        :raises TypeError: at once: see :meth:`call`.
        :raises ProblemError: at once: see :meth:`call`.
        """
        if positional or not method or not isinstance(context, RequestContext):
            raise _misused("cast", context, method, positional)
        if self._chain is not None:
            return self._send_through(CAST, Client.cast, context, method, args)
        try:
            return self._cast(self._checked_target(), context, method, args)
        except RPCError as error:
            return fail(error)

    def fanout(self, context: RequestContext, method: str = "", /, *positional: Never, **args: Any) -> Deferred[None]:
        """Run a method on every server of the topic; otherwise as :meth:`cast`."""
        if positional or not method or not isinstance(context, RequestContext):
            raise _misused("fanout", context, method, positional)
        if self._chain is not None:
            return self._send_through(CAST, Client.fanout, context, method, args)
        try:
            return self._cast(attrs.evolve(self._checked_target(), fanout=True), context, method, args)
        except RPCError as error:
            return fail(error)

    def close(self) -> Deferred[None]:
        """Fail the pending calls with TransportClosedError, and accept no more.

        This includes the calls of all clients prepared from this one. The transport stays open.

        :return: Deferred[None], fired when the reply address is closed.
        """
        return self._calls.close()

    def _send_through(
        self,
        kind: str,
        send: Callable[..., Deferred[Any]],
        context: RequestContext,
        method: str,
        args: Mapping[str, Any],
    ) -> Deferred[Any]:
        """Send a message through the middleware; ``send`` is the method of this class that sends it."""
        assert self._chain is not None
        self._calls.check_thread()
        bare = copy(self)
        bare._chain = None  # noqa: SLF001 - a copy of this client
        return send_through(
            self._chain,
            Invocation(kind=kind, name=method, context=context, args=args, **target_fields(self._target)),
            lambda passed: send(bare, passed.context, passed.name, **passed.args),
            self._clock,
            self._timeout,
        )

    def _cast(self, target: Target, context: RequestContext, method: str, args: Mapping[str, Any]) -> Deferred[None]:
        self._calls.check_open()
        check = self._checks[True]  # that of a topic, even with a server: its queue keeps a cast for it
        answer = None if check is None else check(target)
        if isinstance(answer, RPCError):
            return fail(answer)
        body = encode_request(
            method,
            args,
            context.to_wire(),
            namespace=target.namespace,
            version=target.version,
            sign=None if self._signer is None else partial(self._signer.sign, target),
        )
        metrics.casts.at(target.topic, method).value += 1
        send: Callable[[], Deferred[None]] = partial(
            self._transport.send, target, body, None, self._mandatory and not target.fanout
        )

        def send_in_time(_seconds: float | None = None) -> Deferred[None]:
            return Deferred.fromCoroutine(send_until_confirmed(send)) if self._idempotent else send()

        return send_in_time() if answer is None else send_when_checked(answer, self._clock, None, send_in_time)

    def _checked_target(self, *, replies: bool = False) -> Target:
        target = self._target
        if target is None:
            raise InvalidTargetError(*_NO_TARGET)
        if self._fixed_cap is not None and not compatible(self._fixed_cap, target.version):
            raise RPCVersionCapError(str(target.version), self._fixed_cap)
        if replies and target.fanout:
            raise InvalidTargetError(str(target), "a fanout has no reply; use gather(), fanout() or cast()")
        return target


def _within(least: float, value: object) -> bool:
    """Return whether a value is a number, at least this, and finite upwards."""
    return isinstance(value, int | float) and least <= value < inf


def _misused(name: str, context: object, method: object, positional: Sequence[object]) -> TypeError:
    """Return the error for a call whose parameters are in the wrong places."""
    example = f'write {name}(context, "method", name=value)'
    if not isinstance(context, RequestContext):
        return TypeError(f"{name}() takes a RequestContext first, not {context!r:.80}; {example}")
    if not method:
        return TypeError(f"{name}() has no method; {example}")
    given = ", ".join(f"{value!r:.80}" for value in positional)
    return TypeError(f"{name}() of {method!r} takes arguments by name, but got {given}; {example}")


def _retarget(target: Target | None, changes: Mapping[str, Any]) -> Target:
    if target is not None:
        return attrs.evolve(target, **changes)
    if "topic" not in changes:
        raise InvalidTargetError(*_NO_TARGET)
    return Target(**changes)
