import unittest
from binascii import unhexlify

from gateway import sensors
from gateway.errors import Truncated, Unknown
from gateway.reading import Value, text

_MEASUREMENT = 0x2A35
_WHOLE = unhexlify("1e78005000 5d00 ea070b170e230a 4800 02 0000".replace(" ", ""))


def decode(hexadecimal):
    return sensors.decode(_MEASUREMENT, unhexlify(hexadecimal.replace(" ", "")))


def status(bits):
    return decode("10 7800 5000 5d00" + f"{bits & 0xFF:02x}{bits >> 8:02x}")


class Measurement(unittest.TestCase):
    def test_every_field_is_read(self):
        reading = sensors.decode(_MEASUREMENT, _WHOLE)
        self.assertEqual(reading.kind, "blood_pressure")
        self.assertEqual(reading.trust, "good")
        self.assertEqual(
            reading.values,
            (
                Value("systolic", 120, 0, "mm[Hg]", None),
                Value("diastolic", 80, 0, "mm[Hg]", None),
                Value("mean", 93, 0, "mm[Hg]", None),
                Value("pulse_rate", 72, 0, "/min", None),
            ),
        )
        self.assertEqual(reading.timestamp, (2026, 11, 23, 14, 35, 10))
        self.assertIs(reading.clock_set, True)
        self.assertEqual((reading.status, reading.user, reading.stored), ((), 2, None))

    def test_a_failed_measurement_without_a_fault_bit_is_never_a_vital(self):
        # Capture of a boso medicus: NaN everywhere, Measurement Status 0.
        reading = decode("16 FF07 FF07 FF07 E807 06 17 0E 23 0A FF07 0000")
        self.assertEqual(reading.trust, "never")
        self.assertEqual([value.special for value in reading.values], ["nan"] * 4)
        self.assertEqual([text(value) for value in reading.values], [None] * 4)
        self.assertEqual(reading.timestamp, (2024, 6, 23, 14, 35, 10))

    def test_one_pressure_without_a_number_is_never_a_vital(self):
        for pressures in (
            "FF07 5000 5d00",
            "7800 FF07 5d00",
            "FE07 5000 5d00",
            "7800 0208 5d00",
            "7800 0008 5d00",
        ):
            self.assertEqual(decode("00" + pressures).trust, "never")

    def test_mean_or_pulse_without_a_number_leaves_the_pressures(self):
        reading = decode("04 7800 5000 FF07 FF07")
        self.assertEqual(reading.trust, "good")
        self.assertEqual([text(value) for value in reading.values], ["120", "80", None, None])

    def test_pressure_of_zero_is_never_a_vital(self):
        self.assertEqual(decode("00 0000 0000 0000").trust, "never")

    def test_kilopascal_stays_kilopascal(self):
        reading = decode("01 B0F0 6BF0 82F0")
        self.assertEqual([text(value) for value in reading.values], ["17.6", "10.7", "13.0"])
        self.assertEqual([value.unit for value in reading.values], ["kPa"] * 3)

    def test_user_255_is_nobody(self):
        self.assertIsNone(decode("08 7800 5000 5d00 FF").user)
        self.assertEqual(decode("08 7800 5000 5d00 00").user, 0)

    def test_artefacts_make_it_questionable(self):
        for bits, word in (
            (1, "body movement"),
            (2, "cuff too loose"),
            (32, "improper measurement position"),
        ):
            self.assertEqual((status(bits).trust, status(bits).status), ("questionable", (word,)))

    def test_irregular_pulse_is_a_finding_and_stays_good(self):
        self.assertEqual((status(4).trust, status(4).status), ("good", ("irregular pulse",)))

    def test_pulse_rate_range_is_one_number_of_two_bits(self):
        self.assertEqual(status(0x08).status, ("pulse rate above upper limit",))
        self.assertEqual(status(0x10).status, ("pulse rate below lower limit",))
        self.assertEqual(status(0x18).status, ("reserved bits set",))

    def test_reserved_bits_are_reported_and_not_fatal(self):
        self.assertEqual((status(0xFFC0).trust, status(0xFFC0).status), ("good", ("reserved bits set",)))
        self.assertEqual(decode("E0 7800 5000 5d00").status, ("reserved bits set",))

    def test_trailing_bytes_are_reported_and_change_nothing_else(self):
        reading = decode("00 7800 5000 5d00 0102")
        self.assertEqual(reading.status, ("trailing bytes",))
        self.assertEqual([text(value) for value in reading.values], ["120", "80", "93"])

    def test_flags_that_promise_more_than_there_is_are_refused(self):
        for length in range(len(_WHOLE)):
            self.assertRaises(Truncated, sensors.decode, _MEASUREMENT, _WHOLE[:length])

    def test_any_bytes_give_a_reading_or_a_refusal(self):
        for flags in range(256):
            for length in (1, 7, 12, 18, 20):
                try:
                    reading = sensors.decode(_MEASUREMENT, bytes([flags]) + b"\xff\x07" * (length // 2))
                    self.assertEqual(reading.trust, "never")
                except Truncated:
                    pass

    def test_a_memoryview_is_as_good_as_bytes(self):
        self.assertEqual(
            sensors.decode(_MEASUREMENT, memoryview(_WHOLE)), sensors.decode(_MEASUREMENT, _WHOLE)
        )


class Others(unittest.TestCase):
    def test_pressure_in_the_cuff_is_never_a_vital(self):
        reading = sensors.decode(0x2A36, unhexlify("008c00ff07ff07"))
        self.assertEqual((reading.kind, reading.trust), ("cuff_pressure", "never"))
        self.assertEqual(reading.values, (Value("cuff_pressure", 140, 0, "mm[Hg]", None),))
        self.assertFalse(sensors.is_measurement(0x2A36))

    def test_feature(self):
        feature = sensors.decode(0x2A49, b"\x25\x00")
        self.assertEqual(
            feature.supported, ("body movement detection", "irregular pulse detection", "multiple bonds")
        )
        self.assertEqual(sensors.decode(0x2A49, b"\x00\x80").supported, ("reserved bits set",))
        self.assertRaises(Truncated, sensors.decode, 0x2A49, b"\x25")

    def test_a_characteristic_without_decoder_is_unknown(self):
        self.assertRaises(Unknown, sensors.decode, 0x2A37, b"\x00\x48")

    def test_what_becomes_a_reading(self):
        known = [characteristic for characteristic in sensors.NAMES if sensors.is_measurement(characteristic)]
        self.assertEqual(sorted(known), [0x2A35, 0x2A5E, 0x2A5F])


if __name__ == "__main__":
    unittest.main()
