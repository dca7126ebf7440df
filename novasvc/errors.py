"""Every error that novasvc raises on purpose.

One root, :class:`NovasvcError`. An error carries its data as attributes (and as ``args``, in the
same order), and says in its text what went wrong, with which value, where, and what to do.
Secrets are masked before they get here.

The errors that are listed in :data:`WIRE_ERRORS` cross the wire under
their own name and are rebuilt at the caller; every other error reaches a remote caller as a
:class:`RemoteError`.
"""

import re
from collections.abc import Sequence
from traceback import extract_tb

import attrs


class NovasvcError(Exception):
    """The root of all errors of this package."""


# -- settings and start-up ---------------------------------------------------------------------


@attrs.define
class SettingError(NovasvcError):
    """One setting that cannot be used.

    :param setting: its name as the person wrote it.
    :param value: what was given, as text, secrets masked; None if nothing was given.
    :param source: where it came from: a file and its table, a variable, an option, "default".
    :param problem: what is wrong, without a full stop.
    :param remedy: what would be right, without a full stop.
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
    """All that is wrong with a configuration, reported together.

    :param errors: at least one.
    """

    errors: Sequence[SettingError]

    def __str__(self) -> str:
        if len(self.errors) == 1:
            return f"the configuration has an error: {self.errors[0]}"
        lines = "".join(f"\n  - {error}" for error in self.errors)
        return f"the configuration has {len(self.errors)} errors:{lines}"


SettingsError = ConfigurationError
"""The old name of :class:`ConfigurationError`; it goes with 1.0."""


@attrs.define
class ManagerError(NovasvcError):
    """A manager that cannot be made.

    :param path: dotted name of the class, or the class's own name.
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
    """A directory that a node needs and cannot use.

    :param purpose: "temporary directory" or "state directory".
    :param path: where it was looked for.
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
    """An address that a server cannot listen on.

    :param address: "127.0.0.1:8000", "unix socket /run/x", or the endpoint's description.
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
    """A WSGI application that cannot be served.

    :param app: its name.
    :param path: of the paste configuration.
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
    """A node that could not start.

    :param node: "binary@host".
    :param step: what it was doing: "register", "init_host", "pre_start_hook", ...
    :param problem: the reason, in one line.
    """

    node: str
    step: str
    problem: str

    def __str__(self) -> str:
        return f"{self.node} did not start: {self.step} failed: {self.problem}"


@attrs.define
class StateError(NovasvcError):
    """An input that a state machine does not take in its present state.

    :param what: whose state: "node novasvc-agent@host1".
    :param state: the present state's name.
    :param wanted: what was asked of it.
    """

    what: str
    state: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.what} is {self.state} and cannot {self.wanted}"


@attrs.define
class NoThreadError(NovasvcError):
    """A function that blocks was not begun: there is no thread for it, and no place to wait for one.

    :param function: its dotted name.
    :param problem: why, and what to do.
    """

    function: str
    problem: str

    def __str__(self) -> str:
        return f"{self.function} was not begun: {self.problem}"


# -- declarations that a manager's author got wrong --------------------------------------------


@attrs.define
class DeclarationError(NovasvcError):
    """A manager whose decorated methods contradict each other or themselves.

    :param where: "module.Class.method" as the author wrote it.
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
    """A database that refused what was asked; the root of the distinct reasons.

    :param url: the database's URL, its password masked.
    :param problem: what it said, in one line.
    """

    url: str
    problem: str

    remedy = "see the server's log"

    def __str__(self) -> str:
        return f"database {self.url}: {self.problem}; {self.remedy}"


class DatabaseUnavailableError(DatabaseError):
    """No answer, a refused or lost connection, or no free worker in time. Worth a retry."""

    remedy = "check that the server runs and can be reached from this host"


class DatabaseLockedError(DatabaseUnavailableError):
    """Another process holds the lock for longer than the busy timeout. Worth a retry."""

    remedy = "end the other process's transaction, or the process that holds the lock"


class DatabaseReadOnlyError(DatabaseError):
    """The file, its directory or the server is read-only."""

    remedy = "make the file and its directory writable for this user, or choose another database_url"


class DatabaseFullError(DatabaseError):
    """No space left where the database lives."""

    remedy = "free space on its disk, or move it"


class DatabaseConflictError(DatabaseError):
    """A live row has this unique key already."""

    remedy = "choose another host, binary or topic, or delete the other service"


class DatabaseCorruptError(DatabaseError):
    """The file is not a database, or is damaged."""

    remedy = "restore it from a backup, or move it away to begin with an empty one"


class DatabaseRefusedError(DatabaseError):
    """Wrong password, no such database, no permission, no such driver, a path that cannot be opened."""

    remedy = "check user, password, database name, driver and permissions in database_url"


@attrs.define
class DatabaseDriverError(DatabaseRefusedError):
    """The package by which Python reaches this kind of database is not installed.

    :param url: the database's URL, its password masked.
    :param problem: which package it is.
    :param remedy: the command that installs it.
    """

    remedy: str


@attrs.define
class DatabaseNewerError(DatabaseError):
    """The schema was made by a newer version of novasvc.

    :param url: the database's URL, its password masked.
    :param problem: which revision was found.
    :param found: the revision in the database.
    :param known: the newest revision that this version knows.
    """

    found: str
    known: str

    remedy = "install the newer novasvc on this host, or give another database_url"


@attrs.define
class MigrationNeededError(DatabaseError):
    """The schema is older than this version needs, and migrating was not allowed.

    :param url: the database's URL, its password masked.
    :param problem: which revision was found.
    :param found: the revision in the database; None if it is empty.
    :param known: the newest revision that this version knows.
    """

    found: str | None
    known: str

    remedy = "run `novasvc db upgrade`, or start without --no-migrate"


@attrs.define
class ServiceNotFoundError(NovasvcError):
    """No live row for this service.

    :param service: its id, its uuid, or "binary@host".
    """

    service: str

    def __str__(self) -> str:
        return f"service {self.service} could not be found; `novasvc service list` shows those that are registered"


# -- RPC ---------------------------------------------------------------------------------------


class RPCError(NovasvcError):
    """The root of what can go wrong with a call."""


@attrs.define
class InvalidTargetError(RPCError):
    """A target that cannot be used for this.

    :param target: as text.
    :param problem: what is wrong.
    """

    target: str
    problem: str

    def __str__(self) -> str:
        return f"target {self.target}: {self.problem}"


def _all_down(registered: int) -> str:
    """Say that no service of a target is up."""
    if not registered:
        return "no such service is registered"
    return "the only such service is down" if registered == 1 else f"all {registered} such services are down"


@attrs.define
class RPCTimeoutError(RPCError):
    """No reply within the deadline, or no sign of life for as long as the caller bears with that.

    :param target: as text.
    :param method: the method that was called.
    :param timeout: seconds that were waited.
    :param silent: it was a sign of life that did not come.
    :param unconfirmed: why the broker has not confirmed the message; empty if it has.
    :param registered: services that the registry has for the target; None if the caller could not ask the registry.
    :param up: those of them that the registry has as up.
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
                f"no reply from {self.target} to {self.method!r} within {self.timeout:.4g} s, and whether the message "
                f"was taken is not known: {self.unconfirmed}"
            )
        if self.silent:
            return (
                f"no sign of life from {self.target} while {self.method!r} was to run, for {self.timeout:g} s; "
                "see whether the service lives, and is not too busy to begin"
            )
        if (
            self.registered and not self.up
        ):  # what is not registered may run all the same: a program with oslo.messaging
            return (
                f"no reply from {self.target} to {self.method!r} within {self.timeout:.4g} s, and the registry says: "
                f"{_all_down(self.registered)}; start one, and see the service's log for whether the method has run"
            )
        return (
            f"no reply from {self.target} to {self.method!r} within {self.timeout:.4g} s; "
            "it may still run: look at the service's log, or give a longer timeout"
        )


@attrs.define
class UndeliverableError(RPCError):
    """No queue is bound for the target.

    :param target: as text.
    :param registered: services that the registry has for it; None if the caller could not ask the registry.
    :param up: those of them that the registry has as up.
    """

    target: str
    registered: int | None = None
    up: int = 0

    def __str__(self) -> str:
        unbound = "no queue is bound for it"
        if self.up:
            return (
                f"{self.target} cannot be reached: {unbound}, although the registry has {self.up} of "
                f"{self.registered} such services as up; see the log of the service, and whether it has the same "
                "control_exchange and transport_url"
            )
        if self.registered:
            return f"nobody serves {self.target}: {unbound}, and {_all_down(self.registered)}; start one"
        if self.registered is not None:
            unbound += ", and no such service is registered"
        return f"nobody serves {self.target}: {unbound}; start a service with this topic, or check topic and host"


@attrs.define
class TransportFullError(RPCError):
    """A queue, or the sender's own buffer, is at its bound; the message was not taken.

    :param target: as text.
    :param bound: messages that wait there.
    :param waiting_for: why the messages are still in the sender's buffer; empty if it is the queue that is full.
    """

    target: str
    bound: int
    waiting_for: str = ""

    def __str__(self) -> str:
        if self.waiting_for:
            return (
                f"the message to {self.target} was not sent: the send buffer of this process is full, {self.bound} "
                f"messages wait in it ({self.waiting_for}); send more slowly, and see the broker"
            )
        return f"the queue of {self.target} holds {self.bound} messages and takes no more; slow down or add workers"


@attrs.define
class TransportClosedError(RPCError):
    """The transport was closed before or while this was under way.

    :param operation: what was asked of it.
    """

    operation: str

    def __str__(self) -> str:
        return f"the transport is closed: {self.operation} is not possible"


@attrs.define
class RPCVersionCapError(RPCError):
    """The client's version cap forbids the version it would have to ask for.

    :param version: the version that the call needs.
    :param version_cap: the highest version that may be sent.
    """

    version: str
    version_cap: str

    def __str__(self) -> str:
        return f"version {self.version} cannot be sent: the version cap is {self.version_cap}"


@attrs.define
class MessageFormatError(RPCError):
    """A message that is not what the wire says.

    :param problem: what is wrong with it, without its contents.
    """

    problem: str

    def __str__(self) -> str:
        return f"the message cannot be read: {self.problem}"


@attrs.define
class NoSuchMethodError(RPCError):
    """No exposed method has this name. Private and undecorated methods do not exist for a caller.

    :param method: the name that was called.
    :param served: interfaces of the service that have such a method; "" if there are none, or nobody said.
    """

    method: str
    served: str = ""

    def __str__(self) -> str:
        if self.served:
            return f"no method {self.method!r} is exposed in the interface that was called, but in {self.served}"
        return f"the service exposes no method {self.method!r}; check the name, or expose it there by @rpc.expose"


@attrs.define
class UnsupportedVersionError(RPCError):
    """No endpoint serves this namespace and version.

    :param version: what was asked for.
    :param method: the name that was called.
    :param namespace: None is "no namespace".
    :param served: what the service has instead; "" if nobody said.
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
    """The arguments do not fit the method's signature, or cannot be sent; it was not run.

    :param method: the name that was called.
    :param problem: which arguments are missing, unknown, or no JSON.
    """

    method: str
    problem: str

    def __str__(self) -> str:
        return f"{self.method!r} cannot be called so: {self.problem}"


@attrs.define
class ResultNotSerializableError(RPCError):
    """The method ran, and returned what JSON cannot hold.

    :param method: the name that was called.
    :param problem: which value, of which type.
    """

    method: str
    problem: str

    def __str__(self) -> str:
        return f"{self.method!r} ran, but its result cannot be sent: {self.problem}"


@attrs.define
class MethodTimeoutError(RPCError):
    """The method was cancelled: at its own timeout, at the caller's deadline, or because its server shut down.

    :param method: the name that was called.
    :param timeout: seconds it ran.
    :param reason: why, and what to do, where the server shut down; "" is a deadline of the call.
    """

    method: str
    timeout: float
    reason: str = ""

    def __str__(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        return f"{self.method!r} was cancelled after {self.timeout:g} s{why}"


@attrs.define
class RedeliveredError(RPCError):
    """A method that must not run twice was delivered twice; whether it ran is not known.

    :param method: the name that was called.
    """

    method: str

    def __str__(self) -> str:
        return (
            f"{self.method!r} was not run again: it was delivered before, may have run, and is not idempotent; "
            "see what it did before calling again"
        )


@attrs.define
class ServiceDrainingError(RPCError):
    """A service that stops was called, and the call belongs to no operation under way there: it was not run.

    :param target: topic and server: "compute.host1".
    """

    target: str

    def __str__(self) -> str:
        return (
            f"{self.target} is draining and takes in only calls of operations under way there; "
            "call another server of its topic, or this one when it is back"
        )


@attrs.define
class QuarantinedError(RPCError):
    """A request whose process died each time it ran; it is kept aside and not run again.

    :param method: the name that was called.
    :param deliveries: how often it was delivered to a process that then died.
    """

    method: str
    deliveries: int

    def __str__(self) -> str:
        return (
            f"{self.method!r} is not run again: it was delivered {self.deliveries} times to processes that died before "
            "they answered it; see the logs of those that died, and the queue of quarantined messages"
        )


# -- the broker --------------------------------------------------------------------------------


@attrs.define
class BrokerError(RPCError):
    """A broker that refused what was asked; the root of the distinct reasons.

    :param broker: its URL, the password masked.
    :param problem: what it said, or what was seen, in one line.
    """

    broker: str
    problem: str

    remedy = "see the broker's log"

    def __str__(self) -> str:
        return f"broker {self.broker}: {self.problem}; {self.remedy}"


class BrokerUnavailableError(BrokerError):
    """No answer, a refused or a lost connection. Worth a retry."""

    remedy = "check that it runs and can be reached from this host"


class BrokerRefusedError(BrokerUnavailableError):
    """It answered and will not have us: credentials, virtual host, permission, TLS. Worth a slow retry."""

    remedy = "correct transport_url or the TLS settings, or the user's permissions on the broker"


class BrokerLimitError(BrokerRefusedError):
    """A limit of the broker is reached: of connections, channels or queues. Worth a slow retry."""

    remedy = "raise the limit on the broker, or close or delete what is not needed"


class BrokerFailedError(BrokerUnavailableError):
    """It answered with an error of its own, or takes what we send for a mistake. Worth a retry."""

    remedy = "see the broker's log"


class BrokerBlockedError(BrokerError):
    """It takes no messages now, being short of memory or disk; the message was not sent."""

    remedy = "free its memory or disk; what consumes goes on meanwhile"


class DeclarationMismatchError(BrokerError):
    """A queue or exchange is there already, declared with other values than ours."""

    remedy = "give all services the same queue settings, or delete it on the broker while nobody uses it"


class DeclarationDeniedError(BrokerError):
    """The broker permits no queue of the kind that our settings ask for."""

    remedy = (
        "set amqp_durable_queues or rabbit_quorum_queue for all services and clients of this control exchange, "
        "or permit the feature on the broker"
    )


@attrs.define
class UnconfirmedError(RPCError):
    """The connection was lost before the broker said that it has the message; it may have it or not.

    :param target: as text.
    :param problem: what happened.
    """

    target: str
    problem: str

    def __str__(self) -> str:
        return f"whether the message to {self.target} was taken is not known: {self.problem}"


@attrs.define
class TooManyCallsError(RPCError):
    """A client waits for as many replies as it may; the call was not sent.

    :param bound: calls that may wait at a time.
    """

    bound: int

    def __str__(self) -> str:
        return f"{self.bound} calls wait for their replies already; wait for some of them before calling again"


@attrs.define
class RemoteError(RPCError):
    """An exception of the other side whose class is not known here.

    :param exc_type: its class name over there.
    :param value: its text.
    :param traceback: lines, empty unless the other side sends them.
    :param module: the module of its class over there.
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
    """A periodic task was cancelled at its timeout.

    :param task: its name.
    :param timeout: seconds it was given.
    """

    task: str
    timeout: float

    def __str__(self) -> str:
        return f"periodic task {self.task!r} was cancelled after {self.timeout:g} s"


@attrs.define
class UnknownTaskError(NovasvcError):
    """No periodic task has this name.

    :param task: the name that was asked for.
    :param known: the names that exist.
    """

    task: str
    known: Sequence[str]

    def __str__(self) -> str:
        known = ", ".join(self.known) or "none"
        return f"no periodic task is named {self.task!r}; there are: {known}"


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
"""The errors that cross the wire as what they are, most of them under their own name; their ``args`` are JSON."""


def describe(error: BaseException) -> str:
    """Say in one line what was raised, and where."""
    text = _PASSWORD.sub(r"\1***@", " ".join(str(error).split()))
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = extract_tb(error.__traceback__)
    # The machinery on the way is nobody's mistake.
    own = [frame for frame in frames if "/twisted/" not in frame.filename and not frame.filename.startswith("<frozen")]
    place = next(iter(reversed(own or frames)), None)
    return what if place is None else f"{what} ({place.filename}:{place.lineno} in {place.name})"


_PASSWORD = re.compile(r"(://[^:/@\s]*:)[^@/\s]*@")
