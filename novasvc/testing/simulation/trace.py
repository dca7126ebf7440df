"""What happened in a simulation, line by line, and its hash."""

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import attrs


@attrs.define(eq=False)
class Trace:
    """The lines of one run. The same seed must give the same lines.

    :param seconds: returns the time.
    :param keep: keep the lines for reading; their hash is made in any case.
    :ivar lines: the lines, if they are kept.
    """

    _seconds: Callable[[], float]
    _keep: bool = True
    lines: list[str] = attrs.field(factory=list, init=False)
    _hash: Any = attrs.field(factory=sha256, init=False)

    def note(self, kind: str, place: str, text: str) -> None:
        """Add a line.

        :param kind: what happened, one word: "sent", "killed".
        :param place: the process or the server that it happened to.
        :param text: the rest. It must not have addresses of objects, nor times or ids that are not the seed's.
        """
        line = f"{self._seconds():12.6f} {kind:<10} {place:<14} {text}"
        self._hash.update(line.encode())
        if self._keep:
            self.lines.append(line)

    def digest(self) -> str:
        """Return the hash of all lines so far, in hexadecimal."""
        return str(self._hash.hexdigest())
