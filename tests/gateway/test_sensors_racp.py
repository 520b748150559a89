import unittest

from gateway import sensors
from gateway.errors import Truncated
from gateway.sensors.racp import REPORT_ALL


class RecordAccess(unittest.TestCase):
    def test_report_all_is_what_its_bytes_say(self):
        racp = sensors.decode(0x2A52, REPORT_ALL)
        self.assertEqual(
            (racp.procedure, racp.operator, racp.operand), ("report stored records", "all records", b"")
        )

    def test_success(self):
        racp = sensors.decode(0x2A52, b"\x06\x00\x01\x01")
        self.assertEqual(
            (racp.procedure, racp.request, racp.response),
            ("response code", "report stored records", "success"),
        )

    def test_no_records_found(self):
        self.assertEqual(sensors.decode(0x2A52, b"\x06\x00\x01\x06").response, "no records found")

    def test_number_of_stored_records(self):
        self.assertEqual(sensors.decode(0x2A52, b"\x05\x00\x1e\x01").count, 286)

    def test_codes_of_the_future_are_named_by_number(self):
        self.assertEqual(sensors.decode(0x2A52, b"\x06\x00\x01\x7f").response, "reserved 127")
        self.assertEqual(sensors.decode(0x2A52, b"\x63\x09\x01").procedure, "reserved 99")

    def test_a_value_that_ends_early_is_refused(self):
        for value in (b"", b"\x01", b"\x06\x00\x01", b"\x05\x00\x01"):
            self.assertRaises(Truncated, sensors.decode, 0x2A52, value)


if __name__ == "__main__":
    unittest.main()
