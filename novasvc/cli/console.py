"""Python statements with top-level await, from a terminal or a pipe, run on the reactor of another thread."""

import ast
import builtins
import code
import inspect
import sys
import traceback
from pprint import pformat
from types import CodeType, FunctionType
from typing import Any

from twisted.internet.defer import Deferred

from novasvc.cli.output import printable, printable_lines
from novasvc.cli.reactor_thread import ReactorThread
from novasvc.errors import NovasvcError

_CONSOLE, _PIPE = "<console>", "<stdin>"


class Console(code.InteractiveConsole):
    """Reads statements, and runs them.

    :param thread: runs the statements.
    :param namespace: their global names.
    """

    def __init__(self, thread: ReactorThread, namespace: dict[str, Any]) -> None:
        super().__init__(namespace, _CONSOLE)
        self.compile.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self._thread = thread
        self._namespace = namespace
        sys.displayhook = display

    def runcode(self, code: CodeType) -> None:
        """Run a statement; print its exception, if it raises one."""
        try:
            self.execute(code)
        except KeyboardInterrupt:
            self.write("\nKeyboardInterrupt\n")
        except Exception as error:  # noqa: BLE001 - the user's code may raise anything
            self.write(described(error))

    def execute(self, code: CodeType) -> None:
        """Run a statement.

        :raises BaseException: whatever it raises; KeyboardInterrupt if SIGINT ended it.
        """
        # Code with a top-level await is that of a coroutine function.
        self._thread.run(FunctionType(code, self._namespace))

    def run_all(self, text: str) -> int:
        """Run the statements of a text, up to the first that raises an exception.

        :return: the exit status.
        """
        try:
            tree = compile(text, _PIPE, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            assert isinstance(tree, ast.Module)
            for statement in tree.body:
                # "single" prints the values of expressions.
                single = ast.Interactive([statement])
                self.execute(compile(single, _PIPE, "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT))
                sys.stdout.flush()
        except Exception as error:  # noqa: BLE001 - as runcode
            self.write(described(error))
            return 1
        return 0


def display(value: object) -> None:
    """Print the value of an expression; what has to be awaited is said to be so."""
    if value is None:
        return
    builtins._ = value  # type: ignore[attr-defined] # as sys.displayhook does
    hint = "; write `await` in front of it to wait for its result"
    print(pformat(value) + (hint if isinstance(value, Deferred) or inspect.iscoroutine(value) else ""))  # noqa: T201


def described(error: Exception) -> str:
    """Return the text for an exception: a line for ours, a traceback of the user's code for any other."""
    if isinstance(error, NovasvcError):
        return f"{type(error).__name__}: {printable(error)}\n"
    own = error.__traceback__
    while own is not None and own.tb_frame.f_code.co_filename not in {_CONSOLE, _PIPE}:
        own = own.tb_next
    return printable_lines("".join(traceback.format_exception(error.with_traceback(own))))
