"""``novasvc stub``: write the interface of a running service, for typed clients."""

import sys
from pathlib import Path
from typing import Any

import attrs
import click

from novasvc.cli import candidates
from novasvc.cli.command_context import CommandContext, pass_command_context
from novasvc.cli.remote import read_target, run_with_client, wait_for_reply
from novasvc.context import RequestContext
from novasvc.errors import ProblemError

_TIMEOUT = 5.0


@click.command(epilog="Example: novasvc stub stock --output stock_api.py")
@click.argument("target", metavar="TOPIC[.HOST]", shell_complete=candidates.targets)
@click.option(
    "--server",
    metavar="HOST",
    help="The host, if the topic itself contains a dot.",
    shell_complete=candidates.hosts,
)
@click.option("--blocking", is_flag=True, help="For novasvc.blocking.Client: methods return results, not Deferreds.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="The file to write.  [default: stdout]")
@click.option(
    "--check",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Only compare a file; 1 if it differs.",
)
@pass_command_context
def stub(
    context: CommandContext,
    target: str,
    server: str | None,
    blocking: bool,  # noqa: FBT001 - click's
    output: Path | None,
    check: Path | None,
) -> None:
    """Write a Python module with the methods and types of the service of TOPIC, as it runs now.

    Use it with novasvc.rpc.stub, or by the function at its end. The text is the same for all hosts, so it can be kept
    in version control: --check tells if the service has changed.
    """
    from novasvc.cli.interface_source import write_interface  # noqa: PLC0415 - `--help` does not need it

    rpc_target = attrs.evolve(read_target(target, server), namespace="node", version="1.1")

    async def work(client: Any, _reactor: Any) -> Any:
        asking = client.prepare(timeout=_TIMEOUT, idempotent=True).call(RequestContext.admin(), "interface")
        return await wait_for_reply(asking)

    text = write_interface(run_with_client(context.configuration.settings, rpc_target, work), blocking=blocking)
    if check is not None:
        if check.read_text(encoding="utf-8") != text:
            remedy = f"write it again: novasvc stub {target} --output {check}"
            raise ProblemError(str(check), f"it is not the interface of {target} as it runs now", remedy)
    elif output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text, encoding="utf-8")
