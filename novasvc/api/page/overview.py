"""What is wrong, drawn once for all viewers of a read of the registry."""

from collections.abc import Callable

from markupsafe import Markup

from novasvc.api.page.problems import Problems, headline
from novasvc.api.page.rendering import Renderer
from novasvc.api.watch import Watch


class Overview:
    """The problems of the fleet as of the last read.

    :param watch: the state of the fleet.
    :param find: returns the problems.
    :param now: returns seconds since 1970.
    :ivar changed: the version of the watch in which the problems changed last.
    """

    def __init__(
        self, watch: Watch, renderer: Renderer, find: Callable[[], Problems], now: Callable[[], float]
    ) -> None:
        self._watch = watch
        self._renderer = renderer
        self._find = find
        self._now = now
        self._version = -1
        self._problems = Problems()
        self._headline = ""
        self.changed = 0

    @property
    def problems(self) -> Problems:
        """The problems."""
        self._refresh()
        return self._problems

    @property
    def headline(self) -> str:
        """One line about the fleet."""
        self._refresh()
        return self._headline

    def html(self) -> Markup:
        """Draw the problems."""
        names = {"problems": self.problems, "now": self._now(), "began": self._watch.began}
        return Markup(self._renderer.text("problems.html", **names))  # noqa: S704 - a template, which escapes

    def _refresh(self) -> None:
        watch = self._watch
        if self._version == watch.version:
            return
        self._version = watch.version
        problems = self._find()
        if problems != self._problems or not self.changed:
            self._problems = problems
            self.changed = watch.version
        self._headline = headline(watch.services.values(), problems)
