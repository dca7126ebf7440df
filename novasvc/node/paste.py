"""Loads WSGI applications from a paste configuration."""

import configparser
from pathlib import Path
from typing import Any

from novasvc.errors import describe
from novasvc.node.errors import AppError

_KINDS = ("app", "application", "composite", "composit", "pipeline", "filter-app")
"""Prefixes of a section that defines an application, before its colon."""


class Loader:
    """Load applications by name.

    :param config_path: the paste configuration.
    :raises AppError: from its methods; the configuration is read when an application is loaded.
    Source: nova.wsgi.Loader.
    """

    def __init__(self, config_path: Path | str) -> None:
        self.config_path = str(Path(config_path).absolute())

    def check(self, name: str) -> None:
        """Check that there is an application of this name, without loading it.

        :raises AppError: there is none, or the file cannot be read.
        """
        parser = configparser.RawConfigParser(strict=False)
        parser.optionxform = str  # type: ignore[method-assign,assignment]
        try:
            with Path(self.config_path).open(encoding="utf-8") as file:
                parser.read_file(file)
        except OSError as error:
            remedy = "give the path of a paste configuration as api_paste_config"
            raise self._error(name, f"the file cannot be read: {error.strerror or error}", remedy) from error
        except (UnicodeDecodeError, configparser.Error) as error:
            text = " ".join(str(error).split())
            raise self._error(name, f"it is not a paste configuration: {text}", "fix the file") from error
        sections = set(parser.sections())
        if not any(f"{kind}:{name}" in sections for kind in _KINDS):
            apps = sorted(section.partition(":")[2] for section in sections if section.partition(":")[0] in _KINDS)
            remedy = f"it has: {', '.join(apps)}" if apps else f"write a section [app:{name}]"
            raise self._error(name, "there is no such application in it", remedy)

    def load_app(self, name: str) -> Any:
        """Load an application.

        :return: the WSGI callable that its factory returned.
        :raises AppError: it cannot be loaded; the error says why.
        """
        self.check(name)
        try:
            from paste.deploy import loadapp  # noqa: PLC0415 - optional: needed only for paste configurations
        except ImportError as error:
            raise self._error(name, "PasteDeploy is not installed", "`pip install PasteDeploy`") from error
        try:
            return loadapp(f"config:{self.config_path}", name=name)
        except (Exception, SystemExit) as error:
            raise self._error(name, f"loading it raised {describe(error)}", "fix it, or its section") from error

    def _error(self, name: str, problem: str, remedy: str) -> AppError:
        return AppError(f"{name!r} of {self.config_path}", problem, remedy)
