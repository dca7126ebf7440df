"""Filters, sorting and page number of the fleet's page, as in its URL."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import attrs

STATES = ("up", "down", "forced", "disabled", "trouble")
"""States to filter by; "trouble" is down or forced down."""
SORTS = ("host", "-host", "trouble", "silent")
"""By name, ascending and descending; hosts in trouble first; the longest without a heartbeat first."""

_MAX_FIELD = 255
_MAX_PAGE = 100_000


@attrs.frozen
class Query:
    """A query of the fleet's page.

    :param text: part of a host's or binary's name, or of the reason why a service is disabled; "" matches all.
    :param binary: exact name of a binary; "" matches all.
    :param state: one of STATES; "" matches all.
    :param sort: one of SORTS.
    :param page: page number, from 1.
    """

    text: str = ""
    binary: str = ""
    state: str = ""
    sort: str = "host"
    page: int = 1

    @classmethod
    def read(cls, args: Mapping[bytes, Sequence[bytes]]) -> "Query":
        """Parse query parameters; invalid ones are ignored.

        :param args: query parameters, in the form of twisted.web's ``Request.args``.
        """
        text, binary, state, sort, page = (
            args.get(name, [b""])[0].decode("utf-8", "replace").strip()[:_MAX_FIELD]
            for name in (b"q", b"binary", b"state", b"sort", b"page")
        )
        number = int(page) if page.isascii() and page.isdecimal() else 1
        return cls(
            text,
            binary,
            state if state in STATES else "",
            sort if sort in SORTS else "host",
            min(max(1, number), _MAX_PAGE),
        )

    @property
    def filters(self) -> bool:
        """Whether it filters."""
        return bool(self.text or self.binary or self.state)

    def but(self, **changes: Any) -> "Query":
        """Return a changed copy, on its first page unless ``page`` is given."""
        return attrs.evolve(self, **{"page": 1, **changes})

    @property
    def url(self) -> str:
        """Its URL: "/", "/?state=down&page=2"."""
        return f"/?{self.encoded}" if self.encoded else "/"

    @property
    def encoded(self) -> str:
        """Its query string; defaults are left out."""
        default = Query()
        names = {"text": "q", "binary": "binary", "state": "state", "sort": "sort", "page": "page"}
        changed = {
            key: getattr(self, name) for name, key in names.items() if getattr(self, name) != getattr(default, name)
        }
        return urlencode(changed)
