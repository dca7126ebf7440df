"""What would end a start with these settings, found without starting anything."""

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
from novasvc.config.model import SPECS
from novasvc.config.transport_url import BrokerAddress
from novasvc.errors import DatabaseRefusedError, DirectoryError, ListenError, NovasvcError
from novasvc.manager import check_manager
from novasvc.net.sockets import address_of, bound, port_of
from novasvc.node.paste import Loader
from novasvc.registry.sql import sqlite
from novasvc.registry.sql.address import DatabaseAddress
from novasvc.transport.amqp.configured import broker_options
from novasvc.transport.amqp.tls import check_files
from novasvc.workers.control.path_lock import see_path
from novasvc.workers.errors import ControlError

_PATIENCE = 2.0
"""Seconds that a supervisor may take to say that it is there."""


_Check = tuple[Collection[str], Callable[[], object]]
"""Names of the settings that it goes by, and a function that raises what is wrong."""

_BROKER = ("transport_url", *(name for name in SPECS if name.startswith("rabbit_")))


def problems(settings: Settings, *, running: bool, unsure: Collection[str] = ()) -> Iterator[NovasvcError]:
    """Return an error for each thing that would end a start here, of this user.

    Modules of managers are imported, and no manager is made. Addresses are bound for a moment, and not listened on.
    Neither the broker nor the database is asked.

    :param running: the node runs already, so its addresses are rightly taken.
    :param unsure: settings that are to have another value than they have here; what goes by them is not checked.
    """
    checks: list[_Check] = [
        *_managers(settings),
        *_directories(settings),
        (_BROKER, partial(_broker, settings)),
        (("database_url", "state_dir", "api", "db_allowed"), partial(_database, settings)),
        *_served(settings),
    ]
    for names, check in checks:
        if {*names} & {*unsure}:
            continue
        try:
            check()
        except NovasvcError as error:
            yield error
    if not running and not _is_supervised_here(settings):
        yield from _addresses(settings, unsure)


def _managers(settings: Settings) -> Iterator[_Check]:
    for part in settings.services:
        names = ("binary", "topic", "manager", f"{part.topic}_manager")
        yield names, partial(check_manager, part.manager, host=part.host, **part.options)
    for name in _applications(settings):
        if name in settings.managers:
            yield (), partial(check_manager, settings.managers[name], host=settings.host)


def _directories(settings: Settings) -> Iterator[_Check]:
    """Check the directories that these settings use, and no others."""
    if settings.services:
        temporary = settings.tempdir or Path(tempfile.gettempdir())
        yield ("tempdir",), partial(_see_writable, "temporary directory", temporary, "tempdir", may_be_made=False)
    # The API keeps the key of its sessions there.
    if settings.api or (settings.database_in_state_dir and _needs_database(settings)):
        names = ("state_dir", "api", "database_url", "db_allowed")
        yield names, partial(_see_writable, "state directory", settings.state_dir, "state_dir")
    if settings.supervised:
        names = ("control_socket", "state_dir", "workers", "api_workers")
        yield names, partial(see_path, settings.control_socket.absolute())
        folder = settings.control_socket.parent
        yield names, partial(_see_writable, "directory of the control socket", folder, "control_socket")


def _see_writable(purpose: str, path: Path, setting: str, *, may_be_made: bool = True) -> None:
    """See that files can be made in a directory, or that the directory can be made.

    :raises DirectoryError: otherwise.
    """
    there = path
    while may_be_made and not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.exists():
        problem, remedy = "there is no such directory", f"create it, or set {setting} to another"
    elif not there.is_dir():
        problem, remedy = f"{there} is no directory", f"set {setting} to another"
    elif not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        problem = f"this user (uid {os.geteuid()}) has no permission to write to {there}"
        remedy = f"make that writable for the user, or set {setting} to another"
    else:
        return
    raise DirectoryError(purpose, str(path), problem, remedy)


def _broker(settings: Settings) -> None:
    if not settings.transport_url.startswith("memory:"):
        check_files(BrokerAddress.parse(settings.transport_url, tls=settings.rabbit_ssl), broker_options(settings))


def _needs_database(settings: Settings) -> bool:
    return settings.api or any(part.db_allowed for part in settings.services)


def _database(settings: Settings) -> None:
    if not _needs_database(settings):
        return
    address = DatabaseAddress.parse(settings.database_url)
    address.make_engine(connections=1, patience=1.0).dispose()
    path = address.path
    if path is None:
        return
    if not os.path.lexists(path):
        # Only the state directory is made where it is missing.
        _see_writable(
            "directory of the database", path.parent, "database_url", may_be_made=path.parent == settings.state_dir
        )
    elif path.is_dir():
        raise DatabaseRefusedError(address.masked, f"{path} is a directory")
    elif reason := sqlite.unwritable(path):
        raise DatabaseRefusedError(address.masked, reason)


def _served(settings: Settings) -> Iterator[_Check]:
    loader = Loader(settings.api_paste_config)
    certificate = ("ssl_cert_file", "ssl_key_file", "ssl_ca_file")
    for name in _applications(settings):
        yield ("enabled_apis", "enabled_ssl_apis", "api_paste_config"), partial(loader.check, name)
    if settings.api:
        from novasvc.api.service import read_keys  # noqa: PLC0415 - imports Klein

        yield (*certificate, "api", "api_token_file", "api_use_ssl", "state_dir"), partial(read_keys, settings)
    if settings.enabled_ssl_apis and not (settings.api and settings.api_use_ssl):
        from novasvc.http.tls import make_tls  # noqa: PLC0415 - imports OpenSSL

        yield certificate, partial(make_tls, settings.ssl_cert_file, settings.ssl_key_file, settings.ssl_ca_file)


def _applications(settings: Settings) -> dict[str, None]:
    return dict.fromkeys([*settings.enabled_apis, *settings.enabled_ssl_apis])


def _addresses(settings: Settings, unsure: Collection[str]) -> Iterator[ListenError]:
    """Return an error for each address that cannot be bound, by this process or beside those before it."""
    wanted = [(name, settings.api_named(name)) for name in _applications(settings)]
    places = [(name, api.listen, api.listen_port) for name, api in wanted]
    if settings.api:
        places.insert(0, ("api", settings.api_listen, settings.api_listen_port))
    taken: list[tuple[str, socket.socket]] = []
    with ExitStack() as stack:
        for name, host, port in places:
            if {f"{name}_listen", f"{name}_listen_port"} & {*unsure}:
                continue
            try:
                made = stack.enter_context(closing(bound(host, port)))
            except ListenError as error:
                yield error
                continue
            for first, other in taken:
                if _clash(made, other):
                    problem = f"both {first} and {name} are to listen there"
                    if address_of(made) != address_of(other):
                        problem += f", {first} on {address_of(other)}"
                    yield ListenError(address_of(made), problem, "give one another port")
                    break
            else:
                if port:
                    taken.append((name, made))


def _clash(one: socket.socket, other: socket.socket) -> bool:
    """Tell whether only one of two sockets can listen; both can be bound all the same, because they may be reused."""
    if port_of(one) != port_of(other):
        return False
    addresses = [ip_address(each.getsockname()[0]) for each in (one, other)]
    # "::" takes the connections of IPv4, too.
    return addresses[0] == addresses[1] or any(
        wide.is_unspecified and wide.version >= narrow.version for wide, narrow in (addresses, reversed(addresses))
    )


def _is_supervised_here(settings: Settings) -> bool:
    """Tell whether the supervisor of these settings runs: then it is for its reload that the settings are checked."""
    if not settings.supervised:
        return False
    try:
        ask(settings.control_socket, "who", timeout=_PATIENCE)
    except ControlError:
        return False
    return True
