"""``novasvc new``: create a project with a manager, its settings, tests and a systemd unit."""

import keyword
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import click

from novasvc._version import __version__
from novasvc.cli.run import topic_of
from novasvc.errors import ProblemError

_FILES = {
    "README.md.in": "README.md",
    "pyproject.toml.in": "pyproject.toml",
    "gitignore.in": ".gitignore",
    "package.py.in": "{{package}}/__init__.py",
    "manager.py.in": "{{package}}/{{module}}.py",
    "settings.toml.in": "{{package}}.toml",
    "unit.service.in": "{{package}}.service",
    "tests.py.in": "tests/__init__.py",
    "test.py.in": "tests/test_{{module}}.py",
    "run.in": "tests/run",
}
"""Template in novasvc/cli/templates -> path in the project. A file named "run" is made executable."""

_PYTHON = ".novasvc-python"
"""The file that names the Python of this novasvc, for tests/run; git ignores it."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_CLASS = re.compile(r"[A-Z][A-Za-z0-9]{0,63}")
_OWN = frozenset({"tests", "test", "setup", "build", "dist"})
_TAKEN = frozenset(
    {"Any", "Client", "Deferred", "Logger", "Manager", "RequestContext", "Reservation", "Service", "Target"}
)
"""Names that the templates import or define."""


@click.command(epilog="Example: novasvc new shop && cd shop && tests/run")
@click.argument("name")
@click.option(
    "--manager", "class_name", metavar="CLASS", default="Stock", show_default=True, help="Class of the manager."
)
def new(name: str, class_name: str) -> None:
    """Create a project in a new folder NAME: a package with a manager, settings, tests and a systemd unit.

    NAME becomes the name of a Python package: lower-case letters, digits and underscores.
    """
    check_name(name)
    check_class(class_name)
    topic = topic_of(class_name)
    values = {
        "package": name,
        "class": class_name,
        "module": topic,
        "topic": topic,
        "binary": f"novasvc-{topic}",  # as `novasvc run` names it: a host has one service of a topic
        "version": __version__,
    }
    directory = Path.cwd() / name
    _create(directory, values)
    run = f"{name}.{topic}:{class_name}"
    click.echo(
        f"created {directory}\n"
        f"  test it   cd {shlex.quote(name)} && tests/run\n"
        f"  run it    novasvc run {run} --reload\n"
        f"  call it   novasvc call {topic} reserve item=tea amount=2"
    )


def check_name(name: str) -> None:
    """Check the name of a project.

    :raises ProblemError: it cannot be the name of a package, or would hide another module.
    """
    subject, remedy = f"project name {name!r}", "give another name"
    if not _NAME.fullmatch(name):
        better = re.sub(r"[^a-z0-9]+", "_", Path(name).name.lower()).strip("_")[:64]
        problem = "a package's name has lower-case letters, digits and underscores, and begins with a letter"
        raise ProblemError(subject, problem, f"try {better!r}" if _NAME.fullmatch(better) else remedy)
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise ProblemError(subject, "it is a keyword of Python", remedy)
    if name in _OWN:
        raise ProblemError(subject, "a folder of this name has another purpose in a project", remedy)
    if name in sys.stdlib_module_names:
        raise ProblemError(subject, "it would hide a module of Python's standard library", remedy)
    if _is_installed(name):
        raise ProblemError(subject, "it would hide the installed package of this name", remedy)


def check_class(name: str) -> None:
    """Check the name of a manager's class.

    :raises ProblemError: it cannot be the name of a class, or of its module.
    """
    subject, remedy = f"manager {name!r}", "give another name with --manager"
    if not _CLASS.fullmatch(name):
        better = "".join(part[:1].upper() + part[1:] for part in re.split(r"[^A-Za-z0-9]+", name))
        problem = "a class has letters and digits, and begins with a capital letter"
        raise ProblemError(subject, problem, f"try --manager {better}" if _CLASS.fullmatch(better) else remedy)
    module = topic_of(name)
    if keyword.iskeyword(module) or keyword.iskeyword(name):
        raise ProblemError(subject, f"its module would be {module!r}, a keyword of Python", remedy)
    if name in _TAKEN:
        raise ProblemError(subject, "the code of the project uses this name otherwise", remedy)


def _is_installed(name: str) -> bool:
    try:
        found = find_spec(name)
    except (ImportError, ValueError):
        return False
    # A mere folder, such as one of this name in the current directory, is not a package that somebody installed.
    return found is not None and found.origin is not None


def _create(directory: Path, values: Mapping[str, str]) -> None:
    subject = f"project {str(directory)!r}"
    try:
        directory.mkdir()
    except FileExistsError:
        raise ProblemError(subject, "it exists already", "give another name, or remove it") from None
    except OSError as error:
        problem = f"the folder cannot be created: {error.strerror}"
        raise ProblemError(subject, problem, "run the command in a folder that this user can write to") from None
    try:
        _write(directory, values)
    except BaseException as error:
        # A half-made project would be in the way of the next attempt.
        shutil.rmtree(directory, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise ProblemError(subject, f"writing it failed: {error.strerror}", "make room, and try again") from None


def _write(directory: Path, values: Mapping[str, str]) -> None:
    templates = resources.files("novasvc.cli") / "templates"
    for template, path in _FILES.items():
        file = directory / filled(path, values)
        file.parent.mkdir(exist_ok=True)
        file.write_text(filled((templates / template).read_text(encoding="utf-8"), values), encoding="utf-8")
        if file.name == "run":
            umask = os.umask(0)
            os.umask(umask)
            file.chmod(0o777 & ~umask)
    (directory / _PYTHON).write_text(f"{sys.executable}\n", encoding="utf-8")


def filled(template: str, values: Mapping[str, str]) -> str:
    """Return a template with its {{names}} replaced.

    :raises KeyError: a name has no value.
    """
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)
