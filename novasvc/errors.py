"""The exceptions of novasvc, under one root: :class:`NovasvcError`.

Each package defines the errors that it raises. All of them can also be imported from this module, and it is this module
that errors on the wire are named after.

An error carries its data as attributes and, in the same order, as ``args``. Its text says what went wrong, with which
value, where, and what to do. Callers mask secrets before they construct an error.
"""

import re
from importlib import import_module
from traceback import extract_tb
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

if TYPE_CHECKING:
    from novasvc.config.errors import *
    from novasvc.manager import ManagerError as ManagerError
    from novasvc.middleware.errors import *
    from novasvc.net.errors import *
    from novasvc.node.errors import *
    from novasvc.periodic.errors import *
    from novasvc.reactor.threads import NoThreadError as NoThreadError
    from novasvc.registry.errors import *
    from novasvc.rpc.errors import *
    from novasvc.testing.errors import *
    from novasvc.transport.errors import *


class NovasvcError(Exception):
    """Base class of all errors of novasvc."""


@attrs.define
class ProblemError(NovasvcError):
    """An error whose text is "subject: problem; remedy".

    :param subject: the address, path or name that the error is about; a subclass says what it is in ``about``.
    :param problem: what is wrong, in one line, without a full stop.
    :param remedy: what to do, without a full stop.
    """

    about: ClassVar[str] = "{}"
    """Format of the subject in the text."""

    subject: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.about.format(self.subject)}: {self.problem}; {self.remedy}"


class DeclarationError(ProblemError):
    """A decorator on a manager's method is used wrongly, or contradicts another one.

    The subject is "module.Class.method".
    """


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


_SOURCES = (
    "novasvc.rpc.errors",
    "novasvc.registry.errors",
    "novasvc.transport.errors",
    "novasvc.periodic.errors",
    "novasvc.config.errors",
    "novasvc.node.errors",
    "novasvc.net.errors",
    "novasvc.manager",
    "novasvc.middleware.errors",
    "novasvc.reactor.threads",
    "novasvc.testing.errors",
)
"""The modules that define the other public errors."""

WIRE_ERRORS = frozenset(
    {
        "CircuitOpenError",
        "DatabaseBusyError",
        "DatabaseConflictError",
        "DatabaseCorruptError",
        "DatabaseError",
        "DatabaseFullError",
        "DatabaseLockedError",
        "DatabaseNewerError",
        "DatabaseReadOnlyError",
        "DatabaseRefusedError",
        "DatabaseServerReadOnlyError",
        "DatabaseUnavailableError",
        "InvalidArgumentsError",
        "MessageFormatError",
        "MethodTimeoutError",
        "MiddlewareError",
        "MigrationNeededError",
        "NoSuchMethodError",
        "NotAllowedError",
        "ObserverSupersededError",
        "QuarantinedError",
        "RedeliveredError",
        "ResultNotSerializableError",
        "ServiceDrainingError",
        "ServiceForcedDownError",
        "ServiceNotFoundError",
        "ServiceSupersededError",
        "ServiceTwinError",
        "StateError",
        "UnknownTaskError",
        "UnsupportedVersionError",
    }
)
"""Names of the errors that the caller of a remote method gets under their own class; their ``args`` are JSON.

Python's exceptions and those that are registered with :func:`novasvc.rpc.error` do too. All others reach it as
:class:`~novasvc.rpc.errors.RemoteError`.
"""


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: this module is on a layer below those that define errors.
    if name.endswith("Error"):
        for source in _SOURCES:
            found = vars(import_module(source)).get(name)
            if isinstance(found, type) and issubclass(found, NovasvcError):
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def describe(error: BaseException) -> str:
    """Describe an exception in one line: class, text with passwords masked, and where it was raised.

    A name that a module does not have is followed by the one that was probably meant.
    """
    text = _PASSWORD.sub(r"\1***@", " ".join(str(error).split()))
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        line = f": {' '.join(error.text.split())}" if error.text else ""
        return f"{type(error).__name__}: {error.msg} ({error.filename}:{error.lineno}{line})"
    frames = list(extract_tb(error.__traceback__))
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        from difflib import get_close_matches  # noqa: PLC0415 - few errors need it

        close = get_close_matches(str(error.name), dir(error.obj), n=1)
        what += f"; did you mean {close[0]!r}?" if close else ""
        # A module's __getattr__ passes on that it has no such name.
        frames = [frame for frame in frames if frame.name != "__getattr__"] or frames
    if isinstance(error, NovasvcError):
        # The code that used novasvc wrongly is of interest, not where novasvc noticed it.
        frames = [frame for frame in frames if not frame.filename.startswith(_PACKAGE)] or frames
    # Frames of Twisted and of the import system only pass the exception on: name the innermost frame of other code.
    own = [frame for frame in frames if "/twisted/" not in frame.filename and not _is_import(frame.filename)]
    place = next(iter(reversed(own or frames)), None)
    return what if place is None else f"{what} ({place.filename}:{place.lineno} in {place.name})"


def add_remedy(error: BaseException | None) -> None:
    """Add to the text of asyncio's "no running event loop" what to do; leave any other error as it is.

    Called with what a manager's code has raised, before it is logged or sent.
    """
    if type(error) is RuntimeError and error.args == (_NO_LOOP,):
        error.args = (_NO_LOOP + _NO_LOOP_REMEDY,)


def _is_import(filename: str) -> bool:
    return filename.startswith("<frozen") or filename.endswith("/importlib/__init__.py")


_NO_LOOP = "no running event loop"
_NO_LOOP_REMEDY = (
    "; async methods run on Twisted, not on asyncio: await a Deferred, such as deferLater(self.attachments.reactor, 1),"
    " or run a coroutine of asyncio in a thread: await self.attachments.run_blocking(asyncio.run, coroutine)"
)
_PACKAGE = __file__.rpartition("/")[0] + "/"
# User names and passwords may contain "@"; see novasvc.config.masking.
_PASSWORD = re.compile(r"(://[^:/\s]*:)[^/\s]*@")
