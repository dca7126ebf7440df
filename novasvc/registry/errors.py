"""Errors of the service registry and its database."""

import attrs

from novasvc.errors import NovasvcError, ProblemError


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
    """Another process holds the lock for longer than the busy timeout, or a deadlock was ended; retryable.

    :ivar is_deadlock: the database has ended this transaction in favour of another one, so another attempt may succeed
        at once. False for an error that a conductor has answered.
    """

    remedy = "end the transaction that holds the lock, or its process"
    is_deadlock = False


class DatabaseBusyError(DatabaseUnavailableError):
    """The queue of requests that wait for the database in this process is full; retryable."""

    remedy = "wait, or spread the load over more processes"


class CircuitOpenError(DatabaseUnavailableError):
    """A conductor refused the request, because its database does not answer; nothing was done; retryable."""

    remedy = "check that the database server is running and reachable from the conductor"


class DatabaseReadOnlyError(DatabaseError):
    """The database file, its directory or the server is read-only."""

    remedy = "make the file and its directory writable for this user, or let database_url lead to the primary server"


class DatabaseServerReadOnlyError(DatabaseReadOnlyError, DatabaseUnavailableError):
    """The server is read-only, as a replica is, or an old primary after a failover; retryable.

    The connections to it are made again, because database_url may lead to another server now.
    """

    remedy = "wait for the end of the failover, or let database_url lead to the primary server"


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


@attrs.define
class ServiceTwinError(NovasvcError):
    """Another start of the same service is alive; at most one may be.

    :param service: "binary@host".
    :param incarnation: number of the other start.
    :param machine: name of the machine of the other start.
    :param pid: process of the other start.
    :param since: when the other start began, by the database's clock, UTC.
    :param quiet: seconds since the other start was last heard of.
    :param beats: the row's report_count. If it grows, the other start is alive for certain.
    """

    service: str
    incarnation: int
    machine: str
    pid: int
    since: str
    quiet: float
    beats: int

    def __str__(self) -> str:
        return (
            f"service {self.service} runs already: on machine {self.machine!r}, process {self.pid}, since {self.since} "
            f"UTC, last heard of {max(0.0, self.quiet):.0f} s ago; stop that one, or give this one another host"
        )


@attrs.define
class ServiceSupersededError(NovasvcError):
    """A later start of the same service has taken its place; this one must not work any more.

    :param service: "binary@host".
    :param incarnation: number of the start that was superseded.
    :param latest: number of the latest start.
    :param machine: name of the machine of the latest start.
    :param pid: process of the latest start.
    :param since: when the latest start began, by the database's clock, UTC.
    """

    service: str
    incarnation: int
    latest: int
    machine: str
    pid: int
    since: str

    def __str__(self) -> str:
        return (
            f"incarnation {self.incarnation} of service {self.service} was superseded by incarnation {self.latest}: on "
            f"machine {self.machine!r}, process {self.pid}, since {self.since} UTC; end this one"
        )


@attrs.define
class ServiceForcedDownError(NovasvcError):
    """An operator has forced the service down; nothing was written.

    :param service: "binary@host".
    """

    service: str

    def __str__(self) -> str:
        binary, _, host = self.service.partition("@")
        return (
            f"service {self.service} is forced down; once nothing else does its work any more, let it up with "
            f"`novasvc service force-down --unset {host} {binary}`"
        )


class ObserverError(ProblemError):
    """An observer of the fleet cannot be used; the subject is its name."""

    about = "observer {!r}"


@attrs.define
class ObserverSupersededError(NovasvcError):
    """Another process observes the fleet under the same name now.

    :param observer: name of the observer.
    :param fencing: fencing number of the process that was refused.
    :param latest: fencing number of the other process.
    """

    observer: str
    fencing: int
    latest: int

    def __str__(self) -> str:
        return (
            f"observer {self.observer!r}: another process has taken over (fencing number {self.latest}, this one has "
            f"{self.fencing}); give another name to an observer that is to be told as well"
        )


@attrs.define
class OperationNotFoundError(NovasvcError):
    """There is no operation with this number; those that ended long ago are deleted.

    :param operation: the number.
    """

    operation: int

    def __str__(self) -> str:
        return f"operation {self.operation} could not be found; `novasvc fleet list` lists the operations"


class OperationConflictError(ProblemError):
    """Another operation has some of the same nodes, and has not ended; the subject describes the operation."""


class OperationStateError(ProblemError):
    """An operation cannot be resumed, aborted or continued in its state; the subject describes the operation."""
