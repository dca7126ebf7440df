"""Tests for the name of the machine."""

import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from novasvc.node.machine_name import name_machine
from novasvc.node.runtime import Runtime


class NameMachineTests(SynchronousTestCase):
    """Tests for name_machine."""

    def setUp(self) -> None:
        holder = TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.link = Path(holder.name, "pid")

    def test_machine(self) -> None:
        """On the machine itself, and without such a link, it is the host name."""
        self.assertEqual(name_machine(self.link), socket.gethostname())
        self.link.symlink_to("pid:[4026531836]")
        self.assertEqual(name_machine(self.link), socket.gethostname())

    def test_containers(self) -> None:
        """Two containers with one host name are told apart, as process 1 of one is not process 1 of the other."""
        names = []
        for number in (4026532345, 4026532346):
            self.link.unlink(missing_ok=True)
            self.link.symlink_to(f"pid:[{number}]")
            names.append(name_machine(self.link))
        self.assertEqual(names[0], f"{socket.gethostname()}, pid:[4026532345]")
        self.assertNotEqual(*names)

    def test_used(self) -> None:
        """A runtime has this name."""
        default: Any = attrs.fields(Runtime).machine.default
        self.assertIs(default.factory, name_machine)
