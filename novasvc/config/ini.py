"""Parse INI files as oslo.config does, ``$name`` substitution included."""

from collections.abc import Callable, Iterable, Iterator
from string import Template

import attrs

DEFAULT = "DEFAULT"


@attrs.define
class INIError(ValueError):
    """A line that oslo.config rejects.

    :param problem: what is wrong with the line; without its text, which may contain a password.
    :param line: line number, from 1.
    """

    problem: str
    line: int


@attrs.frozen
class Assignment:
    """One ``name = value``.

    :param section: section name, in lower case unless it is DEFAULT.
    :param name: option name.
    :param value: without enclosing quotes; continuation lines are joined by line feeds.
    """

    section: str
    name: str
    value: str = attrs.field(repr=False)


def normalize_section(section: str) -> str:
    """Return the canonical name of a section: lower case, except for DEFAULT."""
    return section if section == DEFAULT else section.lower()


def read_assignments(lines: Iterable[str]) -> Iterator[Assignment]:
    """Parse the lines of an INI file.

    A line that starts with a space or a tab continues the value above it, even if it looks like a comment. Sections
    and names may repeat.

    :raises INIError: a line is not a section, an assignment or a comment.
    Source: oslo_config.iniparser.BaseParser, oslo_config.cfg.ConfigParser.
    """
    section: str | None = None
    name: str | None = None
    values: list[str] = []

    def pending_assignment() -> Iterator[Assignment]:
        if name is not None and section is not None:
            yield Assignment(section, name, "\n".join(values))

    for number, whole in enumerate(lines, 1):
        line = whole.rstrip()
        if line[:1] in {" ", "\t"}:
            if name is None:
                raise INIError("continuation line without an option before it", number)
            values.append(line.lstrip())
            continue
        yield from pending_assignment()
        name = None
        if line.startswith("["):
            section = _section(line, number)
        elif line and not line.startswith(("#", ";")):
            name, value = _split(line, number)
            if section is None:
                raise INIError("assignment before the first [section]", number)
            values = [value]
    yield from pending_assignment()


def _section(line: str, number: int) -> str:
    if not line.endswith("]"):
        raise INIError('section header without "]"', number)
    if not line[1:-1]:
        raise INIError("section header without a name", number)
    return normalize_section(line[1:-1])


def _split(line: str, number: int) -> tuple[str, str]:
    separators = [index for index in (line.find("="), line.find(":")) if index >= 0]
    if not separators:
        raise INIError('expected "name = value" or "[section]"', number)
    name, value = line[: min(separators)].strip(), line[min(separators) + 1 :].strip()
    if not name:
        raise INIError("assignment without a name", number)
    # As in oslo.config, a value that is a single quote becomes empty: it is its own first and last character.
    return name, value[1:-1] if value[:1] in {'"', "'"} and value[0] == value[-1] else value


class _ReferenceTemplate(Template):
    idpattern = r"[_a-z][._a-z0-9]*"


class _LookupMapping(dict[str, str]):
    def __init__(self, look_up: Callable[[str], str]) -> None:
        super().__init__()
        self._look_up = look_up

    def __missing__(self, name: str) -> str:
        return self._look_up(name)


def substitute(value: str, look_up: Callable[[str], str]) -> str:
    r"""Replace ``$name`` and ``${name}``.

    ``$$`` and ``\$`` stand for a dollar sign; a dollar sign that no name follows stays as it is.

    :param look_up: returns the value of a name, which may contain dots; its exceptions propagate.
    Source: oslo_config.cfg.ConfigOpts._substitute.
    """
    return _ReferenceTemplate(value.replace(r"\$", "$$")).safe_substitute(_LookupMapping(look_up))


def lookup_order(section: str, name: str) -> Iterator[tuple[str, str]]:
    """Yield the (section, option) pairs that a reference may mean, in the order in which to try them.

    :param section: the section of the value that contains the reference.
    :param name: "option" is looked up in the same section, then in DEFAULT; "section.option" in that section. As in
        oslo.config, "DEFAULT.option" is not a valid reference, and section names are in lower case.
    Source: oslo_config.cfg.ConfigOpts.StrSubWrapper.
    """
    group, dot, option = name.partition(".")
    if not dot:
        yield section, name
    elif group != DEFAULT:
        yield group, option
    yield DEFAULT, name
