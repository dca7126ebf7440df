"""State machines of Automat, written as tables."""

from collections.abc import Callable, Iterable
from typing import Any

from automat import TypeMachineBuilder

Transition = tuple[str, Callable[..., None], str, Callable[..., None] | None]
"""A row of a table: states, input, next state, action.

The states are names, separated by " | ". The next state is "" to stay. The action is called with the core and the
arguments of the input, in the next state; None does nothing.
"""


def build_machine(inputs: Any, core: type[Any], initial: str, table: Iterable[Transition]) -> Callable[[Any], Any]:
    """Build a state machine from a table.

    An action may give the machine an input: Automat handles it when the action has returned.

    :param inputs: the Protocol that declares the inputs.
    :param core: the class of what the actions are called with.
    :return: takes a core, and returns its machine, which provides ``inputs``. An input without a row raises.
    """
    builder = TypeMachineBuilder(inputs, core)
    states = {initial: builder.state(initial)}
    for befores, given, after, action in table:
        for before in befores.split(" | "):
            for name in (before, after or before):
                if name not in states:
                    states[name] = builder.state(name)
            transition: Any = states[before].upon(given).to(states[after or before])
            transition(_output(action))
    return builder.build()


def _output(action: Callable[..., None] | None) -> Callable[..., None]:
    def output(_machine: Any, core: Any, *args: Any) -> None:
        if action is not None:
            action(core, *args)

    return output
