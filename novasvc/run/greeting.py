"""The greeting that a process prints to a terminal when it runs."""

import shlex
import sys
from pathlib import Path

from novasvc._version import __version__
from novasvc.config import Configuration, ServiceSettings, masked_url
from novasvc.rpc.exposure import safe_without_arguments


def greeting(configuration: Configuration, page: str = "") -> str:
    """Return the greeting for a terminal: what runs, where its state is, which commands to try.

    :param page: URL of the API's page, perhaps with a one-time login code.
    """
    settings, origins = configuration.settings, configuration.origins
    command = Path(sys.argv[0]).with_name("novasvc")
    novasvc = str(command) if command.exists() else "novasvc"
    # The command reads the same environment, but not this process's options and files: repeat those.
    for name, value in (
        ("state_dir", str(settings.state_dir)),
        ("database_url", masked_url(settings.database_url)),
        ("transport_url", masked_url(settings.transport_url)),
    ):
        if origins[name].startswith(("option", "file")):
            novasvc += f" --{name.replace('_', '-')} {shlex.quote(value)}"
    runs = ", ".join(f"{part.binary}@{part.host} (topic {part.topic})" for part in settings.services)
    tries = [words for part in settings.services[:1] for words in (_example(part), f"describe {part.topic}")]
    tries.append("config show")
    if settings.db_allowed:
        tries.insert(0, "service list")
    state = str(settings.state_dir)
    if not settings.db_allowed:
        state += " (the services table: through the conductor)"
    elif not settings.database_in_state_dir:
        state += f" (the services table: {masked_url(settings.database_url)})"
    messages = masked_url(settings.transport_url)
    if not settings.uses_broker:
        messages += " (reaches the processes of this user on this host)"
    return (
        f"\nnovasvc {__version__} runs {runs or 'no node'}\n"
        f"  state      {state}\n"
        f"  messages   {messages}\n"
        + (f"  page       {page}\n" if page else "")
        + f"  try        {f'{chr(10)}             '.join(f'{novasvc} {words}' for words in tries)}\n\n"
    )


def _example(service: ServiceSettings) -> str:
    """Return a command that changes nothing: a call of an idempotent method if its manager is known here, or a ping."""
    module, _, name = service.manager.replace(":", ".").rpartition(".")
    # Not imported for this: a supervisor runs no code of the users'.
    methods = safe_without_arguments(getattr(sys.modules.get(module), name, None))
    return f"call {service.topic} {methods[0]}" if methods else f"ping {service.topic}"
