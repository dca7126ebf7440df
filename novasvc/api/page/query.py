"""Filters, sorting and page number of the fleet's page, as in its URL."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import attrs

STATES = ("trouble", "up", "failed", "down", "suspect", "late", "forced", "stopped", "disabled", "draining", "starting")
"""States to filter by; "trouble" is every state in which a service does not work as it should."""
SORTS = ("trouble", "host", "-host", "silent")
"""Services in trouble first; by host, ascending and descending; the longest without a heartbeat first."""

_MAX_FIELD = 255
_MAX_PAGE = 100_000
_PARAMETERS = {"text": "q", "binary": "binary", "zone": "zone", "state": "state", "sort": "sort", "page": "page"}


@attrs.frozen
class Query:
    """A query of the fleet's page.

    :param text: part of the name of a host, binary, zone or tag, or of a reason; or a whole uuid; "" matches all.
    :param binary: exact name of a binary; "" matches all.
    :param zone: exact name of a zone; "" matches all.
    :param state: one of STATES; "" matches all.
    :param sort: one of SORTS.
    :param page: page number, from 1.
    """

    text: str = ""
    binary: str = ""
    zone: str = ""
    state: str = ""
    sort: str = SORTS[0]
    page: int = 1

    @classmethod
    def read(cls, args: Mapping[bytes, Sequence[bytes]]) -> "Query":
        """Parse query parameters; invalid ones are ignored.

        :param args: query parameters, in the form of twisted.web's ``Request.args``.
        """
        text, binary, zone, state, sort, page = (
            args.get(name.encode(), [b""])[0].decode("utf-8", "replace").strip()[:_MAX_FIELD]
            for name in _PARAMETERS.values()
        )
        number = int(page) if page.isascii() and page.isdecimal() else 1
        return cls(
            text,
            binary,
            zone,
            state if state in STATES else "",
            sort if sort in SORTS else SORTS[0],
            min(max(1, number), _MAX_PAGE),
        )

    @property
    def filters(self) -> bool:
        """Whether it filters."""
        return bool(self.text or self.binary or self.zone or self.state)

    def but(self, **changes: Any) -> "Query":
        """Return a changed copy, on its first page unless ``page`` is given."""
        return attrs.evolve(self, **{"page": 1, **changes})

    @property
    def url(self) -> str:
        """Its URL: "/", "/?state=down&page=2"."""
        return f"/?{self.encoded}" if self.encoded else "/"

    @property
    def parameters(self) -> dict[str, Any]:
        """Its query parameters; defaults are left out."""
        default = Query()
        return {
            key: getattr(self, name)
            for name, key in _PARAMETERS.items()
            if getattr(self, name) != getattr(default, name)
        }

    @property
    def encoded(self) -> str:
        """Its query string; defaults are left out."""
        return urlencode(self.parameters)
