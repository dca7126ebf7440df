"""How many examples Hypothesis tries."""

import os


def examples(number: int) -> int:
    """Return the number of examples: under CI a third, because there they are the same in each run."""
    return max(1, number // 3) if "CI" in os.environ else number
