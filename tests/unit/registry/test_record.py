"""Tests for novasvc.registry.record."""

import attrs
from twisted.trial.unittest import SynchronousTestCase

from novasvc.registry.encoding import encode_record
from novasvc.registry.record import ServiceRecord
from tests.support.fleet_rig import make_incarnation
from tests.support.records import record


class ServiceRecordTests(SynchronousTestCase):
    """What a row tells of its incarnation."""

    def test_incarnation(self) -> None:
        """A row has the number, state, zone and tags of its incarnation."""
        row = record(incarnation=make_incarnation(number=3, zone="z1", tags=("ssd",)))
        self.assertEqual((row.incarnation_number, row.state, row.zone, row.tags), (3, "ready", "z1", ("ssd",)))

    def test_without_incarnation(self) -> None:
        """A row of Nova's own service has none of them."""
        row = record()
        self.assertEqual((row.incarnation_number, row.state, row.zone, row.tags), (None, None, None, ()))

    def test_encoding(self) -> None:
        """A conductor gets them once, within the incarnation."""
        encoded = encode_record(record(incarnation=make_incarnation(number=3)))
        self.assertEqual(encoded.keys(), {field.name for field in attrs.fields(ServiceRecord)})
        self.assertEqual(encoded.keys() & {"number", "state", "zone", "tags"}, set())
        self.assertEqual(encoded["incarnation"]["number"], 3)
