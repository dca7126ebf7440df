"""What of the fleet somebody wants to see: all of it is in the URL."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import attrs

STATES = ("up", "down", "forced", "disabled", "trouble")
"""What a host can be looked for by; "trouble" is down or forced down."""
SORTS = ("host", "-host", "trouble", "silent")
"""By name, forwards and backwards; hosts in trouble first; those that are silent for longest first."""

_LONGEST = 255
_LAST_PAGE = 100_000


@attrs.frozen
class Query:
    """One way of looking at the fleet.

    :param text: part of a host's name, a binary's, or of the reason for which a service is disabled; "" is any.
    :param binary: a whole name; "" is all.
    :param state: one of STATES; "" is any.
    :param sort: one of SORTS.
    :param page: from 1.
    """

    text: str = ""
    binary: str = ""
    state: str = ""
    sort: str = "host"
    page: int = 1

    @classmethod
    def read(cls, args: Mapping[bytes, Sequence[bytes]]) -> "Query":
        """Read it from a request; what makes no sense is as if it were not there.

        :param args: as twisted.web gives them.
        """
        text, binary, state, sort, page = (
            args.get(name, [b""])[0].decode("utf-8", "replace").strip()[:_LONGEST]
            for name in (b"q", b"binary", b"state", b"sort", b"page")
        )
        number = int(page) if page.isascii() and page.isdecimal() else 1
        return cls(
            text,
            binary,
            state if state in STATES else "",
            sort if sort in SORTS else "host",
            min(max(1, number), _LAST_PAGE),
        )

    @property
    def filters(self) -> bool:
        """Whether it leaves anything out."""
        return bool(self.text or self.binary or self.state)

    def but(self, **changes: Any) -> "Query":
        """Return another one; unless it says so, on its first page."""
        return attrs.evolve(self, **{"page": 1, **changes})

    @property
    def url(self) -> str:
        """Where it is looked at: "/", "/?state=down&page=2"."""
        return f"/?{self.encoded}" if self.encoded else "/"

    @property
    def encoded(self) -> str:
        """What follows the question mark."""
        usual = Query()
        names = {"text": "q", "binary": "binary", "state": "state", "sort": "sort", "page": "page"}
        said = {key: getattr(self, name) for name, key in names.items() if getattr(self, name) != getattr(usual, name)}
        return urlencode(said)
