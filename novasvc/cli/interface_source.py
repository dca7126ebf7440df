"""Write the interface of a service in Python, for typed clients: protocols of its methods, and their types."""

import keyword
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from novasvc.cli.interface_types import WIDTH, TypeWriter, identifier, literal
from novasvc.rpc.contracts.asyncapi import FRAMEWORK
from novasvc.rpc.contracts.schema import MethodSchemas, merge_definitions
from novasvc.rpc.errors import MessageFormatError

_BLOCKING = " --blocking`: do not edit it"
"""What only the head of a module for a blocking client has."""

_Interface = tuple[str | None, int]
"""A namespace and a major version."""


def write_interface(answer: Mapping[str, Any], *, blocking: bool = False) -> str:
    """Write a module with the interfaces of a service.

    The text depends on what the service offers only: not on the host, nor on the time.

    :param answer: of ``node.interface``, as a node sent it.
    :param blocking: for :class:`novasvc.blocking.Client`: methods return results, not Deferreds.
    :raises MessageFormatError: the answer is malformed.
    """
    try:
        return _Source(answer, blocking=blocking).text()
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise MessageFormatError(f"the service describes itself wrongly: {type(error).__name__} {error}") from None


def is_blocking(text: str) -> bool:
    """Return whether a module that :func:`write_interface` has written is for a blocking client."""
    return _BLOCKING in text


class _Source:
    def __init__(self, answer: Mapping[str, Any], *, blocking: bool) -> None:
        rows = [row for row in answer["methods"] if row["namespace"] not in FRAMEWORK]
        for name in [row["method"] for row in rows] + [part["name"] for row in rows for part in row["parameters"]]:
            if not name.isidentifier() or keyword.iskeyword(name):
                raise ValueError(f"{name[:64]!r} is not an identifier")
        self._topic = str(answer["topic"])
        self._blocking = blocking
        # An older service lists no errors; a built-in exception has no module here.
        self._modules = {error["name"]: error["module"] for error in answer.get("errors") or ()}
        methods, definitions = merge_definitions(rows)
        schemas = [schema for each in methods for schema in (*each.arguments.values(), each.result)]
        self._types = TypeWriter(definitions, [row["method"] for row in rows], schemas)
        self._interfaces: dict[_Interface, list[MethodSchemas]] = {}
        for method in methods:
            key = method.row["namespace"], int(method.row["version"].partition(".")[0])
            self._interfaces.setdefault(key, []).append(method)

    def text(self) -> str:
        ending = _BLOCKING if self._blocking else "`: do not edit it"
        # Before the imports: they depend on what is written.
        blocks = list(self._types.write_classes())
        names = {key: self._types.free_name(self._class_name(key)) for key in self._interfaces}
        for key, methods in self._interfaces.items():
            blocks.append("\n".join(self._protocol(names[key], key, methods)))
        for key, methods in self._interfaces.items():
            blocks.append("\n".join(self._factory(names[key], key, str(methods[0].row["version"]))))
        head = [
            f'"""The interface of the service {_quotable(self._topic)}, for typed clients.',
            "",
            f"Written by `novasvc stub {_quotable(self._topic)}{ending}, write it again.",
            '"""',
            "",
        ]
        imports = "\n".join([*head, *self._types.imports()]).rstrip("\n")
        return "\n\n\n".join([imports, *blocks]) + "\n"

    def _class_name(self, key: _Interface) -> str:
        name = "".join(word[:1].upper() + word[1:] for word in self._words(key))
        return name if key[1] == 1 else f"{name}V{key[1]}"

    def _words(self, key: _Interface) -> list[str]:
        namespace, _ = key
        return identifier(self._topic).split("_") + (identifier(namespace).split("_") if namespace else [])

    def _protocol(self, name: str, key: _Interface, methods: Sequence[MethodSchemas]) -> Iterator[str]:
        namespace, _ = key
        what = f", namespace {_quotable(namespace)}" if namespace else ""
        what += f", version {_quotable(methods[0].row['version'])}"
        yield f"class {name}({self._types.imported('typing', 'Protocol')}):"
        yield f'    """The methods of {_quotable(self._topic)}{what}."""'
        for method in methods:
            yield ""
            yield from self._method(method)

    def _method(self, method: MethodSchemas) -> Iterator[str]:
        row, types = method.row, self._types
        names = {each["name"] for each in row["parameters"]}
        own = next(name for name in ("self", "self_", "self__") if name not in names)
        context = next(name for name in ("context", "context_", "context__") if name not in names)
        parameters = [own, f"{context}: {types.imported('novasvc', 'RequestContext')}"]
        parameters += self._parameters(method)
        result = types.type(method.result)
        if not self._blocking:
            result = f"{types.imported('twisted.internet.defer', 'Deferred')}[{result}]"
        line = f"    def {row['method']}({', '.join(parameters)}) -> {result}:"
        if len(line) > WIDTH:
            yield f"    def {row['method']}("
            yield from (f"        {each}," for each in parameters)
            yield f"    ) -> {result}:"
        else:
            yield line
        yield f'        """{self._docstring(row)}"""'

    def _parameters(self, method: MethodSchemas) -> Iterator[str]:
        types, keyword_only = self._types, False
        for each in method.row["parameters"]:
            name = each["name"]
            schema = method.arguments.get(name, {})
            if each["open"]:
                yield f"**{name}: {types.any}"
                continue
            if each["keyword_only"] and not keyword_only:
                keyword_only = True
                yield "*"
            kind = types.type(schema)
            if each["required"]:
                yield f"{name}: {kind}"
                continue
            # What is not passed is not sent, so the default is the service's. It is written where it is plain.
            default = types.default({**schema, "default": each["default"]}) if "default" in each else None
            if not schema and "default" in each:
                default = literal(each["default"])
            yield f"{name}: {kind} = {default or '...'}"

    def _docstring(self, row: Mapping[str, Any]) -> str:
        summary = _quotable(row["summary"]) or f"Call {row['method']}."
        names = (f"{self._modules[name]}.{name}" if name in self._modules else name for name in row["raises"])
        raises = ", ".join(map(_quotable, names))
        return f"{summary}\n\n        :raises: {raises}.\n        " if raises else summary

    def _factory(self, name: str, key: _Interface, version: str) -> Iterator[str]:
        types = self._types
        module = types.imported("novasvc", "blocking" if self._blocking else "rpc")
        optional = f"{types.builtin('str')} | None"
        function = "_".join(self._words(key)).lower()
        function = types.free_name(function if key[1] == 1 else f"{function}_v{key[1]}")
        yield f"def {function}(client: {module}.Client, host: {optional} = None) -> {name}:"
        yield f'    """Return a client of {_quotable(self._topic)}: of any host, or of one."""'
        namespace, _ = key
        given = [f'topic="{_quotable(self._topic)}"', "server=host"]
        given += [f'namespace="{_quotable(namespace)}"'] if namespace else []
        given += [f'version="{_quotable(version)}"'] if version != "1.0" else []
        yield f"    prepared = client.prepare({', '.join(given)})"
        yield f"    return {module}.stub({name}, prepared)"


def _quotable(text: str) -> str:
    """Return a peer's text such that a string or a docstring can have it: on one line, without quotes at its end."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line.replace("\\", "/").replace('"', "'")
