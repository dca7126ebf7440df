"""Microversions of the compute API: negotiation by request and response headers."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import attrs

from novasvc.api.errors import APIError
from novasvc.api.openapi import parameter

_FORM = re.compile(r"([1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})")
_SERVICE = "compute"
_STANDARD, _LEGACY = b"OpenStack-API-Version", b"X-OpenStack-Nova-API-Version"
_MAX_SHOWN = 100
VERSION_PARAMETER = parameter(
    _STANDARD.decode(), "header", '"compute 2.N" or "compute latest"; 2.1 if omitted. /v2 is always 2.1.'
)


@attrs.frozen(order=True)
class Microversion:
    """A version of the compute API, such as 2.53."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


LOWEST, HIGHEST = Microversion(2, 1), Microversion(2, 104)
"""The supported range; between 2.75 and HIGHEST nothing about services changes."""


def requested_version(request: Any) -> Microversion:
    """Return the microversion that a request asks for; LOWEST if it has none.

    :raises APIError: 400, it is malformed; 406, it is out of range: then the response names this version, as in Nova.
    """
    version, problem = _parse(tuple(request.header_values(_STANDARD)), tuple(request.header_values(_LEGACY)))
    if problem:
        set_version_headers(request, version)
        raise APIError(406, problem)
    return version


@lru_cache(maxsize=256)
def _parse(standard: Sequence[bytes], legacy: Sequence[bytes]) -> tuple[Microversion, str]:
    """Return the version in these headers, and why it is not supported, or ""."""
    text = _for_compute(standard, legacy)
    if text is None:
        return LOWEST, ""
    if text == "latest":
        return HIGHEST, ""
    found = _FORM.fullmatch(text)
    if found is None:
        shown = text[:_MAX_SHOWN]
        raise APIError(400, f"API Version String {shown} is of invalid format. Must be of format MajorNum.MinorNum.")
    version = Microversion(*map(int, found.groups()))
    if LOWEST <= version <= HIGHEST:
        return version, ""
    return version, f"Version {version} is not supported by the API. Minimum is {LOWEST} and maximum is {HIGHEST}."


def _for_compute(standard: Sequence[bytes], legacy: Sequence[bytes]) -> str | None:
    """Return the version for the compute service; versions for other services are ignored."""
    # One header may have the versions of several services, and there may be several headers; the last one counts.
    for line in reversed(standard):
        for part in reversed(line.decode("latin-1").split(",")):
            service, _, version = part.strip().partition(" ")
            if service.lower() == _SERVICE:
                return version.strip()
    return legacy[-1].decode("latin-1").strip() if legacy else None


def set_version_headers(request: Any, version: Microversion) -> None:
    """Set the response headers that name its microversion, and Vary, because requests choose the microversion."""
    request.set_headers(_version_headers(version))


@lru_cache(maxsize=256)
def _version_headers(version: Microversion) -> Mapping[bytes, Sequence[bytes]]:
    text = str(version).encode()
    return {
        _STANDARD.lower(): (b"%b %b" % (_SERVICE.encode(), text),),
        _LEGACY.lower(): (text,),
        b"vary": (_STANDARD, _LEGACY),
    }
