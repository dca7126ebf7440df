"""Preflight checks: find what would prevent a start with these settings, without starting anything."""

import os
import socket
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing
from functools import partial
from ipaddress import ip_address
from pathlib import Path

from novasvc.cli.control import ask
from novasvc.config import Settings
from novasvc.config.model import DEFINITIONS
from novasvc.config.transport_url import BrokerAddress
from novasvc.errors import NovasvcError
from novasvc.manager import check_manager
from novasvc.middleware import load_middleware
from novasvc.net.errors import ListenError
from novasvc.net.sockets import address_of, bind_tcp, port_of
from novasvc.node.errors import DirectoryError
from novasvc.node.paste import Loader
from novasvc.registry.errors import DatabaseRefusedError
from novasvc.registry.sql import sqlite
from novasvc.registry.sql.address import DatabaseAddress
from novasvc.rpc.identity.keys import read_callers, read_signing_key
from novasvc.transport.amqp.configured import broker_options
from novasvc.transport.amqp.endpoints import check_tls_files
from novasvc.workers.control.path_lock import check_path
from novasvc.workers.errors import ControlError

_REPLY_TIMEOUT = 2.0
"""Seconds to wait for a running supervisor to reply."""


_Check = tuple[Collection[str], Callable[[], object]]
"""Names of the settings that a check depends on, and the check: a function that raises a NovasvcError."""

_BROKER = ("transport_url", *(name for name in DEFINITIONS if name.startswith("rabbit_")))


def problems(settings: Settings, *, running: bool, invalid: Collection[str] = ()) -> Iterator[NovasvcError]:
    """Yield an error for each problem that would prevent a start on this host as this user.

    Managers are imported but not instantiated. Addresses are bound briefly, without listening. Neither the broker nor
    the database is contacted.

    :param running: the node is already running, so that its addresses are in use; they are not checked.
    :param invalid: names of settings with an invalid value, which have their default here; checks that depend on them
        are skipped, because their results would be misleading.
    """
    checks: list[_Check] = [
        *_managers(settings),
        *_directories(settings),
        (_BROKER, partial(_check_broker, settings)),
        (("database_url", "state_dir", "api", "db_allowed"), partial(_check_database, settings)),
        *_check_http(settings),
        (("rpc_middleware",), partial(load_middleware, settings.rpc_middleware)),
        *_key_files(settings),
    ]
    for names, check in checks:
        if {*names} & {*invalid}:
            continue
        try:
            check()
        except NovasvcError as error:
            yield error
    if not running and not _is_supervised_here(settings):
        yield from _addresses(settings, invalid)


def _key_files(settings: Settings) -> Iterator[_Check]:
    if settings.rpc_signing_key_file is not None:
        yield ("rpc_signing_key_file",), partial(read_signing_key, settings.rpc_signing_key_file)
    if settings.rpc_callers_file is not None:
        yield ("rpc_callers_file",), partial(read_callers, settings.rpc_callers_file)


def _managers(settings: Settings) -> Iterator[_Check]:
    for service in settings.services:
        names = ("binary", "topic", "manager", f"{service.topic}_manager")
        yield names, partial(check_manager, service.manager, host=service.host, **service.options)
    for name in _applications(settings):
        if name in settings.managers:
            yield (), partial(check_manager, settings.managers[name], host=settings.host)


def _directories(settings: Settings) -> Iterator[_Check]:
    """Yield checks for the directories that these settings use."""
    if settings.services:
        temporary = settings.tempdir or Path(tempfile.gettempdir())
        yield (
            ("tempdir",),
            partial(_check_writable, "temporary directory", temporary, "tempdir", created_at_start=False),
        )
    # The API keeps its session key there.
    if settings.api or (settings.database_in_state_dir and _needs_database(settings)):
        names = ("state_dir", "api", "database_url", "db_allowed")
        yield names, partial(_check_writable, "state directory", settings.state_dir, "state_dir")
    if settings.supervised:
        names = ("control_socket", "state_dir", "workers", "api_workers")
        yield names, partial(check_path, settings.control_socket.absolute())
        folder = settings.control_socket.parent
        yield names, partial(_check_writable, "directory of the control socket", folder, "control_socket")


def _check_writable(purpose: str, path: Path, setting: str, *, created_at_start: bool = True) -> None:
    """Check that files can be created in a directory, or that a missing directory can be created.

    :param setting: name of the setting that configures the directory.
    :param created_at_start: whether a start creates the directory if it is missing.
    :raises DirectoryError: neither is possible.
    """
    ancestor = path
    while created_at_start and not os.path.lexists(ancestor) and ancestor != ancestor.parent:
        ancestor = ancestor.parent
    if not ancestor.exists():
        problem, remedy = "no such directory", f"create it, or set {setting} to another directory"
    elif not ancestor.is_dir():
        problem, remedy = f"{ancestor} is not a directory", f"set {setting} to another directory"
    elif not os.access(ancestor, os.W_OK | os.X_OK, effective_ids=True):
        problem = f"this user (uid {os.geteuid()}) cannot write to {ancestor}"
        remedy = f"make it writable for this user, or set {setting} to another directory"
    else:
        return
    raise DirectoryError(f"{purpose} {str(path)!r}", problem, remedy)


def _check_broker(settings: Settings) -> None:
    if settings.uses_broker:
        check_tls_files(BrokerAddress.parse(settings.transport_url, tls=settings.rabbit_ssl), broker_options(settings))


def _needs_database(settings: Settings) -> bool:
    return settings.api or any(service.db_allowed for service in settings.services)


def _check_database(settings: Settings) -> None:
    if not _needs_database(settings):
        return
    address = DatabaseAddress.parse(settings.database_url)
    address.make_engine(connections=1, wait_timeout=1.0).dispose()
    path = address.path
    if path is None:
        return
    if not os.path.lexists(path):
        # A start creates the state directory if it is missing, but no other directory.
        _check_writable(
            "directory of the database", path.parent, "database_url", created_at_start=path.parent == settings.state_dir
        )
    elif path.is_dir():
        raise DatabaseRefusedError(address.masked, f"{path} is a directory")
    elif reason := sqlite.unwritable(path):
        raise DatabaseRefusedError(address.masked, reason)


def _check_http(settings: Settings) -> Iterator[_Check]:
    loader = Loader(settings.api_paste_config)
    certificate = ("ssl_cert_file", "ssl_key_file", "ssl_ca_file")
    for name in _applications(settings):
        yield ("enabled_apis", "enabled_ssl_apis", "api_paste_config"), partial(loader.check, name)
    if settings.api:
        from novasvc.api.service import read_credentials  # noqa: PLC0415 - imports Klein

        yield (*certificate, "api", "api_token_file", "api_use_ssl", "state_dir"), partial(read_credentials, settings)
    if settings.enabled_ssl_apis and not (settings.api and settings.api_use_ssl):
        from novasvc.http.tls import make_tls  # noqa: PLC0415 - imports OpenSSL

        yield certificate, partial(make_tls, settings.ssl_cert_file, settings.ssl_key_file, settings.ssl_ca_file)


def _applications(settings: Settings) -> dict[str, None]:
    return dict.fromkeys([*settings.enabled_apis, *settings.enabled_ssl_apis])


def _addresses(settings: Settings, invalid: Collection[str]) -> Iterator[ListenError]:
    """Yield an error for each address that is in use, or that clashes with another address of these settings."""
    wanted = [(name, settings.api_named(name)) for name in _applications(settings)]
    addresses_wanted = [(name, api.listen, api.listen_port) for name, api in wanted]
    if settings.api:
        addresses_wanted.insert(0, ("api", settings.api_listen, settings.api_listen_port))
    taken: list[tuple[str, socket.socket]] = []
    with ExitStack() as stack:
        for name, host, port in addresses_wanted:
            if {f"{name}_listen", f"{name}_listen_port"} & {*invalid}:
                continue
            try:
                # Sockets stay bound until all are checked, so that two settings with the same address are found.
                bound = stack.enter_context(closing(bind_tcp(host, port)))
            except ListenError as error:
                yield error
                continue
            for first, other in taken:
                if _conflict(bound, other):
                    problem = f"both {first} and {name} are configured to listen there"
                    if address_of(bound) != address_of(other):
                        problem += f", {first} on {address_of(other)}"
                    yield ListenError(address_of(bound), problem, "give one of them another port")
                    break
            else:
                if port:
                    taken.append((name, bound))


def _conflict(one: socket.socket, other: socket.socket) -> bool:
    """Whether only one of two bound sockets could listen. SO_REUSEADDR lets both bind, so bind() does not tell."""
    if port_of(one) != port_of(other):
        return False
    addresses = [ip_address(each.getsockname()[0]) for each in (one, other)]
    # "::" accepts IPv4 connections, too.
    return addresses[0] == addresses[1] or any(
        wide.is_unspecified and wide.version >= narrow.version for wide, narrow in (addresses, reversed(addresses))
    )


def _is_supervised_here(settings: Settings) -> bool:
    """Whether the supervisor of these settings is running: the settings are then checked for its reload."""
    if not settings.supervised:
        return False
    try:
        ask(settings.control_socket, "who", timeout=_REPLY_TIMEOUT)
    except ControlError:
        return False
    return True
