"""``novasvc stub``: write the interface of a running service, for typed clients."""

import sys
from pathlib import Path

import click

from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.describe import read_interface
from novasvc.cli.remote import target_options
from novasvc.errors import ProblemError
from novasvc.rpc.target import Target


@click.command(epilog="Example: novasvc stub stock --output stock_api.py")
@target_options
@click.option("--blocking", is_flag=True, help="For novasvc.blocking.Client: methods return results, not Deferreds.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="The file to write.  [default: stdout]")
@click.option(
    "--check",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Only compare a file, with --blocking if it was written so; 1 if it differs.",
)
@pass_command_context
def stub(
    context: CommandContext,
    target: Target,
    blocking: bool,  # noqa: FBT001 - click's
    output: Path | None,
    check: Path | None,
) -> None:
    """Write a Python module with the methods and types of the service of TOPIC, as it runs now.

    Use it with novasvc.rpc.stub, or by the function at its end. The text is the same for all hosts, so it can be kept
    in version control: --check tells if the service has changed.
    """
    from novasvc.cli.interface_source import is_blocking, write_interface  # noqa: PLC0415 - `--help` needs neither

    present = None if check is None else check.read_text(encoding="utf-8")
    blocking = blocking or (present is not None and is_blocking(present))
    text = write_interface(read_interface(context.configuration.settings, target), blocking=blocking)
    if check is not None:
        if present != text:
            remedy = f"write it again: novasvc stub {target}{' --blocking' if blocking else ''} --output {check}"
            raise ProblemError(str(check), f"it is not the interface of {target} as it runs now", remedy)
    elif output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text, encoding="utf-8")
