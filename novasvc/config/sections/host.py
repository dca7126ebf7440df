"""The host's name and directories."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import attrs

from novasvc.config.definition import setting
from novasvc.config.types import NAME, NAMES, PATH


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """Return the default state directory of this user.

    :param environ: XDG_STATE_HOME and HOME are read, except for root.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/novasvc")
    state_home = environ.get("XDG_STATE_HOME", "")
    if state_home.startswith("/"):
        return Path(state_home, "novasvc")
    home = environ.get("HOME")
    return Path(home, ".local/state/novasvc") if home else Path("/var/lib/novasvc")


@attrs.frozen(kw_only=True, slots=False)
class HostSection:
    """The host's name and directories."""

    host: str = setting(
        "Host name that the services of this machine register under.",
        NAME,
        default=attrs.Factory(socket.gethostname),
        default_text="the machine's name",
    )
    zone: str | None = setting(
        "Zone that this host is in: a building, a room, a rack. `novasvc fleet` takes services zone by zone, and "
        "lists can be filtered by it.",
        NAME,
        default=None,
        optional=True,
    )
    tags: tuple[str, ...] = setting(
        "Tags of the services of this host, by which lists and `novasvc fleet` can select them.",
        NAMES,
        default=(),
        default_text="none",
    )
    state_dir: Path = setting(  # noqa: RUF009 - it makes the field
        "Directory for persistent state, such as the SQLite database.",
        PATH,
        default=attrs.Factory(lambda: default_state_dir(os.environ)),
        default_text="/var/lib/novasvc for root, else novasvc in $XDG_STATE_HOME or ~/.local/state",
        nova="state_path",
    )
    tempdir: Path | None = setting(  # noqa: RUF009
        "Directory for temporary files.", PATH, default=None, default_text="the system's", optional=True
    )
