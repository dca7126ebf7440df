"""Version discovery: which versions of the compute API there are, and where."""

from typing import Any

from twisted.web.resource import IResource
from zope.interface import implementer

from novasvc.api.microversion import HIGHEST, LOWEST
from novasvc.api.openapi import STRING, Component, array_of, object_schema
from novasvc.api.responses import json_response, scheme_of

_VERSIONS: dict[str, dict[str, Any]] = {
    "v2": {
        "id": "v2.0",
        "status": "DEPRECATED",
        "version": "",
        "min_version": "",
        "updated": "2025-07-04T12:00:00Z",
    },
    "v2.1": {
        "id": "v2.1",
        "status": "CURRENT",
        "version": str(HIGHEST),
        "min_version": str(LOWEST),
        "updated": "2013-07-23T11:33:21Z",
    },
}
"""By path. Source: Nova's own version documents."""
VERSION = Component(
    "Version",
    object_schema(
        {
            **dict.fromkeys(("id", "status", "version", "min_version", "updated"), STRING),
            "links": array_of({"type": "object"}),
        }
    ),
)
_DESCRIBED = {"rel": "describedby", "type": "text/html", "href": "http://docs.openstack.org/"}


@implementer(IResource)
class Index:
    """Serves ``/``: the page of the fleet to browsers, and the list of versions to other clients.

    :param page: the resource of the page.
    """

    isLeaf = True

    def __init__(self, page: Any) -> None:
        self._page = page

    def getChildWithDefault(self, name: bytes, request: Any) -> Any:
        """Not called: a leaf has no children."""
        raise NotImplementedError

    def putChild(self, path: bytes, child: Any) -> None:
        """Not called: a leaf has no children."""
        raise NotImplementedError

    def render(self, request: Any) -> Any:
        """Respond by the Accept header; the list of versions needs no token."""
        request.responseHeaders.addRawHeader(b"Vary", b"Accept")
        if request.method not in {b"GET", b"HEAD"} or b"text/html" in (request.getHeader(b"accept") or b""):
            return self._page.render(request)
        return json_response(request, {"versions": [_entry(request, path) for path in _VERSIONS]})


def version_document(request: Any, path: str) -> dict[str, Any]:
    """Return the document of one version.

    :param request: a request whose scheme and Host the links have.
    :param path: "v2.1" or "v2".
    """
    entry = _entry(request, path)
    entry["links"].append(_DESCRIBED)
    media_type = f"application/vnd.openstack.compute+json;version={entry['id'].removeprefix('v').removesuffix('.0')}"
    return {"version": {**entry, "media-types": [{"base": "application/json", "type": media_type}]}}


def base_url(request: Any) -> str:
    """Return the base of the API's URLs as the client reached it, without a trailing slash."""
    host = (request.getHeader(b"host") or b"").decode("latin-1")
    if not host:  # optional in HTTP/1.0
        address = request.getHost()
        host = f"{getattr(address, 'host', 'localhost')}:{getattr(address, 'port', 0)}"
    return f"{scheme_of(request)}://{host}"


def _entry(request: Any, path: str) -> dict[str, Any]:
    return {**_VERSIONS[path], "links": [{"rel": "self", "href": f"{base_url(request)}/{path}/"}]}
