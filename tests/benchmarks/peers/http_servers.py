"""Servers of HTTP with one application: ``python -m tests.benchmarks.peers.http_servers FUNCTION PORT WORKERS``."""

import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROWS = [
    {
        "id": number,
        "binary": "nova-compute",
        "host": f"host-{number:04}",
        "zone": "nova",
        "state": "up",
        "status": "enabled",
        "updated_at": "2026-11-23T05:00:00.000000",
        "disabled_reason": None,
    }
    for number in range(17)
]
"""What is answered: 3 KB of JSON."""
JSON = "application/json"


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer as an API does."""
    body = json.dumps({"services": ROWS}).encode()
    start_response("200 OK", [("Content-Type", JSON), ("Content-Length", str(len(body)))])
    return [body]


def app_factory(global_config: Any) -> Any:
    """Return the application; for paste."""
    return app


def novasvc(port: int, workers: int, *, log: bool = False) -> None:
    """WSGIService in supervised workers, as a script serves it; its log goes to standard output."""
    import os  # noqa: PLC0415 - each server imports what it needs, and no more

    folder = Path(tempfile.mkdtemp(prefix="novasvc-benchmark-"))
    paste = folder / "api-paste.ini"
    paste.write_text(f"[app:bench]\npaste.app_factory = {__spec__.name}:app_factory\n")
    os.environ |= {
        "NOVASVC_STATE_DIR": str(folder),
        "NOVASVC_API_PASTE_CONFIG": str(paste),
        "NOVASVC_BENCH_LISTEN_PORT": str(port),
    }
    if not log:
        os.environ["NOVASVC_WSGI_LOG_FORMAT"] = "none"
    from novasvc.service import WSGIService, serve, wait  # noqa: PLC0415

    serve(WSGIService("bench"), workers=workers)
    wait()


def novasvc_log(port: int, workers: int) -> None:
    """As above, with the access log."""
    novasvc(port, workers, log=True)


def klein_route(port: int, _workers: int) -> None:
    """A route of Klein on twisted.web's own site, in the reactor."""
    from klein import Klein  # noqa: PLC0415
    from twisted.internet import reactor  # noqa: PLC0415
    from twisted.web.server import Site  # noqa: PLC0415

    routes = Klein()

    @routes.route("/")
    def services(request: Any) -> bytes:
        request.setHeader(b"content-type", JSON.encode())
        return json.dumps({"services": ROWS}).encode()

    reactor.listenTCP(port, Site(routes.resource()), backlog=1024, interface="127.0.0.1")
    reactor.run()


def klein_ours(port: int, _workers: int) -> None:
    """The same route on our site."""
    from klein import Klein  # noqa: PLC0415
    from twisted.internet import reactor  # noqa: PLC0415

    from novasvc.http import make_site  # noqa: PLC0415

    routes = Klein()

    @routes.route("/")
    def services(request: Any) -> bytes:
        request.setHeader(b"content-type", JSON.encode())
        return json.dumps({"services": ROWS}).encode()

    reactor.listenTCP(port, make_site(routes.resource(), reactor=reactor), backlog=1024, interface="127.0.0.1")
    reactor.run()


def twisted_wsgi(port: int, _workers: int) -> None:
    """twisted.web.wsgi."""
    from twisted.internet import reactor  # noqa: PLC0415
    from twisted.web.server import Site  # noqa: PLC0415
    from twisted.web.wsgi import WSGIResource  # noqa: PLC0415

    site = Site(WSGIResource(reactor, reactor.getThreadPool(), app))
    reactor.listenTCP(port, site, backlog=1024, interface="127.0.0.1")
    reactor.run()


def eventlet_wsgi(port: int, _workers: int) -> None:
    """eventlet's wsgi server, as Nova had it; without its log."""
    import eventlet  # noqa: PLC0415
    from eventlet import wsgi  # noqa: PLC0415

    wsgi.server(eventlet.listen(("127.0.0.1", port), backlog=1024), app, log_output=False)


def gunicorn(port: int, workers: int, *options: str) -> None:
    """Gunicorn; it logs no requests by itself."""
    from gunicorn.app.wsgiapp import run  # noqa: PLC0415

    bind = ("-b", f"127.0.0.1:{port}", "--backlog", "1024", "-w", str(workers), "--log-level", "error")
    sys.argv = ["gunicorn", *bind, *options, f"{__spec__.name}:app"]
    run()


def gunicorn_sync(port: int, workers: int) -> None:
    """Gunicorn's default."""
    gunicorn(port, workers)


def gunicorn_gthread(port: int, workers: int) -> None:
    """Gunicorn with a thread for each connection of the benchmark."""
    gunicorn(port, workers, "-k", "gthread", "--threads", "32")


if __name__ == "__main__":
    globals()[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))
