"""``novasvc login``: a link to the API's page."""

import click

from novasvc.cli.command_context import CommandContext, pass_command_context


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), help="The API's, if it is not that of the settings.")
@pass_command_context
def login(context: CommandContext, port: int | None) -> None:
    """Print a link that logs one browser in to the API's page, once, within an hour.

    To be run on the API's host, with its settings and as its user: the link is kept in its state directory.
    """
    # Here, because `--help` needs none of it.
    from novasvc.api.logins import Logins, login_url  # noqa: PLC0415

    settings = context.configuration.settings
    if port is None and not settings.api_listen_port:
        raise click.UsageError("api_listen_port is 0, a free port: say which it is by --port.")
    click.echo(login_url(settings, Logins.of(settings), port))
