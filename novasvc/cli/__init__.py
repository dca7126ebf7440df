"""The operators' command, ``novasvc``."""

import gc

_THRESHOLD = 250_000
"""Objects that are made before the garbage collector looks for cycles; Python's default is 700 or 2000."""


def main() -> None:
    """Run the command with the arguments of the process, and exit."""
    # What imports make stays until the end, and looking through it again and again takes a fifth of a command's time.
    # A node, which `novasvc run` becomes, sets its own: see Note [Garbage collection] in novasvc.run.process_tree.
    gc.set_threshold(_THRESHOLD)
    from novasvc.cli.program import main  # noqa: PLC0415 - after the line above

    main()
