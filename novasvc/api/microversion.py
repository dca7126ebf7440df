"""Microversions: which version of the compute API a request wants, and which one its answer has."""

import re
from typing import Any

import attrs

from novasvc.api.errors import APIError

_FORM = re.compile(r"([1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})")
_SERVICE = "compute"
_STANDARD, _LEGACY = b"OpenStack-API-Version", b"X-OpenStack-Nova-API-Version"
_LONGEST = 100


@attrs.frozen(order=True)
class Microversion:
    """One version of the compute API: 2.53."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


LOWEST, HIGHEST = Microversion(2, 1), Microversion(2, 104)
"""What is served; between 2.75 and HIGHEST nothing about services is different."""


@attrs.define
class UnservedVersionError(APIError):
    """A version that is older or newer than those that are served.

    :param version: that was asked for.
    """

    version: Microversion = attrs.field(kw_only=True)


def wanted_version(request: Any) -> Microversion:
    """Return the version that a request wants: the lowest, if it does not say.

    :raises APIError: 400, it is none.
    :raises UnservedVersionError: 406, it is older or newer than those that are served.
    """
    text = _text(request)
    if text is None:
        return LOWEST
    if text == "latest":
        return HIGHEST
    found = _FORM.fullmatch(text)
    if found is None:
        shown = text[:_LONGEST]
        raise APIError(400, f"API Version String {shown} is of invalid format. Must be of format MajorNum.MinorNum.")
    version = Microversion(*map(int, found.groups()))
    if not LOWEST <= version <= HIGHEST:
        problem = f"Version {version} is not supported by the API. Minimum is {LOWEST} and maximum is {HIGHEST}."
        raise UnservedVersionError(406, problem, version=version)
    return version


def _text(request: Any) -> str | None:
    """Return what is asked for of this service; what is asked for of others is nothing to us."""
    headers = request.requestHeaders
    # Several services' versions may be in one header, or in several; the last one counts.
    for line in reversed(headers.getRawHeaders(_STANDARD, ())):
        for part in reversed(line.decode("latin-1").split(",")):
            service, _, version = part.strip().partition(" ")
            if service.lower() == _SERVICE:
                return str(version.strip())
    legacy = headers.getRawHeaders(_LEGACY)
    return str(legacy[-1].decode("latin-1").strip()) if legacy else None


def say_version(request: Any, version: Microversion) -> None:
    """Say in an answer's headers which version it has, and that it depends on what was asked for."""
    headers, text = request.responseHeaders, str(version).encode()
    headers.setRawHeaders(_STANDARD, [b"%b %b" % (_SERVICE.encode(), text)])
    headers.setRawHeaders(_LEGACY, [text])
    headers.setRawHeaders(b"Vary", [_STANDARD, _LEGACY])
