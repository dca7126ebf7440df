"""The exceptions of novasvc, under one root: :class:`NovasvcError`.

An error carries its data as attributes and, in the same order, as ``args``. Its text says what went wrong, with which
value, where, and what to do. Callers mask secrets before they construct an error.

The errors in :data:`WIRE_ERRORS` cross the wire under their own names and are rebuilt at the caller; all others
reach a remote caller as :class:`RemoteError`.
"""

import re
from collections.abc import Sequence
from traceback import extract_tb

import attrs


class NovasvcError(Exception):
    """Base class of all errors of novasvc."""


# -- settings and start-up ---------------------------------------------------------------------


@attrs.define
class SettingError(NovasvcError):
    """One invalid, unknown or missing setting.

    :param setting: the name as the source spells it: "report_interval", "NOVASVC_HOST", "--host".
    :param value: the value as text, secrets masked; None if there is none.
    :param source: origin of the value: a file and its section or table, a variable, an option, "default".
    :param problem: what is wrong, without a full stop.
    :param remedy: what to do, without a full stop.
    """

    setting: str
    value: str | None
    source: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        given = "" if self.value is None else f" = {self.value}"
        return f"{self.setting}{given} (from {self.source}): {self.problem}; {self.remedy}"


@attrs.define
class ConfigurationError(NovasvcError):
    """All errors in a configuration.

    :param errors: at least one error.
    """

    errors: Sequence[SettingError]

    def __str__(self) -> str:
        if len(self.errors) == 1:
            return f"the configuration has an error: {self.errors[0]}"
        lines = "".join(f"\n  - {error}" for error in self.errors)
        return f"the configuration has {len(self.errors)} errors:{lines}"


SettingsError = ConfigurationError
"""Old name of :class:`ConfigurationError`; deprecated, to be removed in 1.0."""


@attrs.define
class ManagerError(NovasvcError):
    """A manager class cannot be imported or instantiated.

    :param path: dotted name of the class, or its bare name.
    :param problem: what happened, in one line.
    :param remedy: what to do.
    """

    path: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"manager {self.path!r}: {self.problem}; {self.remedy}"


@attrs.define
class DirectoryError(NovasvcError):
    """A required directory is missing or not writable.

    :param purpose: "temporary directory", "state directory".
    :param path: path of the directory.
    :param problem: what happened, in one line.
    :param remedy: what to do.
    """

    purpose: str
    path: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.purpose} {self.path!r}: {self.problem}; {self.remedy}"


@attrs.define
class ListenError(NovasvcError):
    """A server cannot bind to its address or listen on it.

    :param address: "127.0.0.1:8000", "unix socket /run/x", or an endpoint description.
    :param problem: what happened, in one line.
    :param remedy: what to do.
    """

    address: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"cannot listen on {self.address}: {self.problem}; {self.remedy}"


@attrs.define
class AppError(NovasvcError):
    """A WSGI application cannot be loaded.

    :param app: name of the application.
    :param path: path of the Paste Deploy configuration file.
    :param problem: what happened, in one line.
    :param remedy: what to do.
    """

    app: str
    path: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"application {self.app!r} of {self.path}: {self.problem}; {self.remedy}"


@attrs.define
class StartError(NovasvcError):
    """A node failed to start.

    :param node: "binary@host".
    :param step: the step that failed: "register", "init_host", "pre_start_hook", ...
    :param problem: the reason, in one line.
    """

    node: str
    step: str
    problem: str

    def __str__(self) -> str:
        return f"{self.node} did not start: {self.step} failed: {self.problem}"


@attrs.define
class StateError(NovasvcError):
    """An operation is not allowed in the current state.

    :param what: owner of the state: "node novasvc-agent@host1".
    :param state: name of the current state.
    :param wanted: the requested operation, as a verb.
    """

    what: str
    state: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.what} is {self.state} and cannot {self.wanted}"


@attrs.define
class NoThreadError(NovasvcError):
    """A blocking function was not started: all threads are busy and the thread pool's queue is full.

    :param function: dotted name of the function.
    :param problem: the reason and the remedy.
    """

    function: str
    problem: str

    def __str__(self) -> str:
        return f"{self.function} was not started: {self.problem}"


# -- errors of a manager's author  --------------------------------------------


@attrs.define
class DeclarationError(NovasvcError):
    """A decorator on a manager's method is used wrongly, or contradicts another one.

    :param where: "module.Class.method".
    :param problem: what is wrong.
    :param remedy: what to do.
    """

    where: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}; {self.remedy}"


# -- the database ------------------------------------------------------------------------------


@attrs.define
class DatabaseError(NovasvcError):
    """A database operation failed; base class of the specific reasons.

    :param url: URL of the database, password masked.
    :param problem: the database's message, in one line.
    """

    url: str
    problem: str

    remedy = "see the log of the database server"

    def __str__(self) -> str:
        return f"database {self.url}: {self.problem}; {self.remedy}"


class DatabaseUnavailableError(DatabaseError):
    """The database does not answer, the connection failed or was lost, or no connection was free in time; retryable."""

    remedy = "check that the database server is running and reachable from this host"


class DatabaseLockedError(DatabaseUnavailableError):
    """Another process holds the lock for longer than the busy timeout; retryable."""

    remedy = "end the transaction that holds the lock, or its process"


class DatabaseReadOnlyError(DatabaseError):
    """The database file, its directory or the server is read-only."""

    remedy = "make the file and its directory writable for this user, or set another database_url"


class DatabaseFullError(DatabaseError):
    """No space left on the disk of the database."""

    remedy = "free space on its disk, or move the database"


class DatabaseConflictError(DatabaseError):
    """Unique key violation: a row that is not deleted has the same key."""

    remedy = "choose another host, binary or topic, or delete the other service"


class DatabaseCorruptError(DatabaseError):
    """The file is not a database or is corrupt."""

    remedy = "restore it from a backup, or move it away to start with an empty database"


class DatabaseRefusedError(DatabaseError):
    """Access denied: wrong password, no such database, no permission, unknown driver, or an unusable path."""

    remedy = "check user, password, database name and driver in database_url, and the user's permissions"


@attrs.define
class DatabaseDriverError(DatabaseRefusedError):
    """The Python driver of this database is not installed.

    :param url: URL of the database, password masked.
    :param problem: which package is missing.
    :param remedy: the command that installs it.
    """

    remedy: str


@attrs.define
class DatabaseNewerError(DatabaseError):
    """The schema was created by a newer version of novasvc.

    :param url: URL of the database, password masked.
    :param problem: which revision was found.
    :param found: the revision of the database.
    :param known: the newest revision that this version knows.
    """

    found: str
    known: str

    remedy = "install the newer novasvc on this host, or set another database_url"


@attrs.define
class MigrationNeededError(DatabaseError):
    """The schema is older than this version requires, and migration is disabled.

    :param url: URL of the database, password masked.
    :param problem: which revision was found.
    :param found: the revision of the database; None if the database is empty.
    :param known: the newest revision that this version knows.
    """

    found: str | None
    known: str

    remedy = "run `novasvc db upgrade`, or start without --no-migrate"


@attrs.define
class ServiceNotFoundError(NovasvcError):
    """The registry has no such service; deleted rows do not count.

    :param service: id, UUID or "binary@host".
    """

    service: str

    def __str__(self) -> str:
        return f"service {self.service} could not be found; `novasvc service list` lists the registered services"


# -- RPC ---------------------------------------------------------------------------------------


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
    """Describe a target none of whose registered services is up."""
    if not registered:
        return "no such service is registered"
    return "the only such service is down" if registered == 1 else f"all {registered} such services are down"


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
    """

    target: str
    method: str
    timeout: float
    silent: bool = False
    unconfirmed: str = ""
    registered: int | None = None
    up: int = 0

    def __str__(self) -> str:
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
                f"registry {_all_down(self.registered)}: start one, and check the service's log whether the method ran"
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
            return f"no server for {self.target}: {unbound}, and {_all_down(self.registered)}; start one"
        if self.registered is not None:
            unbound += ", and no such service is registered"
        return f"no server for {self.target}: {unbound}; start a service with this topic, or check topic and host"


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
    """

    version: str
    version_cap: str

    def __str__(self) -> str:
        return f"version {self.version} is above the version cap {self.version_cap}"


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
    """

    method: str
    served: str = ""

    def __str__(self) -> str:
        if self.served:
            return f"the called interface exposes no method {self.method!r}; it is exposed in {self.served}"
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
class ResultNotSerializableError(RPCError):
    """The method ran, but its result is not serializable as JSON.

    :param method: the name that was called.
    :param problem: which value is not serializable, and its type.
    """

    method: str
    problem: str

    def __str__(self) -> str:
        return f"{self.method!r} ran, but its result is not serializable: {self.problem}"


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


# -- the broker --------------------------------------------------------------------------------


@attrs.define
class BrokerError(RPCError):
    """A broker operation failed; base class of the specific reasons.

    :param broker: URL of the broker, password masked.
    :param problem: the broker's message or what was observed, in one line.
    """

    broker: str
    problem: str

    remedy = "see the broker's log"

    def __str__(self) -> str:
        return f"broker {self.broker}: {self.problem}; {self.remedy}"


class BrokerUnavailableError(BrokerError):
    """The broker does not answer, or the connection failed or was lost; retryable."""

    remedy = "check that the broker is running and reachable from this host"


class BrokerRefusedError(BrokerUnavailableError):
    """Access denied: credentials, virtual host, permissions or TLS; retryable at a slow pace."""

    remedy = "correct transport_url, the TLS settings, or the user's permissions on the broker"


class BrokerLimitError(BrokerRefusedError):
    """The broker's limit of connections, channels or queues is reached; retryable at a slow pace."""

    remedy = "raise the limit on the broker, or close unused connections and delete unused queues"


class BrokerFailedError(BrokerUnavailableError):
    """The broker closed the connection or channel with an error, such as an internal or a protocol error; retryable."""

    remedy = "see the broker's log"


class BrokerBlockedError(BrokerError):
    """The broker blocks publishers because of a memory or disk alarm; the message was not sent."""

    remedy = "free memory or disk space on the broker; consumers continue meanwhile"


class DeclarationMismatchError(BrokerError):
    """A queue or exchange already exists with different properties or arguments."""

    remedy = "give all services the same queue settings, or delete it on the broker while it is unused"


class DeclarationDeniedError(BrokerError):
    """The broker denies a queue feature that our settings require."""

    remedy = (
        "set amqp_durable_queues or rabbit_quorum_queue for all services and clients of this control exchange, "
        "or permit the feature on the broker"
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
    """The remote method raised an exception whose class is not registered here.

    :param exc_type: class name of the remote exception.
    :param value: text of the remote exception.
    :param traceback: lines of the remote traceback; empty unless the server sends them.
    :param module: module of the remote class.
    """

    exc_type: str
    value: str
    traceback: Sequence[str] = ()
    module: str = ""

    def __str__(self) -> str:
        return f"remote error: {self.exc_type} {self.value}"


# -- periodic tasks ----------------------------------------------------------------------------


@attrs.define
class TaskTimeoutError(NovasvcError):
    """A periodic task was cancelled by its timeout.

    :param task: name of the task.
    :param timeout: the timeout in seconds.
    """

    task: str
    timeout: float

    def __str__(self) -> str:
        return f"periodic task {self.task!r} was cancelled after {self.timeout:g} s"


@attrs.define
class UnknownTaskError(NovasvcError):
    """No periodic task has this name.

    :param task: the requested name.
    :param known: the existing names.
    """

    task: str
    known: Sequence[str]

    def __str__(self) -> str:
        known = ", ".join(self.known) or "none"
        return f"no periodic task is named {self.task!r}; existing tasks: {known}"


WIRE_ERRORS: tuple[type[NovasvcError], ...] = (
    DatabaseConflictError,
    DatabaseCorruptError,
    DatabaseError,
    DatabaseFullError,
    DatabaseLockedError,
    DatabaseNewerError,
    DatabaseReadOnlyError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    InvalidArgumentsError,
    MessageFormatError,
    MethodTimeoutError,
    MigrationNeededError,
    NoSuchMethodError,
    QuarantinedError,
    RedeliveredError,
    ResultNotSerializableError,
    ServiceDrainingError,
    ServiceNotFoundError,
    StateError,
    UnknownTaskError,
    UnsupportedVersionError,
)
"""The errors that cross the wire and are rebuilt at the caller; their ``args`` are JSON."""


def describe(error: BaseException) -> str:
    """Describe an exception in one line: class, text with passwords masked, and where it was raised."""
    text = _PASSWORD.sub(r"\1***@", " ".join(str(error).split()))
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = extract_tb(error.__traceback__)
    # Frames of Twisted and of the import system only pass the exception on: name the innermost frame of other code.
    own = [frame for frame in frames if "/twisted/" not in frame.filename and not frame.filename.startswith("<frozen")]
    place = next(iter(reversed(own or frames)), None)
    return what if place is None else f"{what} ({place.filename}:{place.lineno} in {place.name})"


_PASSWORD = re.compile(r"(://[^:/@\s]*:)[^@/\s]*@")
