"""INI files as oslo.config reads them: how lines become values, and what ``$name`` in a value stands for."""

from collections.abc import Callable, Iterable, Iterator
from string import Template

import attrs

DEFAULT = "DEFAULT"


class INIError(ValueError):
    """A line that oslo.config would refuse.

    :param problem: what is wrong with it; without the line itself, which may hold a password.
    :param line: its number.
    """

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = line


class UndefinedOptionError(ValueError):
    """A value names an option that has no value.

    :param name: as it is written after the dollar sign.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@attrs.frozen
class Assignment:
    """One ``name = value``.

    :param section: its section, in lower case unless it is DEFAULT.
    :param name: as it is written.
    :param value: quotes around it removed; the lines of a continued one are joined by line feeds.
    """

    section: str
    name: str
    value: str = attrs.field(repr=False)


def normalized(section: str) -> str:
    """Return a section's name as it is compared: in lower case, unless it is DEFAULT."""
    return section if section == DEFAULT else section.lower()


def read_assignments(lines: Iterable[str]) -> Iterator[Assignment]:
    """Read the lines of an INI file.

    A line that begins with a blank continues the value above it, also if it looks like a comment. Neither a section
    nor a name need be unique.

    :raises INIError: a line is neither of a section, a value, nor a comment.
    Source: oslo_config.iniparser.BaseParser, oslo_config.cfg.ConfigParser.
    """
    section: str | None = None
    name: str | None = None
    values: list[str] = []

    def finished() -> Iterator[Assignment]:
        if name is not None and section is not None:
            yield Assignment(section, name, "\n".join(values))

    for number, whole in enumerate(lines, 1):
        line = whole.rstrip()
        if line[:1] in {" ", "\t"}:
            if name is None:
                raise INIError("a line that begins with a blank, and no value above it to continue", number)
            values.append(line.lstrip())
            continue
        yield from finished()
        name = None
        if line.startswith("["):
            section = _section(line, number)
        elif line and not line.startswith(("#", ";")):
            name, value = _split(line, number)
            if section is None:
                raise INIError("a value before the first [section]", number)
            values = [value]
    yield from finished()


def _section(line: str, number: int) -> str:
    if not line.endswith("]"):
        raise INIError('a section that does not end with "]"', number)
    if not line[1:-1]:
        raise INIError("a section without a name", number)
    return normalized(line[1:-1])


def _split(line: str, number: int) -> tuple[str, str]:
    places = [place for place in (line.find("="), line.find(":")) if place >= 0]
    if not places:
        raise INIError('neither "name = value" nor "[section]"', number)
    name, value = line[: min(places)].strip(), line[min(places) + 1 :].strip()
    if not name:
        raise INIError("a value without a name", number)
    # A lone quote is both the first and the last character, and so goes as well.
    return name, value[1:-1] if value[:1] in {'"', "'"} and value[0] == value[-1] else value


class _Substituted(Template):
    idpattern = r"[_a-z][._a-z0-9]*"


class _Names(dict[str, str]):
    def __init__(self, look_up: Callable[[str], str]) -> None:
        super().__init__()
        self._look_up = look_up

    def __missing__(self, name: str) -> str:
        return self._look_up(name)


def substitute(value: str, look_up: Callable[[str], str]) -> str:
    r"""Replace ``$name`` and ``${name}``; ``$$`` and ``\$`` are a dollar sign, and so is one before no name.

    :param look_up: returns the value of a name; it may have dots. What it raises is raised.
    Source: oslo_config.cfg.ConfigOpts._substitute.
    """
    return _Substituted(value.replace(r"\$", "$$")).safe_substitute(_Names(look_up))


def candidates(section: str, name: str) -> Iterator[tuple[str, str]]:
    """Return the sections and options that a name in a value may mean, in the order in which they are tried.

    :param section: of the value.
    :param name: "option" means that of the same section, or else of DEFAULT; "section.option" says which. DEFAULT is no
        section in this, and others are in lower case.
    Source: oslo_config.cfg.ConfigOpts.StrSubWrapper.
    """
    group, dot, option = name.partition(".")
    if not dot:
        yield section, name
    elif group != DEFAULT:
        yield group, option
    yield DEFAULT, name
