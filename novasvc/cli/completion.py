"""``novasvc completion``: print shell completion scripts."""

import click
from click.shell_completion import get_completion_class

_NO_SPACE = """\
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then
        compopt -o nospace
    fi

"""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a shell completion script; use it by `source <(novasvc completion bash)`."""
    complete = get_completion_class(shell)
    assert complete is not None
    script = complete(context.find_root().command, {}, "novasvc", "_NOVASVC_COMPLETE")
    # Not script.source(): for bash, it starts a bash to ask for its version.
    source = script.source_template % script.source_vars()
    # No space after NAME=, where the value follows.
    click.echo(source.replace("    return 0\n", _NO_SPACE + "    return 0\n", 1) if shell == "bash" else source)
