"""Write the types of a service in Python: dataclasses and enums, from the JSON Schemas that a node tells."""

import builtins
import keyword
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from novasvc.rpc.contracts.schema import Schema, references, referred, tagged

WIDTH = 88
"""Columns of a line, the default of formatters."""

_FORMATS = {
    "date-time-local": ("datetime", "datetime"),
    "date-time": ("datetime", "datetime"),
    "date": ("datetime", "date"),
    "time": ("datetime", "time"),
    "duration": ("datetime", "timedelta"),
    "uuid": ("uuid", "UUID"),
    "decimal": ("decimal", "Decimal"),
}
"""Format of a text -> module and name of its type."""

_JSON = {"integer": "int", "number": "float", "boolean": "bool", "string": "str"}


class TypeWriter:
    """Writes types, and collects the imports that they need.

    Names in the text are never those of a peer as they came: each is checked to be an identifier, and values are
    written by repr().

    :param definitions: JSON Schemas by name; see :func:`novasvc.rpc.contracts.schema.merge_definitions`.
    :param hidden: names of methods. In a class body they hide what has the same name outside.
    :param schemas: those of arguments and results, in which there may be unions of tagged types.
    """

    def __init__(
        self, definitions: Mapping[str, Schema], hidden: Iterable[str], schemas: Sequence[Schema] = ()
    ) -> None:
        self._definitions = definitions
        self._tags = {name: (field, tag) for name, field, tag in tagged([*definitions.values(), *schemas])}
        fields = {field for each in definitions.values() for field in each.get("properties", {})}
        self._hidden = {*hidden, *fields}
        self._imports: dict[tuple[str, str], str] = {}
        self._defined: set[str] = set()
        self._taken = {*self._hidden, *keyword.kwlist, *dir(builtins)}
        # The names of classes come first: imports can have any other.
        self.classes = {name: self.free_name(identifier(name)) for name in sorted(definitions)}

    def free_name(self, wanted: str) -> str:
        """Return a name for the module that nothing else has, and that no class body hides."""
        while wanted in self._taken:
            wanted += "_"
        self._taken.add(wanted)
        return wanted

    def imported(self, module: str, name: str = "") -> str:
        """Import a name of a module, or the module itself; return what it is called in the text."""
        key = module, name
        if key not in self._imports:
            self._imports[key] = self.free_name(name or module)
        return self._imports[key]

    def builtin(self, name: str) -> str:
        """Return a built-in name, such that no class body hides it."""
        return f"{self.imported('builtins')}.{name}" if name in self._hidden else name

    def imports(self) -> Iterator[str]:
        """Yield the import statements, in the order of isort."""
        groups: dict[bool, list[str]] = {False: [], True: []}
        for module in sorted({module for module, _ in self._imports}):
            names = {name: own for (of, name), own in self._imports.items() if of == module}
            third_party = module.partition(".")[0] in {"msgspec", "novasvc", "twisted"}
            if "" in names:
                own = names.pop("")
                groups[third_party].append(f"import {module}" + (f" as {own}" if own != module else ""))
            renamed = [(name, own) for name, own in sorted(names.items()) if own != name]
            groups[third_party] += [f"from {module} import {name} as {own}" for name, own in renamed]
            parts = sorted((name for name, own in names.items() if own == name), key=_place)
            if parts:
                line = f"from {module} import {', '.join(parts)}"
                if len(line) > WIDTH:
                    line = f"from {module} import (\n" + "".join(f"    {part},\n" for part in parts) + ")"
                groups[third_party].append(line)
        for group in groups.values():
            if group:
                yield from sorted(group, key=lambda line: not line.startswith("import "))
                yield ""

    # -- types in annotations ------------------------------------------------------------------

    def type(self, schema: Schema) -> str:
        """Return the type of a JSON Schema."""
        name = referred(schema)
        if name:
            return self.classes[name]
        if "anyOf" in schema:
            parts = dict.fromkeys(self.type(part) for part in schema["anyOf"])
            # None last, as people write it.
            return " | ".join(sorted(parts, key=lambda part: part == "None"))
        if "enum" in schema:
            return f"{self.imported('typing', 'Literal')}[{', '.join(map(literal, schema['enum']))}]"
        return self._plain_type(schema)

    def _plain_type(self, schema: Schema) -> str:
        match schema.get("type"):
            case "string" if schema.get("format") in _FORMATS:
                text = self.imported(*_FORMATS[schema["format"]])
            case "array" if "prefixItems" in schema:
                items = ", ".join(map(self.type, schema["prefixItems"])) or "()"
                text = f"{self.builtin('tuple')}[{items}]"
            case "array":
                text = f"{self.builtin('list')}[{self.type(schema.get('items') or {})}]"
            case "object":
                values = schema.get("additionalProperties")
                value = self.type(values) if isinstance(values, dict) else self.any
                text = f"{self.builtin('dict')}[{self.builtin('str')}, {value}]"
            case "null":
                text = "None"
            case kind if kind in _JSON:
                text = self.builtin(_JSON[kind])
            case _:
                text = self.any
        return text

    @property
    def any(self) -> str:
        """The type Any."""
        return self.imported("typing", "Any")

    def default(self, schema: Schema) -> str | None:
        """Return the text of a schema's default; None if it has none, or one that a line cannot have."""
        if "default" not in schema:
            return None
        value = schema["default"]
        values = self._definitions.get(referred(schema), {}).get("enum", [])
        if value in values:
            return f"{self.classes[referred(schema)]}.{member_names(values)[values.index(value)]}"
        kinds: dict[Any, tuple[type, ...]] = {
            "integer": (int,),
            "number": (int, float),
            "boolean": (bool,),
            "string": (str,),
            "null": (type(None),),
        }
        for part in schema.get("anyOf", [schema]):
            plain = "format" not in part and "enum" not in part
            if plain and type(value) in kinds.get(part.get("type"), ()):
                return literal(value)
        return None

    # -- classes -------------------------------------------------------------------------------

    def write_classes(self) -> Iterator[str]:
        """Yield the text of each class; those that others are made of first."""
        for name in sorted(self._definitions):
            yield from self._write(name, [])

    def _write(self, name: str, waiting: list[str]) -> Iterator[str]:
        if name in self._defined or name in waiting:
            return
        for other in sorted(set(references(self._definitions[name]))):
            yield from self._write(other, [*waiting, name])
        definition = self._definitions[name]
        if "enum" in definition:
            text = self._enum(name, definition)
        elif "prefixItems" in definition:
            text = f"{self.classes[name]} = {self.type(definition)}"
        elif all(_usable(field) for field in definition.get("properties", {})):
            text = self._dataclass(name, definition)
        else:
            text = self._typed_dict(name, definition)
        self._defined.add(name)
        yield text

    def _enum(self, name: str, definition: Schema) -> str:
        values = definition["enum"]
        names = member_names(values)
        members = [f"    {member} = {literal(value)}" for member, value in zip(names, values, strict=True)]
        head = f"class {self.classes[name]}({self.imported('enum', 'Enum')}):"
        return "\n".join([head, *(members or ["    pass"])])

    def _dataclass(self, name: str, definition: Schema) -> str:
        """Return a dataclass; a msgspec.Struct if a tag tells it apart in a union, which dataclasses cannot have."""
        required = set(definition.get("required", ()))
        properties = dict(definition.get("properties", {}))
        if name in self._tags:
            field, tag = self._tags[name]
            properties.pop(field, None)
            base = self.imported("msgspec", "Struct")
            lines = [f"class {self.classes[name]}({base}, tag_field={literal(field)}, tag={literal(tag)}):"]
        else:
            lines = [f"@{self.imported('dataclasses', 'dataclass')}", f"class {self.classes[name]}:"]
        lines += [f"    {field}: {self._annotation(properties[field])}" for field in properties if field in required]
        for field, schema in properties.items():
            if field not in required:
                lines.append(f"    {field}: {self._optional(schema)}")
        return "\n".join(lines if properties else [*lines, "    pass"])

    def _optional(self, schema: Schema) -> str:
        default = self.default(schema)
        if default is not None:
            return f"{self._annotation(schema)} = {default}"
        if schema.get("default") in ([], {}) and schema.get("type") in {"array", "object"}:
            make = self.builtin("list" if schema["type"] == "array" else "dict")
            factory = f"{self.imported('dataclasses', 'field')}(default_factory={make})"
            return f"{self._annotation(schema)} = {factory}"
        # The service knows the default: the field is not sent unless it is given.
        text = f"{self.type(schema)} | {self.imported('msgspec', 'UnsetType')}"
        return f"{self._quoted(text, schema)} = {self.imported('msgspec', 'UNSET')}"

    def _typed_dict(self, name: str, definition: Schema) -> str:
        """Return a TypedDict: it has fields whose names a class cannot have."""
        required = set(definition.get("required", ()))
        lines = [f"{self.classes[name]} = {self.imported('typing', 'TypedDict')}("]
        lines += [f"    {literal(self.classes[name])},", "    {"]
        for field, schema in definition["properties"].items():
            text = self.type(schema)
            if field not in required:
                text = f"{self.imported('typing', 'NotRequired')}[{text}]"
            lines.append(f"        {literal(field)}: {self._quoted(text, schema)},")
        return "\n".join([*lines, "    },", ")"])

    def _annotation(self, schema: Schema) -> str:
        return self._quoted(self.type(schema), schema)

    def _quoted(self, text: str, schema: Schema) -> str:
        """Quote an annotation that names a class which follows."""
        if all(name in self._defined for name in references(schema)):
            return text
        return literal(text)


def _place(name: str) -> tuple[int, str]:
    """Return where isort places an imported name: constants, classes, functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def identifier(text: str) -> str:
    """Return a text as an identifier."""
    name = re.sub(r"\W", "_", text, flags=re.ASCII).strip("_") or "Type"
    return f"_{name}" if name[0].isdigit() else name


def member_names(values: Iterable[Any]) -> list[str]:
    """Return names for the members of an enum, of whose members only the values are known."""
    names: list[str] = []
    for value in values:
        text = re.sub(r"\W+", "_", str(value), flags=re.ASCII).strip("_").upper() or "EMPTY"
        if not isinstance(value, str):
            text = f"VALUE_{'MINUS_' if str(value).startswith('-') else ''}{text}"
        name = text = f"VALUE_{text}" if text[0].isdigit() or text == "MRO" else text
        number = 1
        while name in names:
            number += 1
            name = f"{text}_{number}"
        names.append(name)
    return names


def _usable(field: str) -> bool:
    """Return whether a dataclass can have a field of this name. A class mangles names with two underscores."""
    return field.isidentifier() and not keyword.iskeyword(field) and not field.startswith("__")


def literal(value: Any) -> str:
    """Return a value of JSON in Python, with the quotes of formatters."""
    text = repr(value)
    if isinstance(value, str) and '"' not in value and text.startswith("'"):
        return f'"{text[1:-1]}"' if "'" not in value else text
    return text
