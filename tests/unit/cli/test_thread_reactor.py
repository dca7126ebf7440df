"""Tests for the reactor of commands that only read a database."""

import os
import signal
import threading
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.trial.unittest import SynchronousTestCase

from novasvc.cli.reactor import run_on_reactor
from novasvc.cli.registry import with_registry
from novasvc.cli.thread_reactor import ThreadReactor
from novasvc.config import load
from novasvc.interfaces import IServiceRegistry
from novasvc.registry.record import Records
from novasvc.registry.sql.migrate import create


class ThreadReactorTests(SynchronousTestCase):
    """Tests for novasvc.cli.thread_reactor.ThreadReactor."""

    def test_time(self) -> None:
        """Delayed calls are made."""

        async def work(reactor: Any) -> str:
            return await deferLater(reactor, 0.01, lambda: "late")

        self.assertEqual(run_on_reactor(work, ThreadReactor()), "late")

    def test_threads(self) -> None:
        """The result of a thread ends the wait for it."""

        async def work(reactor: Any) -> str:
            return await deferToThreadPool(reactor, reactor.getThreadPool(), lambda: "done")

        self.assertEqual(run_on_reactor(work, ThreadReactor()), "done")

    def test_interrupt(self) -> None:
        """SIGINT cancels what is waited for, even if nothing else happens."""
        cancelled: list[object] = []

        async def work(_reactor: Any) -> None:
            waiting: Deferred[None] = Deferred(cancelled.append)
            threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()
            await waiting

        previous = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, previous)
        self.assertRaises(KeyboardInterrupt, run_on_reactor, work, ThreadReactor())
        self.assertEqual(len(cancelled), 1)

    def test_again(self) -> None:
        """A process runs one after the other, each with the signal handlers that it had before."""

        async def work(_reactor: Any) -> object:
            return signal.getsignal(signal.SIGTERM)

        before = signal.getsignal(signal.SIGTERM)
        first, second = (run_on_reactor(work, ThreadReactor()) for _ in range(2))
        self.assertNotEqual(first, before)
        self.assertNotEqual(first, second)
        self.assertEqual(signal.getsignal(signal.SIGTERM), before)

    def test_registry(self) -> None:
        """A command opens the registry twice, as `novasvc service confirm-down` does: to read, and to write."""
        url = f"sqlite:///{self.mktemp()}"
        create(url)
        settings = load((), {}, {"database-url": url}).settings

        async def register(registry: IServiceRegistry) -> None:
            await registry.register("h1", "novasvc-agent", "agent", 0)

        async def read(registry: IServiceRegistry) -> Records:
            records: Records = await registry.list(None, None, None)
            return records

        with_registry(settings, register)
        self.assertEqual([record.host for record in with_registry(settings, read)], ["h1"])
