"""A service of WSGI under test: its paste configuration, its applications, and where they are found."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from novasvc.config import Settings, load
from novasvc.manager import Manager
from novasvc.node.runtime import Runtime
from novasvc.service import WSGIService

events: list[str] = []
"""What the manager's hooks, and the application, have noted."""


def app_factory(global_config: Any, greeting: str = "hello") -> Callable[..., Iterable[bytes]]:
    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        start("200 OK", [("Content-Type", "text/plain")])
        return [f"{greeting} by {environ['wsgi.url_scheme']}".encode()]

    events.append("load")
    return app


def broken_factory(global_config: Any) -> None:
    raise RuntimeError("no room")


class Noting(Manager):
    def init_host(self) -> None:
        events.append("init_host")
        assert self.attachments.rpc is not None

    def pre_start_hook(self) -> None:
        events.append("pre_start_hook")

    def post_start_hook(self) -> None:
        events.append("post_start_hook")

    def cleanup_host(self) -> None:
        events.append("cleanup_host")


class WSGICase(TestCase):
    def setUp(self) -> None:
        events.clear()
        self.paste = Path("api-paste.ini").absolute()
        self.paste.write_text(
            f"[app:hello]\npaste.app_factory = {__name__}:app_factory\n"
            f"[app:brave]\npaste.app_factory = {__name__}:app_factory\ngreeting = good morning\n"
            f"[app:broken]\npaste.app_factory = {__name__}:broken_factory\n"
        )

    def runtime(self, **options: Any) -> Runtime:
        return Runtime.from_settings(self.settings(**options), reactor)

    def settings(self, **options: Any) -> Settings:
        environ = {
            f"NOVASVC_{name.upper()}": str(value)
            for name, value in {"state_dir": Path.cwd() / "state", **options}.items()
        }
        return load((), environ, {}).settings

    def make(
        self, name: str = "hello", *, use_ssl: bool = False, max_url_len: int | None = None, **options: Any
    ) -> WSGIService:
        service = WSGIService(name, None, use_ssl, max_url_len, runtime=self.runtime(**options))
        self.addCleanup(service.stop)
        return service
