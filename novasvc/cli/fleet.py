"""``novasvc fleet``: commands for many services at once."""

import click

from novasvc.cli.fleet_versions import versions
from novasvc.cli.suggestion import SuggestingGroup


@click.group(cls=SuggestingGroup)
def fleet() -> None:
    """Look at and operate many services at once."""


fleet.add_command(versions)
