import unittest
from binascii import unhexlify

from gateway import sensors
from gateway.errors import Truncated


class SensorClocks(unittest.TestCase):
    def test_date_time(self):
        clock = sensors.decode(0x2A08, unhexlify("e80706170e230a"))
        self.assertEqual(clock.date_time, (2024, 6, 23, 14, 35, 10))
        self.assertTrue(clock.clock_set)
        self.assertIsNone(clock.fraction_256)

    def test_current_time(self):
        clock = sensors.decode(0x2A2B, unhexlify("e80706170e230a078003"))
        self.assertEqual(clock.date_time, (2024, 6, 23, 14, 35, 10))
        self.assertEqual(clock.fraction_256, 128)
        self.assertEqual(clock.status, ("manual time update", "external reference time update"))

    def test_a_clock_without_a_date(self):
        clock = sensors.decode(0x2A08, b"\x00" * 7)
        self.assertEqual((clock.date_time, clock.clock_set, clock.status), (None, False, ("clock not set",)))

    def test_a_factory_date_is_kept_and_not_set(self):
        clock = sensors.decode(0x2A08, unhexlify("d0070101000500"))
        self.assertEqual((clock.date_time, clock.clock_set), ((2000, 1, 1, 0, 5, 0), False))

    def test_a_value_that_ends_early_is_refused(self):
        self.assertRaises(Truncated, sensors.decode, 0x2A08, b"\xe8\x07\x06\x17\x0e\x23")
        self.assertRaises(Truncated, sensors.decode, 0x2A2B, unhexlify("e80706170e230a0780"))

    def test_trailing_bytes_are_reported(self):
        self.assertEqual(sensors.decode(0x2A08, unhexlify("e80706170e230aff")).status, ("trailing bytes",))


if __name__ == "__main__":
    unittest.main()
