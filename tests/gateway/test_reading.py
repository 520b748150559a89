import unittest

from gateway import reading
from gateway.errors import Truncated


class Numbers(unittest.TestCase):
    def test_sfloat_keeps_the_precision_that_the_sensor_gave(self):
        # The vectors of the PHD implementation guide.
        for word, shown in (
            (0x0002, "2"),
            (0xF014, "2.0"),
            (0xE0C8, "2.00"),
            (0x1002, "20"),
            (0x2002, "200"),
        ):
            self.assertEqual(reading.text(reading.sfloat("spo2", word, "%", most=2000)), shown)
        self.assertEqual(reading.text(reading.sfloat("mean", 0x04D2, "mm[Hg]")), "1234")
        self.assertEqual(reading.text(reading.sfloat("systolic", 0xF0B0, "kPa")), "17.6")

    def test_mantissa_and_exponent_are_sign_extended(self):
        value = reading.sfloat("mean", 0x0B2E, "mm[Hg]")
        self.assertEqual((value.mantissa, value.exponent), (-1234, 0))
        value = reading.sfloat("mean", 0x8FFF, "mm[Hg]")
        self.assertEqual((value.mantissa, value.exponent), (-1, -8))

    def test_sfloat_specials_are_no_numbers(self):
        for word, special in (
            (0x7FF, "nan"),
            (0x800, "nres"),
            (0x7FE, "+inf"),
            (0x802, "-inf"),
            (0x801, "reserved"),
        ):
            value = reading.sfloat("systolic", word, "mm[Hg]")
            self.assertEqual(value.special, special)
            self.assertIsNone(reading.text(value))
            self.assertEqual(value.mantissa, 0)

    def test_a_special_mantissa_with_an_exponent_is_a_number(self):
        self.assertEqual(reading.text(reading.sfloat("systolic", 0xF7FF, "mm[Hg]")), "204.7")

    def test_float_specials_are_no_numbers(self):
        specials = (
            (0x7FFFFF, "nan"),
            (0x800000, "nres"),
            (0x7FFFFE, "+inf"),
            (0x800002, "-inf"),
            (0x800001, "reserved"),
        )
        for word, special in specials:
            self.assertEqual(reading.float32("temperature", word, "Cel", 60).special, special)
        self.assertEqual(reading.text(reading.float32("temperature", 0xFF00016C, "Cel", 60)), "36.4")

    def test_a_number_that_no_patient_has_is_not_shown(self):
        # 101, 127, 100.1, -1, 0 and 0.0 per cent.
        for word in (101, 127, 0xF3E9, 0x0FFF, 0x0000, 0xF000):
            value = reading.sfloat("spo2", word, "%", most=100)
            self.assertEqual(value.special, "impossible")
            self.assertIsNone(reading.text(value))
        for word in (1, 100, 0xF3E8, 0x1001):
            self.assertIsNone(reading.sfloat("spo2", word, "%", most=100).special)
        self.assertEqual(reading.text(reading.sfloat("cuff_pressure", 0, "mm[Hg]", zero=True)), "0")

    def test_text_writes_small_and_negative_numbers_in_full(self):
        self.assertEqual(reading.text(reading.Value("x", 5, -3, "", None)), "0.005")
        self.assertEqual(reading.text(reading.Value("x", -5, -1, "", None)), "-0.5")
        self.assertEqual(reading.text(reading.Value("x", 0, -2, "", None)), "0.00")
        self.assertEqual(reading.text(reading.Value("x", 0, 3, "", None)), "0")


class Bits(unittest.TestCase):
    def test_words_come_lowest_bit_first_and_reserved_bits_once(self):
        table = {1: "first", 4: "third"}
        self.assertEqual(reading.words(0, table), ())
        self.assertEqual(reading.words(5, table), ("first", "third"))
        self.assertEqual(reading.words(0x800007, table), ("first", "third", "reserved bits set"))

    def test_an_empty_value_is_truncated(self):
        self.assertRaises(Truncated, reading.flags_of, b"", "x")


class Dates(unittest.TestCase):
    def test_date_time_is_read(self):
        decoded = reading.date_time_at(b"\xff\xe8\x07\x06\x17\x0e\x23\x0a", 1)
        self.assertEqual(decoded, ((2024, 6, 23, 14, 35, 10), True, None))

    def test_year_month_or_day_zero_is_a_clock_without_a_date(self):
        for value in (
            b"\x00\x00\x06\x17\x0e\x23\x0a",
            b"\xe8\x07\x00\x17\x0e\x23\x0a",
            b"\xe8\x07\x06\x00\x0e\x23\x0a",
        ):
            self.assertEqual(reading.date_time_at(value, 0), (None, False, "clock not set"))

    def test_a_factory_date_is_of_a_clock_that_was_not_set(self):
        decoded = reading.date_time_at(b"\xda\x07\x01\x01\x00\x05\x00", 0)
        self.assertEqual(decoded, ((2010, 1, 1, 0, 5, 0), False, "clock not set"))

    def test_a_date_that_is_none_is_reported_and_not_used(self):
        for value in (
            b"\xe8\x07\x0d\x01\x00\x00\x00",  # month 13
            b"\xe7\x07\x02\x1d\x00\x00\x00",  # 29 February 2023
            b"\xe8\x07\x04\x1f\x00\x00\x00",  # 31 April
            b"\xe8\x07\x04\x01\x18\x00\x00",  # 24 hours
            b"\xe8\x07\x04\x01\x00\x3c\x00",  # 60 minutes
            b"\xe8\x07\x04\x01\x00\x00\x3c",  # 60 seconds
            b"\x2d\x06\x04\x01\x00\x00\x00",  # 1581
            b"\xff\xff\xff\xff\xff\xff\xff",
        ):
            self.assertEqual(reading.date_time_at(value, 0), (None, False, "timestamp not valid"))

    def test_leap_days_are_dates(self):
        for year in (2000, 2024):
            self.assertTrue(reading.is_date_time((year, 2, 29, 0, 0, 0)))
        self.assertFalse(reading.is_date_time((2100, 2, 29, 0, 0, 0)))

    def test_seconds_since_1970(self):
        for date_time, seconds in (
            ((1970, 1, 1, 0, 0, 0), 0),
            ((1969, 12, 31, 23, 59, 59), -1),
            ((2000, 2, 29, 0, 0, 0), 951782400),
            ((2000, 3, 1, 0, 0, 0), 951868800),
            ((2024, 6, 23, 14, 35, 10), 1719153310),
            ((2038, 1, 19, 3, 14, 8), 2147483648),
            ((9999, 12, 31, 23, 59, 59), 253402300799),
        ):
            self.assertEqual(reading.seconds_of(date_time), seconds)


if __name__ == "__main__":
    unittest.main()
