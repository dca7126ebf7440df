"""Values that belong to a reactor, as those of threading.local belong to a thread."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

_T = TypeVar("_T")

# Note [What belongs to the process]
#
# Users construct services without naming what those share: Nova's constructors have no parameter for a connection to
# the broker, a pool of threads or the settings of the process. A process has one reactor, so what its services share is
# found by the reactor. A test has a reactor of its own, and with it values of its own: it has nothing to undo.
# The telemetry of a process is the exception: see Note [One recorder a process] in novasvc.telemetry.flight.


class ReactorLocal(Generic[_T]):
    """One value per reactor; see Note [What belongs to the process].

    :param make: called with the reactor, for a value that was not set.
    """

    def __init__(self, make: Callable[[Any], _T]) -> None:
        self._make = make
        self._values: WeakKeyDictionary[Any, _T] = WeakKeyDictionary()

    def get(self, reactor: Any) -> _T:
        """Return the value of a reactor; make it first if there is none."""
        if reactor not in self._values:
            self._values[reactor] = self._make(reactor)
        return self._values[reactor]

    def set(self, reactor: Any, value: _T) -> None:
        """Set the value of a reactor."""
        self._values[reactor] = value
