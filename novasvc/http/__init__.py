"""HTTP servers: parsing, limits, deadlines, the access log, and WSGI."""

from novasvc.http.access_log import AccessLog
from novasvc.http.limits import Limits
from novasvc.http.site import Site, make_site

__all__ = ["AccessLog", "Limits", "Site", "make_site"]
