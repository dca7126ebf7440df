"""Suggest the names that were probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches

import click


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most similar to a wrong one, ignoring case; None if none is similar."""
    spelled = {one.lower(): one for one in sorted(known, reverse=True)}
    close = get_close_matches(name.lower(), spelled, n=1)
    return spelled[close[0]] if close else None


class SuggestingGroup(click.Group):
    """A group of commands whose error for an unknown command suggests a known one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand that the arguments begin with; see click."""
        name = args[0]
        if ctx.resilient_parsing or name.startswith("-") or self.get_command(ctx, name) is not None:
            return super().resolve_command(ctx, args)
        meant = nearest(name, self.list_commands(ctx))
        hint = f" Did you mean {meant!r}?" if meant else f" Commands: {', '.join(self.list_commands(ctx))}."
        raise click.UsageError(f"No such command {name!r}.{hint}", ctx)
