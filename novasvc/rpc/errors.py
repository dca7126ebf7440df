"""Errors of messaging and RPC."""

from collections.abc import Sequence

import attrs

from novasvc.errors import NovasvcError
from novasvc.rpc.failures.origin import with_origin


class RPCError(NovasvcError):
    """Base class of the errors of messaging and RPC."""


@attrs.define
class InvalidTargetError(RPCError):
    """A target is malformed or not suited to the operation.

    :param target: target as text.
    :param problem: what is wrong.
    """

    target: str
    problem: str

    def __str__(self) -> str:
        return f"target {self.target}: {self.problem}"


def _all_down(registered: int) -> str:
    """Describe a target none of whose registered services is up. One whose init_host runs for long is not, either."""
    if not registered:
        return "no such service is registered"
    services = "the only such service is" if registered == 1 else f"all {registered} such services are"
    return f"{services} down or still starting"


@attrs.define
class RPCTimeoutError(RPCError):
    """No reply within the timeout, or no RPC heartbeat within call_monitor_timeout.

    :param target: target as text.
    :param method: the method that was called.
    :param timeout: seconds that the caller waited.
    :param silent: True if it was the RPC heartbeat that did not arrive.
    :param unconfirmed: why the broker did not confirm the message; empty if it did.
    :param registered: number of services registered for the target; None if the caller could not ask the registry.
    :param up: how many of them are up.
    :param unsent: why the message was not sent, so that the method does not run; empty if it was.
    """

    target: str
    method: str
    timeout: float
    silent: bool = False
    unconfirmed: str = ""
    registered: int | None = None
    up: int = 0
    unsent: str = ""

    def __str__(self) -> str:
        if self.unsent:
            return (
                f"the call of {self.method!r} to {self.target} was not sent within {self.timeout:.4g} s, and the "
                f"method does not run: {self.unsent}"
            )
        if self.unconfirmed:
            return (
                f"no reply from {self.target} to {self.method!r} within {self.timeout:.4g} s, and it is unknown "
                f"whether the broker accepted the message: {self.unconfirmed}"
            )
        if self.silent:
            return (
                f"no RPC heartbeat from {self.target} for {self.method!r} within {self.timeout:g} s; "
                "check that the service is running and not overloaded"
            )
        # No conclusion from registered == 0: a server that uses oslo.messaging runs without being registered.
        if self.registered and not self.up:
            return (
                f"no reply from {self.target} to {self.method!r} within {self.timeout:.4g} s; according to the "
                f"registry {_all_down(self.registered)}: start one, or wait for it, and check the service's log "
                "whether the method ran"
            )
        return (
            f"no reply from {self.target} to {self.method!r} within {self.timeout:.4g} s; "
            "it may still be running: check the service's log, or use a longer timeout"
        )


@attrs.define
class UndeliverableError(RPCError):
    """No queue is bound for the target: the broker returned the message.

    :param target: target as text.
    :param registered: number of services registered for the target; None if the caller could not ask the registry.
    :param up: how many of them are up.
    """

    target: str
    registered: int | None = None
    up: int = 0

    def __str__(self) -> str:
        unbound = "no queue is bound for it"
        if self.up:
            return (
                f"{self.target} is unreachable: {unbound}, although {self.up} of {self.registered} such services are "
                "up according to the registry; check the service's log, and that it has the same control_exchange and "
                "transport_url"
            )
        if self.registered:
            unbound += f", and {_all_down(self.registered)}"
            return f"no server for {self.target}: {unbound}; start one, or wait for it"
        if self.registered is not None:
            unbound += ", and no such service is registered"
        return f"no server for {self.target}: {unbound}; start a service with this topic, or check topic and host"


@attrs.define
class TargetDownError(UndeliverableError):
    """The registry says that the called service is down; the call was not sent.

    :param target: target as text: "compute.host1".
    :param registered: number of services registered for the target.
    :param up: how many of them are up: 0.
    :param reason: why it is down and since when, as a sentence without a full stop.
    :param since: since when it is down, ISO 8601 in UTC; None if unknown.
    """

    reason: str = ""
    since: str | None = None

    def __str__(self) -> str:
        return self.explain("prepare(check_liveness=False)")

    def explain(self, option: str) -> str:
        """Return the text of the error.

        :param option: how the caller asks for a call all the same.
        """
        return (
            f"{self.target} is down, and the call was not sent: {self.reason}; call another server of the topic, or "
            f"call this one all the same with {option}"
        )


@attrs.define
class TransportFullError(RPCError):
    """A queue or the sender's buffer is full; the message was rejected.

    :param target: target as text.
    :param bound: capacity in messages.
    :param waiting_for: why the sender's buffer is not drained; empty if it is the queue that is full.
    """

    target: str
    bound: int
    waiting_for: str = ""

    def __str__(self) -> str:
        if self.waiting_for:
            return (
                f"the message to {self.target} was not sent: the send buffer of this process is full with {self.bound} "
                f"messages ({self.waiting_for}); send more slowly, and check the broker"
            )
        return f"the queue of {self.target} is full with {self.bound} messages; send more slowly or add workers"


@attrs.define
class TransportClosedError(RPCError):
    """The transport was closed before the operation completed.

    :param operation: the operation, as a noun phrase.
    """

    operation: str

    def __str__(self) -> str:
        return f"the transport is closed: {self.operation} is not possible"


@attrs.define
class RPCVersionCapError(RPCError):
    """The call requires a version above the client's version cap.

    :param version: the version that the call requires.
    :param version_cap: the highest version that the client may request.
    :param reason: where the cap comes from, as a noun phrase, if it follows the services that are up; else "".
    """

    version: str
    version_cap: str
    reason: str = ""

    def __str__(self) -> str:
        text = f"version {self.version} is above the version cap {self.version_cap}"
        if self.reason:
            text += (
                f", which is {self.reason}; send an older version (see Client.choose_version), or upgrade the services"
            )
        return text


@attrs.define
class MessageFormatError(RPCError):
    """A message does not conform to the wire protocol.

    :param problem: what is wrong, without the message's contents.
    """

    problem: str

    def __str__(self) -> str:
        return f"malformed message: {self.problem}"


@attrs.define
class NoSuchMethodError(RPCError):
    """No exposed method has this name; private and undecorated methods are not exposed.

    :param method: the name that was called.
    :param served: interfaces of the service that have such a method; "" if there are none or it is unknown.
    :param similar: the name of the interface's method that was probably meant; "" if none is similar.
    """

    method: str
    served: str = ""
    similar: str = ""

    def __str__(self) -> str:
        if self.served:
            return f"the called interface exposes no method {self.method!r}; it is exposed in {self.served}"
        if self.similar:
            return f"the service exposes no method {self.method!r}; did you mean {self.similar!r}?"
        return f"the service exposes no method {self.method!r}; check the name, or decorate it with @rpc.expose"


@attrs.define
class UnsupportedVersionError(RPCError):
    """No endpoint serves this namespace and version.

    :param version: the requested version.
    :param method: the name that was called.
    :param namespace: the requested namespace, or None.
    :param served: the versions and namespaces that the service has; "" if unknown.
    """

    version: str
    method: str | None = None
    namespace: str | None = None
    served: str = ""

    def __str__(self) -> str:
        where = "" if self.namespace is None else f" of namespace {self.namespace!r}"
        served = f"; the service has {self.served}" if self.served else ""
        return f"version {self.version}{where} is not served (called: {self.method!r}){served}"


@attrs.define
class InvalidArgumentsError(RPCError):
    """The arguments do not match the method's signature or are not JSON; the method did not run.

    :param method: the name that was called.
    :param problem: which arguments are missing, unexpected or not serializable.
    """

    method: str
    problem: str

    def __str__(self) -> str:
        return f"invalid arguments for {self.method!r}: {self.problem}"


@attrs.define
class NotAllowedError(RPCError):
    """The caller may not call the method, which has ``allow=``; the method did not run.

    :param method: the name that was called.
    :param identity: the caller's identity; "" if it is not known.
    :param needed: what the method asks for, as a noun phrase.
    :param problem: why the identity is not known; "" if it is.
    """

    method: str
    identity: str
    needed: str
    problem: str = ""

    def __str__(self) -> str:
        if self.problem:
            return f"the caller of {self.method!r} is unknown: {self.problem}; the method needs {self.needed}"
        return f"{self.identity!r} may not call {self.method!r}, which needs {self.needed}"


@attrs.define
class ResultNotSerializableError(RPCError):
    """The method ran, but its result is not of the annotated type, or is not serializable as JSON.

    :param method: the name that was called.
    :param problem: which value is wrong, and its type.
    """

    method: str
    problem: str

    def __str__(self) -> str:
        return f"{self.method!r} ran, but its result cannot be sent: {self.problem}"


@attrs.define
class MethodTimeoutError(RPCError):
    """The method was cancelled: by its own timeout, by the caller's deadline, or because its server shut down.

    :param method: the name that was called.
    :param timeout: seconds that it ran.
    :param reason: the reason and the remedy if the server shut down; "" for a timeout or deadline.
    """

    method: str
    timeout: float
    reason: str = ""

    def __str__(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        return f"{self.method!r} was cancelled after {self.timeout:g} s{why}"


@attrs.define
class EventTimeoutError(RPCError):
    """A handler of an event was cancelled: it did not end within its timeout.

    :param handler: name of the method.
    :param timeout: the timeout in seconds.
    """

    handler: str
    timeout: float

    def __str__(self) -> str:
        return f"{self.handler!r} did not handle the event within {self.timeout:g} s and was cancelled"


@attrs.define
class RedeliveredError(RPCError):
    """A request of a method that is not idempotent was redelivered; it is unknown whether the method ran.

    :param method: the name that was called.
    """

    method: str

    def __str__(self) -> str:
        return (
            f"{self.method!r} was redelivered but not run: it may have run before and is not idempotent; "
            "check its effects before you call it again"
        )


@attrs.define
class ServiceDrainingError(RPCError):
    """The service is shutting down and rejected a call that belongs to no operation in progress there.

    :param target: topic and server: "compute.host1".
    """

    target: str

    def __str__(self) -> str:
        return (
            f"{self.target} is draining and accepts only calls that belong to operations in progress there; "
            "call another server of the topic, or retry when it has restarted"
        )


@attrs.define
class QuarantinedError(RPCError):
    """A poison message: every process that ran it died. It is quarantined and not run again.

    :param method: the name that was called.
    :param deliveries: number of deliveries to processes that died.
    """

    method: str
    deliveries: int

    def __str__(self) -> str:
        return (
            f"{self.method!r} is quarantined: {self.deliveries} processes died while running it; "
            "check their logs, and the request in the quarantine queue"
        )


@attrs.define
class UnconfirmedError(RPCError):
    """The connection was lost before the publisher confirm; it is unknown whether the broker has the message.

    :param target: target as text.
    :param problem: what happened.
    """

    target: str
    problem: str

    def __str__(self) -> str:
        return f"it is unknown whether the broker accepted the message to {self.target}: {self.problem}"


@attrs.define
class TooManyCallsError(RPCError):
    """The client's limit of pending calls is reached; the call was not sent.

    :param bound: maximum number of pending calls.
    """

    bound: int

    def __str__(self) -> str:
        return f"{self.bound} calls are already waiting for a reply; wait for some of them before you call again"


@attrs.define
class RemoteError(RPCError):
    """The remote method raised an exception whose class is not registered here; see :func:`novasvc.rpc.error`.

    A method that lets a RemoteError through passes the exception on: its caller gets it under the same name.

    :param exc_type: class name of the remote exception.
    :param value: text of the remote exception.
    :param traceback: lines of the remote traceback; empty unless the server sends them.
    :param module: module of the remote class. "novasvc.rpc.errors" is an error of a call that the method made: of
        that call's arguments, for instance, and not of this one's.
    :param reason: why the exception was not raised as itself although its class is registered here; else "".
    """

    exc_type: str
    value: str
    traceback: Sequence[str] = ()
    module: str = ""
    reason: str = ""

    def __str__(self) -> str:
        text = with_origin(self, f"remote error: {self.exc_type} {self.value}")
        return f"{text}; not raised as {self.module}.{self.exc_type}: {self.reason}" if self.reason else text


class ReactorThreadError(RPCError):
    """A blocking call was made in the reactor's thread, which would wait for itself."""

    def __str__(self) -> str:
        return (
            "a blocking call in the reactor's thread would wait for itself for ever; await a call of "
            "novasvc.rpc.Client there, such as manager.attachments.rpc, or run the caller in a thread: by "
            "@rpc.expose(blocking=True) or manager.attachments.run_blocking"
        )


class ReactorStoppedError(RPCError):
    """A blocking call was made while the reactor of its client does not run."""

    def __str__(self) -> str:
        return (
            "the reactor of this client does not run, so no reply can arrive; call while it runs, or, in a program "
            "without a reactor, make the client with novasvc.blocking.connect()"
        )


@attrs.define
class ForkedClientError(RPCError):
    """A blocking client, or the reactor, belongs to the process that this process was forked from.

    :param parent: the process id.
    """

    parent: int

    def __str__(self) -> str:
        return (
            f"the client's reactor runs in process {self.parent}, which forked this one, and does not run here; fork "
            "first, and call novasvc.blocking.connect() in each process afterwards"
        )
