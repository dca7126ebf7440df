import attrs
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from novasvc.api.page.query import Query
from novasvc.api.page.view import SERVICES, View, Views
from novasvc.api.watch import Watch
from novasvc.registry.memory import MemoryRegistry
from novasvc.registry.record import ServiceChanges, ServiceRecord
from tests.support.page_rig import assess_alone


class QueryTests(SynchronousTestCase):
    def read(self, **args: str) -> Query:
        return Query.read({name.encode(): [value.encode()] for name, value in args.items()})

    def test_nothing(self) -> None:
        """A URL without a query is the first page of all services, those in trouble first."""
        self.assertEqual(self.read(), Query())
        self.assertEqual(Query().url, "/")

    def test_there_and_back(self) -> None:
        """A query is parsed from its URL, which omits default values."""
        query = self.read(q="a&b=<ü>", binary="agent", zone="rack 1", state="down", sort="-host", page="3")
        self.assertEqual(query, Query("a&b=<ü>", "agent", "rack 1", "down", "-host", 3))
        self.assertEqual(query.url, "/?q=a%26b%3D%3C%C3%BC%3E&binary=agent&zone=rack+1&state=down&sort=-host&page=3")
        self.assertEqual(query.but(state="").url, "/?q=a%26b%3D%3C%C3%BC%3E&binary=agent&zone=rack+1&sort=-host")

    def test_nonsense(self) -> None:
        """Invalid parameters are ignored, and long ones truncated."""
        for page in ("0", "-1", "x", "", "१", "1e9"):
            self.assertEqual(self.read(page=page, state="odd", sort="odd"), Query())
        self.assertEqual(self.read(page="9" * 50).page, 100_000)
        self.assertEqual(len(self.read(q="x" * 9999).text), 255)
        self.assertEqual(Query.read({b"q": [b"\xff"]}).text, "\N{REPLACEMENT CHARACTER}")


class ViewTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.registry = MemoryRegistry(self.clock)

        async def read() -> list[ServiceRecord]:
            return await self.registry.list(None, None, None)

        self.watch = Watch(read, self.clock, assess_alone(60.0), 10.0)
        self.views = Views(self.watch)

    def add(self, host: str, binary: str = "agent", **changes: str | bool) -> ServiceRecord:
        record = self.successResultOf(self.registry.register(host, binary, None, 1))
        self.successResultOf(self.registry.beat(record.id))
        self.successResultOf(self.registry.update(record.id, ServiceChanges(**changes)))  # type: ignore[arg-type]
        return record

    def view(self, query: Query | None = None) -> View:
        if not self.watch.running:
            self.watch.startService()
            self.addCleanup(self.watch.stopService)
        self.clock.advance(20)
        return self.views.view(query or Query())

    def hosts(self, query: Query | None = None) -> list[str]:
        return [service.record.host for service in self.view(query or Query(sort="host")).services]

    def test_services(self) -> None:
        """Each service is a row, by host and binary."""
        self.add("h2", "conductor")
        self.add("h2")
        self.add("h1")
        view = self.view()
        self.assertEqual([service.name for service in view.services], ["agent@h1", "agent@h2", "conductor@h2"])
        self.assertEqual((view.binaries, view.zones), (("agent", "conductor"), ()))

    def test_empty(self) -> None:
        """An empty fleet has one empty page."""
        view = self.view(Query(page=4))
        self.assertEqual((view.services, view.pages, view.query.page, view.first, view.last), ((), 1, 1, 0, 0))

    def test_order(self) -> None:
        """Hosts are sorted in natural order, ascending and descending."""
        for host in ("n10", "n9", "N1", "a"):
            self.add(host)
        self.assertEqual(self.hosts(), ["a", "N1", "n9", "n10"])
        self.assertEqual(self.hosts(Query(sort="-host")), ["n10", "n9", "N1", "a"])

    def test_odd_names(self) -> None:
        """Names of digits, of non-ASCII digits, and empty names can be sorted."""
        for host in ("", "0" * 40, "٣", "9a9", "10"):
            self.add(host)
        self.assertEqual(len(self.hosts()), 5)

    def test_trouble_first(self) -> None:
        """By default those in trouble come first, then disabled ones."""
        self.add("d", disabled=True)
        self.add("a")
        self.add("f", forced_down=True)
        self.add("z")
        self.clock.advance(100)
        for record in self.registry._rows:
            if record.host != "z":
                self.registry.beat(record.id)
        self.assertEqual(self.hosts(Query()), ["z", "f", "d", "a"])

    def test_silent_first(self) -> None:
        """Sorted by silence, the longest without a heartbeat come first; services that are up keep their order."""
        for host in ("c", "b", "a"):
            self.add(host)
            self.clock.advance(100)
        self.add("e")
        self.add("d")
        self.assertEqual(self.hosts(Query(sort="silent")), ["c", "b", "a", "d", "e"])

    def test_filters(self) -> None:
        """Text matches hosts, binaries and reasons in any case; filters are combined by AND."""
        self.add("alpha")
        self.add("beta", disabled=True, disabled_reason="New DISK")
        self.add("gamma", "conductor", forced_down=True)
        self.view()
        for query, found in (
            (Query(text="ALPH"), ["alpha"]),
            (Query(text="disk"), ["beta"]),
            (Query(text="conduc"), ["gamma"]),
            (Query(state="up"), ["alpha", "beta"]),
            (Query(state="disabled"), ["beta"]),
            (Query(state="forced"), ["gamma"]),
            (Query(state="trouble"), ["gamma"]),
            (Query(state="down"), []),
            (Query(binary="conductor"), ["gamma"]),
            (Query(binary="conductor", state="up"), []),
            (Query(text="a", state="up", binary="agent"), ["alpha", "beta"]),
            (Query(binary="nothing"), []),
        ):
            hosts = [service.record.host for service in self.views.view(attrs.evolve(query, sort="host")).services]
            self.assertEqual(hosts, found, query)

    def test_kept(self) -> None:
        """A view is cached until the next read."""
        self.add("alpha")
        view = self.view(Query(text="a"))
        self.assertIs(self.views.view(Query(text="a")), view)
        self.assertEqual(self.views.view(Query(text="b")).services, ())
        self.add("abel")
        self.assertEqual(self.hosts(Query(text="a")), ["abel", "alpha"])

    def test_by_uuid(self) -> None:
        """A complete uuid finds its service; a part of one finds nothing."""
        record = self.add("zeta")
        self.add("eta")
        self.assertEqual(self.hosts(Query(text=record.uuid)), ["zeta"])
        self.assertEqual(self.hosts(Query(text=record.uuid[:20])), [])

    def test_filters_services(self) -> None:
        """A filter finds services, not all services of their hosts."""
        self.add("h1")
        self.add("h1", "conductor", forced_down=True)
        view = self.view(Query(text="h1", state="trouble"))
        self.assertEqual([service.name for service in view.services], ["conductor@h1"])
        self.assertEqual([service.name for service in view.matching], ["conductor@h1"])

    def test_pages(self) -> None:
        """A page has 100 services; a page number beyond the last is the last page."""
        for number in range(250):
            self.add(f"h{number:03}")
        view = self.view(Query(page=3))
        self.assertEqual((view.pages, view.found, view.first, view.last), (3, 250, 2 * SERVICES + 1, 250))
        self.assertEqual(view.services[0].record.host, "h200")
        self.assertEqual(self.view(Query(page=99)).query.page, 3)

    def test_layout(self) -> None:
        """The layout changes with what the list shows, but not with heartbeats; the shape only with which match."""
        record = self.add("h1")
        before = self.view()
        self.registry.beat(record.id)
        self.assertEqual(self.view().layout, before.layout)
        self.registry.update(record.id, ServiceChanges(disabled=True))
        self.assertNotEqual(self.view().layout, before.layout)
        self.assertEqual(self.view().shape, before.shape)
        self.add("h2")
        self.assertNotEqual(self.view().shape, before.shape)
