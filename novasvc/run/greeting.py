"""The greeting that a process prints to a terminal when it runs."""

import shlex
import sys
from pathlib import Path

from novasvc._version import __version__
from novasvc.config import Configuration, masked_url


def greeting(configuration: Configuration, page: str = "") -> str:
    """Return the greeting for a terminal: what runs, where its state is, which commands to try.

    :param page: URL of the API's page, perhaps with a one-time login code.
    """
    settings, origins = configuration.settings, configuration.origins
    command = Path(sys.argv[0]).with_name("novasvc")
    novasvc = str(command) if command.exists() else "novasvc"
    # The command reads the same environment, but not this process's options and files: repeat those.
    for name, value in (("state_dir", str(settings.state_dir)), ("database_url", masked_url(settings.database_url))):
        if origins[name].startswith(("option", "file")):
            novasvc += f" --{name.replace('_', '-')} {shlex.quote(value)}"
    runs = ", ".join(f"{part.binary}@{part.host} (topic {part.topic})" for part in settings.services)
    tries = ["config show"]
    if settings.db_allowed:
        disable = "service disable --reason 'new disk'"
        some = [f"{disable} --host {part.host} --binary {part.binary}" for part in settings.services[:1]]
        tries = ["service list", *some, *tries]
    return (
        f"\nnovasvc {__version__} runs {runs or 'no node'}\n"
        f"  state      {masked_url(settings.database_url) if settings.db_allowed else 'through the conductor'}\n"
        f"  messages   {masked_url(settings.transport_url)}\n"
        + (f"  page       {page}\n" if page else "")
        + f"  try        {f'{chr(10)}             '.join(f'{novasvc} {words}' for words in tries)}\n\n"
    )
