"""Tests for novasvc.telemetry.flight: a ring of events that can be read at any moment, by any process."""

import mmap
import os
import random
import subprocess
import sys
import time
from itertools import count, pairwise
from threading import Thread

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from novasvc.telemetry import flight
from novasvc.telemetry.flight import SIZE, Event, FlightRecorder, dump_text, format_events, note
from tests.support.flight_rig import record_flight

CAPACITY = 511
PATIENCE = 30.0

words = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=12)
texts = st.text(st.characters(exclude_categories=[], exclude_characters="\0"), max_size=120)  # surrogates, too


def fresh() -> tuple[mmap.mmap, FlightRecorder]:
    memory = mmap.mmap(-1, SIZE)
    return memory, FlightRecorder(memory, now=count(1.5).__next__)


def texts_of(recorder: FlightRecorder) -> list[str]:
    return [event.text for event in recorder.events()]


FORKED = """
import os
from novasvc.telemetry.flight import FlightRecorder

recorder = FlightRecorder.anonymous()
recorder.note("call", "parent")
child = os.fork()
if not child:
    recorder.note("call", "child")
    os._exit(0)
os.waitpid(child, 0)
print([event.text for event in recorder.events()])
"""


class RingTests(SynchronousTestCase):
    """What is noted, and what is found of it."""

    def test_events(self) -> None:
        """What was noted is found in its order, with its time."""
        _, recorder = fresh()
        recorder.note("call", "greet began req-1")
        recorder.note("task", "")
        self.assertEqual(recorder.events(), [Event(1.5, "call", "greet began req-1"), Event(2.5, "task", "")])

    def test_empty(self) -> None:
        """A new one holds nothing."""
        _, recorder = fresh()
        self.assertEqual((recorder.events(), recorder.last_beat, dump_text(recorder)), ([], 0.0, ""))

    def test_clock(self) -> None:
        """The time is the host's."""
        recorder = FlightRecorder.anonymous()
        before = time.time()
        recorder.note("call", "x")
        (event,) = recorder.events()
        self.assertTrue(before <= event.time <= time.time())

    def test_wraps(self) -> None:
        """The newest take the place of the oldest."""
        _, recorder = fresh()
        for number in range(2 * CAPACITY + 100):
            recorder.note("call", str(number))
        self.assertEqual(texts_of(recorder), [str(number) for number in range(CAPACITY + 100, 2 * CAPACITY + 100)])

    def test_cut(self) -> None:
        """What is too long is cut, and never in the midst of a character."""
        _, recorder = fresh()
        for text in ("a" * 200, "é" * 200, "a" + "é" * 200, "\N{SNOWMAN}" * 200, "\N{OWL}" * 200):
            recorder.note("call", text)
            found = texts_of(recorder)[-1]
            self.assertTrue(text.startswith(found))
            self.assertTrue(108 - 4 < len(f"call {found}".encode()) <= 108)

    def test_anything(self) -> None:
        """Whatever a text holds, it is noted: lone surrogates as question marks."""
        _, recorder = fresh()
        recorder.note("call", "\ud800 \udfff \0 \n \x1b[31m \x85")
        self.assertEqual(texts_of(recorder), ["? ? \0 \n \x1b[31m \x85"])

    @given(words, texts)
    def test_any_text(self, kind: str, text: str) -> None:
        """Every kind and text is found again, as far as there is room and UTF-8 can say it."""
        _, recorder = fresh()
        recorder.note(kind, text)
        (event,) = recorder.events()
        room = 108 - len(kind) - 1
        expected = text.encode(errors="replace")[:room].decode(errors="ignore")
        self.assertEqual((event.kind, event.text), (kind, expected))

    def test_threads(self) -> None:
        """Threads that note at the same time lose nothing of each other."""
        _, recorder = fresh()
        names = [f"{thread} {number}" for thread in range(5) for number in range(100)]

        def work(thread: int) -> None:
            for name in names[thread * 100 : thread * 100 + 100]:
                recorder.note("call", name)

        threads = [Thread(target=work, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        self.assertEqual(sorted(texts_of(recorder)), sorted(names))

    def test_beat(self) -> None:
        """The last heartbeat is kept apart from the events."""
        memory, recorder = fresh()
        for number in range(CAPACITY + 1):
            recorder.note("call", str(number))
        recorder.beat(12.25)
        self.assertEqual((recorder.last_beat, FlightRecorder(memory).last_beat), (12.25, 12.25))
        self.assertEqual(len(recorder.events()), CAPACITY)
        self.assertEqual(recorder.events(3), recorder.events()[-3:])


class MemoryTests(SynchronousTestCase):
    """Where a recorder lies."""

    def descriptor(self) -> int:
        descriptor = os.memfd_create("flight")
        self.addCleanup(os.close, descriptor)
        os.ftruncate(descriptor, SIZE + 100)
        return descriptor

    def test_shared(self) -> None:
        """Two recorders on one file see the same, and the second goes on with it."""
        descriptor = self.descriptor()
        first, second = FlightRecorder.from_descriptor(descriptor), FlightRecorder.from_descriptor(descriptor)
        first.beat(3.0)
        first.note("call", "one")
        self.assertEqual((texts_of(second), second.last_beat), (["one"], 3.0))
        FlightRecorder.from_descriptor(descriptor).note("call", "two")
        self.assertEqual((texts_of(first), texts_of(second)), (["one", "two"], ["one", "two"]))

    def test_rest_of_the_file(self) -> None:
        """Nothing is written behind the first SIZE octets of a file."""
        descriptor = self.descriptor()
        recorder = FlightRecorder.from_descriptor(descriptor)
        for number in range(2 * CAPACITY):
            recorder.note("call", "x" * number)
        self.assertEqual(os.pread(descriptor, 1000, SIZE), bytes(100))

    def test_closed(self) -> None:
        """One that is closed lets go of its memory; the other's stays."""
        descriptor = self.descriptor()
        first, second = FlightRecorder.from_descriptor(descriptor), FlightRecorder.from_descriptor(descriptor)
        first.close()
        self.assertRaises(ValueError, first.events)
        second.note("call", "x")
        self.assertEqual(texts_of(second), ["x"])

    def test_size(self) -> None:
        """Memory of another size, or a file that is too short, is refused."""
        with self.assertRaisesRegex(ValueError, "needs 65536 octets of memory, not 4096"):
            FlightRecorder(mmap.mmap(-1, 4096))
        descriptor = self.descriptor()
        os.ftruncate(descriptor, SIZE - 1)
        self.assertRaises(ValueError, FlightRecorder.from_descriptor, descriptor)

    def test_forked(self) -> None:
        """What a forked child notes in a recorder of its parent's own does not come to its parent."""
        # In a process of its own: this one may have threads by now, and then it is not to be forked.
        done = subprocess.run([sys.executable, "-c", FORKED], check=True, capture_output=True, text=True)
        self.assertEqual(done.stdout, "['parent']\n")


class DamageTests(SynchronousTestCase):
    """What is read of memory that somebody was writing, or that holds something else."""

    def test_torn(self) -> None:
        """However much of a record was written over another one, only it is left out."""
        memory, recorder = fresh()
        for number in range(CAPACITY):
            recorder.note("call", f"{number} old " + "o" * 90)
        old = memory[:]
        recorder.note("news", "511 new " + "n" * 90)
        new = memory[:]
        changed = [at for at in range(SIZE) if old[at] != new[at]]
        start = changed[0] // 128 * 128
        for written in range(changed[0] - start + 1, changed[-1] - start + 1):
            memory[:] = old
            memory[start : start + written] = new[start : start + written]
            self.assertEqual(
                [int(text.split()[0]) for text in texts_of(recorder)], list(range(1, CAPACITY)), f"{written} octets"
            )
        memory[:] = new
        self.assertEqual([int(text.split()[0]) for text in texts_of(recorder)], list(range(1, CAPACITY + 1)))

    @given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=300)), max_size=20))
    def test_damaged(self, damages: list[tuple[int, bytes]]) -> None:
        """Whatever is written anywhere, what is found was noted, in its order; the recorder goes on."""
        memory, recorder = fresh()
        for number in range(CAPACITY + 50):
            recorder.note("call", str(number))
        noted = recorder.events()
        for at, octets in damages:
            fitting = octets[: SIZE - at]
            memory[at : at + len(fitting)] = fitting
        found = recorder.events()
        left = set(found)
        self.assertEqual(found, [event for event in noted if event in left])
        self.assertGreaterEqual(len(found), CAPACITY - 4 * len(damages))
        self.assertIsInstance(recorder.last_beat, float)
        again = FlightRecorder(memory)
        again.note("call", "after")
        self.assertIn("after", texts_of(again))

    @given(st.integers())
    def test_garbage(self, seed: int) -> None:
        """Memory full of something else holds no events, and can be used."""
        memory = mmap.mmap(-1, SIZE)
        memory[:] = random.Random(seed).randbytes(SIZE)
        recorder = FlightRecorder(memory)
        self.assertEqual((recorder.events(), recorder.last_beat), ([], 0.0))
        recorder.note("call", "x")
        self.assertEqual(texts_of(recorder), ["x"])


WRITER = """
import sys
from itertools import count
from novasvc.telemetry.flight import FlightRecorder
recorder = FlightRecorder.from_descriptor(int(sys.argv[1]))
for number in count():
    recorder.note("call", f"{number} " + chr(97 + number % 26) * (number % 97))
    recorder.beat(float(number % 2 + 1))
"""


class OtherProcessTests(SynchronousTestCase):
    """Reading what another process writes."""

    def test_killed(self) -> None:
        """While another process writes, and after it was killed in the midst of it, all that is found is whole."""
        for _ in range(3):
            self.kill_one()

    def kill_one(self) -> None:
        descriptor = os.memfd_create("flight")
        os.ftruncate(descriptor, SIZE)
        recorder = FlightRecorder.from_descriptor(descriptor)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(descriptor)], pass_fds=[descriptor])
        os.close(descriptor)
        try:
            deadline = time.monotonic() + PATIENCE
            while not (numbers := self.numbers(recorder)) or numbers[0] < CAPACITY:
                self.assertLess(time.monotonic(), deadline)
                self.assertIsNone(writer.poll())
            for _ in range(50):
                self.numbers(recorder)
                self.assertIn(recorder.last_beat, {1.0, 2.0})
        finally:
            writer.kill()
            writer.wait(PATIENCE)
        numbers = self.numbers(recorder)
        self.assertIn(len(numbers), {CAPACITY - 1, CAPACITY})
        self.assertEqual(numbers, list(range(numbers[0], numbers[-1] + 1)))
        recorder.close()

    def numbers(self, recorder: FlightRecorder) -> list[int]:
        """Return the numbers of the events that are found, each of which is as it was noted."""
        numbers = []
        for event in recorder.events():
            number = int(event.text.partition(" ")[0])
            self.assertEqual(event.text, f"{number} " + chr(97 + number % 26) * (number % 97))
            numbers.append(number)
        self.assertTrue(all(before < after for before, after in pairwise(numbers)))
        return numbers


class ProcessTests(SynchronousTestCase):
    """The recorder of the process."""

    def test_note(self) -> None:
        """What is noted goes to the recorder that is installed, however the function was imported."""
        first = record_flight(self)
        note("call", "one")
        second = FlightRecorder.anonymous()
        flight.install(second)
        self.assertIs(flight.installed(), second)
        note("call", "two")
        flight.note("call", "three")
        self.assertEqual((texts_of(first), texts_of(second)), (["one"], ["two", "three"]))

    def test_default(self) -> None:
        """Every process has one, and it is empty at first."""
        script = "from novasvc import flight; flight.note('call', 'x'); print(flight.dump_text(flight.installed()))"
        found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
        self.assertRegex(found.stdout, r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z call x\n\Z")


class FormatTests(SynchronousTestCase):
    """Events in a log."""

    def test_lines(self) -> None:
        """Each event is a line, with its time in UTC."""
        events = [Event(1795399384.567, "call", "greet began req-1"), Event(1795399385.0, "stall", "x")]
        self.assertEqual(
            format_events(events),
            "2026-11-23T02:03:04.567Z call greet began req-1\n2026-11-23T02:03:05.000Z stall x",
        )

    def test_controls(self) -> None:
        """No text begins a line of its own, or moves a terminal's cursor."""
        line = format_events([Event(0.0, "call", "a\nb\x1b[2J\x85\N{LINE SEPARATOR}\0")])
        self.assertEqual(line, r"1970-01-01T00:00:00.000Z call a\x0ab\x1b[2J\x85\x2028\x00")

    def test_times(self) -> None:
        """A time that is none is shown as it is."""
        for seconds in (float("nan"), float("inf"), 1e300, -1e18):
            self.assertEqual(format_events([Event(seconds, "call", "x")]), f"{seconds!r} s call x")

    def test_dump(self) -> None:
        """A dump is all that a recorder holds."""
        _, recorder = fresh()
        recorder.note("call", "one")
        recorder.note("call", "two")
        self.assertEqual(dump_text(recorder), format_events(recorder.events()))
        self.assertEqual(len(dump_text(recorder).splitlines()), 2)


class FloorTests(SynchronousTestCase):
    def test_light(self) -> None:
        """It can be had without the rest of the framework's weight: no reactor, no broker, no database."""
        script = "import sys; import novasvc.telemetry.flight; print(*sys.modules)"
        found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
        self.assertFalse({"twisted.internet.reactor", "txamqp", "sqlalchemy"} & set(found.stdout.split()))
