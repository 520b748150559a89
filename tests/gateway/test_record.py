"""Record: the bytes are frozen, both ways of writing make the same, and broken ones never pass."""

import unittest
from binascii import crc32

from golden import vectors

from gateway.errors import Corrupt, FormatError, Truncated, Unknown
from gateway.limits import MAX_BODY_BYTES
from gateway.record import (
    ACKED,
    ANCHOR,
    CRC_BYTES,
    EVENT,
    FRAME,
    HEADER_BYTES,
    LOST,
    OVERHEAD_BYTES,
    SENSOR,
    SENSOR_CLOCK,
    Lost,
    begin,
    decode,
    decode_all,
    decode_body,
    encode,
    encode_anchor,
    encode_event,
    encode_frame,
    encode_lost,
    encode_sensor,
    encode_sensor_clock,
    frame_length,
    length_at,
    put_frame,
    scan,
    seal,
)

ENCODERS = {
    FRAME: encode_frame,
    SENSOR: encode_sensor,
    ANCHOR: encode_anchor,
    SENSOR_CLOCK: encode_sensor_clock,
    EVENT: encode_event,
    LOST: encode_lost,
}


class GoldenTest(unittest.TestCase):
    def test_every_golden_record_is_read(self):
        for vector in vectors("records"):
            self.assertEqual(decode(vector["bytes"]), vector["record"])

    def test_every_golden_record_is_written(self):
        for vector in vectors("records"):
            self.assertEqual(encode(*vector["record"]), vector["bytes"])

    def test_every_golden_body_is_read_and_written(self):
        types = set()
        for vector in vectors("records"):
            if vector["body"] is None:
                continue
            type, version, _, _, _, body = vector["record"]
            fields = decode_body(type, version, body)
            self.assertEqual(fields, vector["body"])
            self.assertEqual(ENCODERS[type](fields), body)
            types.add(type)
        self.assertEqual(types, set(ENCODERS))

    def test_a_batch_body_of_every_golden_record_is_split(self):
        golden = vectors("records")
        whole = b"".join([vector["bytes"] for vector in golden])
        self.assertEqual(decode_all(whole), [vector["record"] for vector in golden])


class ScanTest(unittest.TestCase):
    def setUp(self):
        self.pieces = [vector["bytes"] for vector in vectors("records")]
        self.records = [vector["record"] for vector in vectors("records")]

    def test_good_records_are_all_found(self):
        self.assertEqual(scan(b"".join(self.pieces)), (self.records, []))
        self.assertEqual(scan(b""), ([], []))

    def test_a_broken_record_costs_itself_alone(self):
        self.pieces[3] = self.pieces[3][:-1] + b"?"
        records, broken = scan(b"".join(self.pieces))
        self.assertEqual(records, self.records[:3] + self.records[4:])
        self.assertEqual(broken, [(3, self.pieces[3])])

    def test_what_stands_behind_a_length_without_sense_is_one_broken_piece(self):
        for nonsense in (b"\xff\xff", b"\x59\x02", b"\x40"):
            whole = self.pieces[0] + nonsense
            self.assertEqual(scan(whole), (self.records[:1], [(1, nonsense)]))


class WriteTest(unittest.TestCase):
    def test_the_handler_writes_the_same_bytes_as_the_main_loop(self):
        for value, uptime_ms in ((b"", 0), (b"\x00\xff" * 9, 1 << 30), (bytes(range(200)), (1 << 48) - 1)):
            buffer = bytearray(300)
            begin(buffer, frame_length(len(value)), FRAME, 1, 77, 5, uptime_ms >> 24, uptime_ms & 0xFFFFFF)
            length = seal(buffer, put_frame(buffer, 2, 1, 0x2A5E, memoryview(value)))
            body = bytes((2, 1, 0x5E, 0x2A)) + value
            self.assertEqual(bytes(buffer[:length]), encode(FRAME, 1, 77, 5, uptime_ms, body))

    def test_the_crc_in_two_halves_is_crc_32(self):
        for length in (0, 1, 2, 3, 31, 256):
            buffer = bytearray([i * 89 & 0xFF for i in range(length)]) + bytearray(CRC_BYTES)
            expected = crc32(bytes(buffer[:length])) & 0xFFFFFFFF
            self.assertEqual(seal(buffer, length), length + CRC_BYTES)
            self.assertEqual(
                bytes(buffer[length:]), bytes([expected >> shift & 0xFF for shift in (0, 8, 16, 24)])
            )

    def test_a_body_of_the_greatest_length_passes_and_one_more_byte_is_refused(self):
        whole = encode(EVENT, 1, 1, 1, 0, bytes(MAX_BODY_BYTES))
        self.assertEqual(len(decode(whole).body), MAX_BODY_BYTES)
        with self.assertRaises(FormatError):
            encode(EVENT, 1, 1, 1, 0, bytes(MAX_BODY_BYTES + 1))


class BrokenTest(unittest.TestCase):
    def setUp(self):
        self.whole = vectors("records")[0]["bytes"]

    def test_a_record_cut_anywhere_is_truncated(self):
        for length in range(len(self.whole)):
            with self.assertRaises(Truncated):
                decode(self.whole[:length])

    def test_any_flipped_bit_is_seen(self):
        for bit in range(8 * len(self.whole)):
            broken = bytearray(self.whole)
            broken[bit >> 3] ^= 1 << (bit & 7)
            with self.assertRaises(FormatError):
                decode(broken)

    def test_erased_flash_is_the_end_not_a_record(self):
        self.assertEqual(length_at(b"\xff" * 30, 0), 0)
        with self.assertRaises(Truncated):
            decode(b"\xff" * 700)

    def test_an_oversized_length_is_refused_before_anything_is_read(self):
        with self.assertRaises(Corrupt):
            length_at(bytes((MAX_BODY_BYTES + 1 & 0xFF, MAX_BODY_BYTES + 1 >> 8)), 0)

    def test_a_batch_body_that_ends_in_half_a_record_is_truncated(self):
        with self.assertRaises(Truncated):
            decode_all(self.whole + self.whole[: HEADER_BYTES + 3])

    def test_an_unknown_type_or_version_is_carried_but_its_body_is_not_read(self):
        for type, version in ((0x77, 1), (ACKED, 1), (FRAME, 2)):
            record = decode(encode(type, version, 9, 1, 0, b"body"))
            self.assertEqual((record.type, record.version, record.body), (type, version, b"body"))
            with self.assertRaises(Unknown):
                decode_body(record.type, record.version, record.body)

    def test_a_body_that_ends_early_is_truncated(self):
        minimal = {FRAME: 4, SENSOR: 8, ANCHOR: 15, SENSOR_CLOCK: 6, EVENT: 3, LOST: 9}
        for type, length in minimal.items():
            for short in range(length):
                with self.assertRaises(Truncated):
                    decode_body(type, 1, bytes(short))
        with self.assertRaises(Truncated):
            decode_body(SENSOR, 1, bytes(8) + b"\x03\x05abcd")
        with self.assertRaises(Truncated):
            decode_body(SENSOR, 1, bytes(8) + b"\x03")

    def test_a_lost_range_that_is_no_range_is_corrupt(self):
        for first, last in ((0, 5), (6, 5)):
            with self.assertRaises(Corrupt):
                decode_body(LOST, 1, encode_lost(Lost(first, last, 1)))

    def test_a_record_can_be_found_at_an_offset(self):
        buffer = b"\x00" * 7 + self.whole
        self.assertEqual(length_at(buffer, 7), len(self.whole))
        self.assertEqual(decode(memoryview(buffer), 7), decode(self.whole))
        self.assertEqual(len(self.whole), OVERHEAD_BYTES + len(decode(self.whole).body))
