"""Patterns of HTTP/1.1's grammar, compiled once. They are strict: see Note [Request smuggling] in head.py."""

import re

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
"""A token (RFC 9110, 5.6.2): a method, a field name, the name of a chunk extension."""

REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21\x22\x24-\x7e\x80-\xff]+) HTTP/(\d)\.(\d)")
"""method SP request-target SP HTTP-version (RFC 9112, 3).

A target has no fragment, so no "#" (3.2). Other octets that RFC 3986 excludes, such as "|", are allowed: browsers send
them unencoded."""

FIELD_LINE = re.compile(rb"^(" + TOKEN + rb"):([^\x00-\x08\x0a-\x1f\x7f]*)\r\n", re.MULTILINE)
"""field-name ":" OWS field-value OWS CRLF (RFC 9112, 5).

No whitespace stands before the colon (5.1), and no CR, LF or NUL in the value (RFC 9110, 5.5)."""

INVALID_LINE_ENDING = re.compile(rb"(?<!\r)\n|\r(?!\n)|\x00")
"""LF without CR, CR without LF (RFC 9112, 2.2), or NUL."""

ABSOLUTE_FORM = re.compile(rb"(https?)://([^/?]+)(.*)", re.IGNORECASE)
"""A target in absolute form (RFC 9112, 3.2.2): scheme, authority, and the rest."""

_NAME = rb"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+"
_PORT = rb"(?::(?:[0-5]?\d{0,4}|6[0-4]\d{3}|65[0-4]\d{2}|655[0-2]\d|6553[0-5]))?"
HOST = re.compile(rb"(?:" + _NAME + rb"|\[([0-9A-Fa-f:.]+)\])" + _PORT)
"""uri-host [":" port] (RFC 9110, 7.2; RFC 3986, 3.2.2): a name, an IPv4 address, or an IPv6 address in brackets."""

_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})((?:;" + TOKEN + rb"(?:=(?:" + TOKEN + rb"|" + _QUOTED + rb"))?)*)\r\n")
"""chunk-size [chunk-ext] CRLF (RFC 9112, 7.1).

RFC 9112, 7.1.1 lets recipients ignore whitespace around ";" and "=". Here it is rejected, as in other servers: a parser
that reads the size up to the first odd octet and one that reads up to the end of the line would disagree."""
