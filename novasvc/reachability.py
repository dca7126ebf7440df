"""What a listener has found out about the way to itself."""

import attrs


@attrs.frozen
class Reachability:
    """Whether messages reach a listener.

    :param problem: why they do not, the rest of a sentence; None if they do.
    :param repaired: what was missing and was made again, a noun phrase each.
    """

    problem: str | None = None
    repaired: tuple[str, ...] = ()
