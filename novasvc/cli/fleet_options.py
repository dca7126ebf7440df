"""The options that the commands of `novasvc fleet` share: which services, and in which waves."""

import getpass
import os
import socket
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from novasvc.cli import candidates
from novasvc.cli.remote import TIMEOUT
from novasvc.fleet.plan import BatchSize, Limits
from novasvc.fleet.selection import Selection


def selection_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that select services; the command gets them as ``selection``."""

    @click.option("--binary", help="Services of this binary name.", shell_complete=candidates.binaries)
    @click.option("--topic", help="Services of this topic.")
    @click.option(
        "--host",
        metavar="PATTERN",
        help="Services on hosts that match, such as 'compute-*' or 'rack[12]-?'.",
        shell_complete=candidates.service_hosts,
    )
    @click.option("--zone", help="Services of this zone.")
    @click.option("--tag", help="Services with this tag.")
    @wraps(function)
    def with_selection(
        *args: Any,
        binary: str | None,
        topic: str | None,
        host: str | None,
        zone: str | None,
        tag: str | None,
        **kw: Any,
    ) -> Any:
        selection = Selection(binary=binary, topic=topic, host=host, zone=zone, tag=tag)
        return function(*args, selection=selection, **kw)

    return with_selection


def _read_batch(_context: click.Context, _option: click.Parameter, text: str) -> BatchSize:
    """Parse "25" or "10%"; a click callback."""
    try:
        return BatchSize.parse(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


def operation_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of an operation: the command gets selection, limits, dry_run, as_json and yes."""

    @click.option(
        "--batch", callback=_read_batch, default="10%", show_default=True, metavar="N|N%", help="Services of each wave."
    )
    @click.option(
        "--canary",
        type=click.IntRange(min=0),
        default=1,
        show_default=True,
        metavar="N",
        help="Services of the first wave, every one of which must succeed; 0 for none.",
    )
    @click.option(
        "--max-failures",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        metavar="N",
        help="Failed services that are tolerated; one more halts the operation.",
    )
    @click.option(
        "--timeout", type=TIMEOUT, default=300.0, show_default=True, metavar="SECONDS", help="Time of each service."
    )
    @click.option("--dry-run", is_flag=True, help="Print the waves, and change nothing.")
    @click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
    @json_option
    @selection_options
    @wraps(function)
    def with_options(
        *args: Any, batch: BatchSize, canary: int, max_failures: int, timeout: float, **kwargs: Any
    ) -> Any:
        limits = Limits(batch=batch, canary=canary, max_failures=max_failures, timeout=timeout)
        return function(*args, limits=limits, **kwargs)

    return with_options


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object a line, for programs, instead of text."
)


def who_operates() -> str:
    """Return who runs this command, for other operators: "alice@box, pid 4711"."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no such user in this container
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}, pid {os.getpid()}"
