"""OpenStack's client, imported once: each command is a fork of this process, as it takes longer to import than to run.

It reads the arguments of a command from each line of its standard input, a JSON array, and writes an object for each:
``{"status": 0, "output": "...", "errors": "..."}``.
"""

import importlib
import json
import os
import sys
import tempfile
from typing import Any, NoReturn

from openstackclient import shell

# What it finds through entry points, command by command.
for name in ("openstackclient.compute.client", "openstackclient.compute.v2.service", "openstack.connection"):
    importlib.import_module(name)


def be_openstack(arguments: list[str], output: int, errors: int) -> NoReturn:
    """Run ``openstack ARGUMENTS`` in this process, and exit as it does."""
    status: Any = 70  # EX_SOFTWARE
    try:
        os.dup2(output, 1)
        os.dup2(errors, 2)
        try:
            status = shell.main(arguments)
        except SystemExit as ended:
            status = ended.code
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status if isinstance(status, int) else int(bool(status)))


def run(arguments: list[str]) -> dict[str, object]:
    """Run a command, and wait until it has exited."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if child == 0:
            be_openstack(arguments, output.fileno(), errors.fileno())
        _, ended = os.waitpid(child, 0)
        output.seek(0)
        errors.seek(0)
        status = os.waitstatus_to_exitcode(ended)
        return {"status": status, "output": output.read(), "errors": errors.read()}


for line in sys.stdin:
    sys.stdout.write(json.dumps(run(json.loads(line))) + "\n")
    sys.stdout.flush()
