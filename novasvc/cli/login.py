"""``novasvc login``: print a login link for the web page of the API."""

import click

from novasvc.cli.command_context import CommandContext, pass_command_context


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the API.  [default: the setting api_listen_port]")
@pass_command_context
def login(context: CommandContext, port: int | None) -> None:
    """Print a link that logs a browser in to the web page of the API. It works once, within an hour.

    Run it on the API's host, with its settings and as its user: the link is stored in the state directory.
    """
    # Imported here, because `--help` does not need it.
    from novasvc.api.login_links import LoginLinks, login_url  # noqa: PLC0415

    settings = context.configuration.settings
    if port is None and not settings.api_listen_port:
        raise click.UsageError("api_listen_port is 0, a free port: give the actual one with --port.")
    click.echo(login_url(settings, LoginLinks.of(settings), port))
