"""The figures that a process keeps of itself. docs/metrics.md says what each is good for.

They are the process's, as its flight recorder is: see Note [One recorder a process] in :mod:`novasvc.flight`.
Names, methods and types of errors are labels; arguments, addresses and what users write are not.
"""

import platform
from collections.abc import Iterator

import attrs

from novasvc._version import __version__
from novasvc.figures import Distribution, Document, Family, Number, counter, gauge, histogram

build = gauge("novasvc_build_info", "1; the labels tell what runs.", "version", "python")
build.at(__version__, platform.python_version()).value = 1

# -- RPC ---------------------------------------------------------------------------------------------

served = counter(
    "novasvc_rpc_server_calls_total",
    "Calls and casts that came to an end, by outcome: done, failed, expected (raised what its author declared), "
    "timed_out.",
    "topic",
    "namespace",
    "method",
    "outcome",
)
served_errors = counter(
    "novasvc_rpc_server_errors_total", "What methods raised, by type.", "topic", "namespace", "method", "error"
)
served_seconds = histogram(
    "novasvc_rpc_server_duration_seconds",
    "Time from a method's beginning to its end.",
    "topic",
    "namespace",
    "method",
)
served_now = gauge("novasvc_rpc_server_in_flight", "Methods that run.", "topic", "namespace", "method")


@attrs.frozen(eq=False)
class MethodFigures:
    """What is counted of a method that a server runs."""

    names: tuple[str, str, str]
    done: Number
    failed: Number
    expected: Number
    timed_out: Number
    seconds: Distribution
    now: Number

    @classmethod
    def of(cls, topic: str, namespace: str | None, method: str) -> "MethodFigures":
        """Return them, looked up once and for all."""
        names = (topic, namespace or "", method)
        return cls(
            names,
            done=served.at(*names, "done"),
            failed=served.at(*names, "failed"),
            expected=served.at(*names, "expected"),
            timed_out=served.at(*names, "timed_out"),
            seconds=served_seconds.at(*names),
            now=served_now.at(*names),
        )

    def raised(self, error: BaseException) -> None:
        """Count the type of an error."""
        served_errors.at(*self.names, type(error).__name__).value += 1


# -- the process -------------------------------------------------------------------------------------

lag_seconds = histogram(
    "novasvc_reactor_lag_seconds", "How much later than it was due the reactor called what is due each second."
)
last_lag = gauge("novasvc_reactor_last_lag_seconds", "The same, the last time.")

# -- all of them -------------------------------------------------------------------------------------


def families() -> Iterator[Family[Number] | Family[Distribution]]:
    """Return all families."""
    for family in tuple(globals().values()):
        if isinstance(family, Family):
            yield family


def documents() -> list[Document]:
    """Return all figures of this process, those without a sample left out."""
    return [document for family in families() if (document := family.document())["samples"]]
