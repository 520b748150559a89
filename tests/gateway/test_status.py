"""Status: what a Kit tells of itself, and what it never tells."""

import json
import unittest

from gateway.status import encode_offline, encode_status


class StubJournal:
    """The figures of a Journal."""

    journal_id = b"\x01\x02\x03\x04\x05\x06\x07\x08"
    boot = 7
    pending = 3
    acked = 40
    free = 12_000


class StatusTest(unittest.TestCase):
    def test_status_tells_version_boot_journal_and_how_much_waits(self):
        whole = encode_status(
            "HW-0001",
            "0.1.0",
            StubJournal(),
            uptime_ms=5_000,
            host_confirmed=True,
            counters={"batches": 2},
            sensors=[{"sensor": 1, "seen_ms": 4_000}, {"sensor": 2, "seen_ms": None}],
        )
        status = json.loads(whole)
        self.assertEqual(status["version"], 1)
        self.assertEqual((status["kit"], status["online"], status["release"]), ("HW-0001", True, "0.1.0"))
        self.assertEqual((status["journal"], status["boot"]), ("0102030405060708", 7))
        self.assertEqual((status["pending"], status["acked"], status["free"]), (3, 40, 12_000))
        self.assertEqual(status["sensors"][0], {"sensor": 1, "seen_ms": 4_000})
        self.assertTrue(status["host_confirmed"])
        self.assertEqual(status["counters"], {"batches": 2})

    def test_what_the_rim_says_stands_beside_and_replaces_nothing(self):
        whole = encode_status(
            "HW-0001",
            "0.1.0",
            StubJournal(),
            uptime_ms=5_000,
            host_confirmed=False,
            counters={},
            sensors=[],
            rim={"networks": ["wrong_password", "online"], "radio": False, "kit": "HW-0002"},
        )
        status = json.loads(whole)
        self.assertEqual((status["networks"], status["radio"]), (["wrong_password", "online"], False))
        self.assertEqual(status["kit"], "HW-0001")

    def test_last_will_says_only_that_the_kit_is_gone(self):
        self.assertEqual(
            json.loads(encode_offline("HW-0001", "0.1.0")),
            {"version": 1, "kit": "HW-0001", "online": False, "release": "0.1.0"},
        )
