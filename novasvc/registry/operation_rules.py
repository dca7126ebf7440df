"""What may be done to an operation in which state; every store applies these rules."""

from collections.abc import Sequence

from novasvc.listing import list_some
from novasvc.registry.errors import OperationConflictError, OperationStateError
from novasvc.registry.operation import RUNNER_TIMEOUT, Operation

_MOST_NAMES = 5
"""Nodes that an error names."""


def check_resume(operation: Operation) -> None:
    """Check that a command may take an operation over.

    :raises OperationStateError: it has ended, or its command runs.
    """
    if operation.state == "halted" or operation.is_unattended:
        return
    if operation.state == "running":
        problem = f"its command runs: it was heard of {operation.silent:.0f} s ago"
        remedy = f"wait for it, end it by Ctrl-C there, or try again {RUNNER_TIMEOUT:.0f} s after it has ended"
    else:
        problem = f"it is {operation.state}" + (f" ({operation.reason})" if operation.reason else "")
        remedy = "begin another operation"
    raise OperationStateError(operation.title, problem, remedy)


def check_owner(operation: Operation, owner: str) -> None:
    """Check that a command still runs an operation.

    :raises OperationStateError: another command has taken it over, or it has ended.
    """
    if operation.state != "running":
        because = f": {operation.reason}" if operation.reason else ""
        problem, remedy = f"it is {operation.state}{because}", "this command goes no further"
    elif operation.owner != owner:
        problem = "another command has resumed it"
        remedy = f"this command goes no further; `novasvc fleet show {operation.id}` shows the operation"
    else:
        return
    raise OperationStateError(operation.title, problem, remedy)


def check_abort(operation: Operation) -> None:
    """Check that an operation can be aborted.

    :raises OperationStateError: it is done, or aborted.
    """
    if operation.state in {"done", "aborted"}:
        raise OperationStateError(operation.title, f"it is {operation.state} already", "nothing is left to abort")


def conflict(operation: Operation, names: Sequence[str]) -> OperationConflictError:
    """Return the error for nodes that an operation has.

    :param names: of the nodes.
    """
    problem = f"it has {list_some(names, _MOST_NAMES)}"
    remedy = (
        f"wait for its end, or look at it: `novasvc fleet show {operation.id}`; if its command has died, run "
        f"`novasvc fleet resume {operation.id}` after {RUNNER_TIMEOUT:.0f} s"
    )
    if operation.is_unattended:
        problem += f", and nothing was heard of its command for {operation.silent:.0f} s"
        remedy = f"run `novasvc fleet resume {operation.id}` or `novasvc fleet abort {operation.id}`"
    return OperationConflictError(operation.title, problem, remedy)
