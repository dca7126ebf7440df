"""The dispatch table: from names on the wire to exposed methods.

It is built once, from the classes of the endpoint objects. A name from the wire is used only as a key
of this table: never in getattr, never in an import.
"""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Any

import attrs

from novasvc.errors import DeclarationError
from novasvc.listing import list_some
from novasvc.rpc.contracts.contract import Contract, contract_of
from novasvc.rpc.errors import NoSuchMethodError, UnsupportedVersionError
from novasvc.rpc.exposure import Exposure, exposed_attributes
from novasvc.rpc.version import Version, parse_version, serves

_Interface = tuple[str | None, Version]
_MAX_SHOWN = 8
_MAX_NAME = 100
"""Characters of an unknown name that are compared with the known ones."""
MAX_CACHED = 1000
"""The most cached lookups: callers can write one version in many ways."""


@attrs.frozen(eq=False)
class Method:
    """An exposed method of one endpoint object.

    :param name: its name on the wire.
    :param function: the bound method; takes a RequestContext, and the arguments by name.
    :param exposure: the options given to ``@expose``.
    :param version: the highest version of its interface.
    :param where: "module.Class.method", for errors.
    :param contract: the types of its arguments and its result; None if it has no annotations.
    """

    name: str
    function: Callable[..., Any]
    exposure: Exposure
    version: Version
    where: str
    contract: Contract | None = None


class Endpoints:
    """Collect the exposed methods of objects, and find the method for a request.

    :param objects: managers and other endpoints; only methods decorated with ``@expose`` can be called.
    :ivar cache: cache of :meth:`find`: methods by its arguments, at most MAX_CACHED of them.
    :raises DeclarationError: two methods would answer the same call, or a method cannot be exposed.
    """

    def __init__(self, *objects: object) -> None:
        self._methods: dict[tuple[str | None, str], list[Method]] = {}
        self._interfaces: set[_Interface] = set()
        self.cache: dict[tuple[str | None, str, str | None], Method] = {}
        for endpoint in objects:
            for method in _methods(endpoint):
                self._add(method)

    def __iter__(self) -> Iterator[Method]:
        for methods in self._methods.values():
            yield from methods

    def find(self, namespace: str | None, name: str, version: str | None) -> Method:
        """Return the method for a request.

        :param namespace: the interface's name; None is the interface without a name.
        :param name: the method's name on the wire.
        :param version: the version that the caller requires; None matches no method.
        :raises NoSuchMethodError: the interface is served, but has no such method.
        :raises UnsupportedVersionError: no such namespace or version is served.
        """
        try:
            want = None if version is None else parse_version(version)
        except ValueError:
            want = None
        if want is not None:
            for method in self._methods.get((namespace, name), ()):
                if serves(method.version, want):
                    if len(self.cache) < MAX_CACHED:
                        self.cache[namespace, name, version] = method
                    return method
            if any(space == namespace and serves(have, want) for space, have in self._interfaces):
                served = _format_interfaces(self._interfaces_with(name))
                raise NoSuchMethodError(name, served, self._similar(namespace, name))
        candidates = self._interfaces_with(name) or self._interfaces
        raise UnsupportedVersionError(str(version), name, namespace, _format_interfaces(candidates))

    def _interfaces_with(self, name: str) -> set[_Interface]:
        """Return the interfaces that have a method of this name."""
        return {(m.exposure.namespace, m.version) for m in self if m.name == name}

    def _similar(self, namespace: str | None, name: str) -> str:
        """Return the method of a namespace whose name is most similar; "" if none is."""
        known = [known for space, known in self._methods if space == namespace]
        return next(iter(get_close_matches(name[:_MAX_NAME], known, n=1)), "")

    def _add(self, method: Method) -> None:
        namespace = method.exposure.namespace
        others = self._methods.setdefault((namespace, method.name), [])
        for other in others:
            if other.version[0] == method.version[0]:
                raise DeclarationError(
                    method.where,
                    f"{other.where} has the same name, namespace ({namespace}) and major version ({method.version[0]})",
                    "rename one, or give it another namespace or major version",
                )
        others.append(method)
        self._interfaces.add((namespace, method.version))


def _format_interfaces(interfaces: set[_Interface]) -> str:
    """Format the served interfaces for the text of an error, at most _MAX_SHOWN of them."""
    known = sorted(interfaces, key=lambda interface: (interface[0] or "", interface[1]))
    return list_some([_format_interface(*interface) for interface in known], _MAX_SHOWN)


def _format_interface(namespace: str | None, version: Version) -> str:
    major, minor, revision = version
    highest = f"{major}.{minor}.{revision}" if revision else f"{major}.{minor}"
    versions = highest if highest == f"{major}.0" else f"{major}.0 to {highest}"
    return versions if namespace is None else f"{versions} of namespace {namespace!r}"


def _methods(endpoint: object) -> list[Method]:
    kind = type(endpoint)
    exposed: list[tuple[str, str, Exposure]] = []
    for name, attribute, exposure in exposed_attributes(kind):
        where = f"{kind.__module__}.{kind.__qualname__}.{name}"
        if name.startswith("_"):
            raise DeclarationError(where, "a private method cannot be exposed", "give it a name without the underscore")
        if isinstance(attribute, staticmethod | classmethod):
            kind_of_method = type(attribute).__name__
            raise DeclarationError(where, f"a {kind_of_method} cannot be exposed", "make it a plain method with self")
        exposed.append((name, where, exposure))

    highest: dict[tuple[str | None, int], Version] = {}
    for _, _, exposure in exposed:
        version = parse_version(exposure.version)
        interface = (exposure.namespace, version[0])
        highest[interface] = max(version, highest.get(interface, version))
    return [
        Method(
            name=name,
            function=getattr(endpoint, name),  # The name comes from the class, not from the wire.
            exposure=exposure,
            version=highest[exposure.namespace, parse_version(exposure.version)[0]],
            where=where,
            contract=contract_of(getattr(endpoint, name), name, where),
        )
        for name, where, exposure in exposed
    ]
