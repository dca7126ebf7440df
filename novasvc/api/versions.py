"""Version discovery: which versions of the compute API there are, and where."""

from typing import Any

from twisted.web.resource import IResource
from zope.interface import implementer

from novasvc.api.answers import answer_json, scheme_of
from novasvc.api.microversion import HIGHEST, LOWEST

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
"""By path. Source: Nova, which says the same of itself."""
_DESCRIBED = {"rel": "describedby", "type": "text/html", "href": "http://docs.openstack.org/"}


@implementer(IResource)
class Front:
    """Serves ``/``: the page to browsers, and the list of versions to everybody else.

    :param page: the page's resource.
    """

    isLeaf = True

    def __init__(self, page: Any) -> None:
        self._page = page

    def getChildWithDefault(self, name: bytes, request: Any) -> Any:
        """Not called: a leaf has no children."""
        raise NotImplementedError

    def putChild(self, path: bytes, child: Any) -> None:
        """Not called: see above."""
        raise NotImplementedError

    def render(self, request: Any) -> Any:
        """Answer whoever looks for an API; needs no token."""
        request.responseHeaders.addRawHeader(b"Vary", b"Accept")
        if request.method not in {b"GET", b"HEAD"} or b"text/html" in (request.getHeader(b"accept") or b""):
            return self._page.render(request)
        return answer_json(request, {"versions": [_entry(request, path) for path in _VERSIONS]})


def version_document(request: Any, path: str) -> dict[str, Any]:
    """Return the document of one version.

    :param request: its scheme and Host begin the links.
    :param path: "v2.1" or "v2".
    """
    entry = _entry(request, path)
    entry["links"].append(_DESCRIBED)
    kind = f"application/vnd.openstack.compute+json;version={entry['id'].removeprefix('v').removesuffix('.0')}"
    return {"version": {**entry, "media-types": [{"base": "application/json", "type": kind}]}}


def base_url(request: Any) -> str:
    """Return what the URLs of this API begin with, as whoever asked reached it: no slash at its end."""
    host = (request.getHeader(b"host") or b"").decode("latin-1")
    if not host:  # HTTP/1.0 needs none
        address = request.getHost()
        host = f"{getattr(address, 'host', 'localhost')}:{getattr(address, 'port', 0)}"
    return f"{scheme_of(request)}://{host}"


def _entry(request: Any, path: str) -> dict[str, Any]:
    return {**_VERSIONS[path], "links": [{"rel": "self", "href": f"{base_url(request)}/{path}/"}]}
