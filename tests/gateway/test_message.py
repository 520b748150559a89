"""Batch and Ack: the bytes are frozen, and broken ones never pass."""

import unittest

from golden import vectors

from gateway.errors import Corrupt, FormatError, Truncated, Unknown
from gateway.limits import MAX_BATCH_BYTES
from gateway.message import (
    ENVELOPE_BYTES,
    Ack,
    ack_topic,
    begin_batch,
    command_topic,
    decode_ack,
    decode_batch,
    encode_ack,
    seal_batch,
    status_topic,
    up_topic,
)
from gateway.record import seal


class BatchTest(unittest.TestCase):
    def setUp(self):
        self.golden = vectors("batches")

    def test_every_golden_batch_is_read(self):
        for vector in self.golden:
            self.assertEqual(decode_batch(vector["bytes"]), vector["batch"])
            self.assertEqual(decode_batch(memoryview(vector["bytes"])), vector["batch"])

    def test_every_golden_batch_is_written(self):
        for vector in self.golden:
            flags, journal_id, boot, uptime_ms, nonce, acked, first, count, records = vector["batch"]
            buffer = bytearray(500)
            begin_batch(
                buffer,
                flags=flags,
                journal_id=journal_id,
                boot=boot,
                uptime_ms=uptime_ms,
                nonce=nonce,
                acked_through=acked,
                first=first,
                count=count,
            )
            end = ENVELOPE_BYTES + len(records)
            memoryview(buffer)[ENVELOPE_BYTES:end] = records
            self.assertEqual(bytes(buffer[: seal_batch(buffer, end)]), vector["bytes"])

    def test_a_batch_cut_anywhere_is_refused(self):
        whole = self.golden[1]["bytes"]
        for length in range(len(whole)):
            with self.assertRaises(FormatError):
                decode_batch(whole[:length])

    def test_any_flipped_bit_is_seen(self):
        whole = self.golden[0]["bytes"]
        for bit in range(8 * len(whole)):
            with self.assertRaises(FormatError):
                decode_batch(flipped(whole, bit))

    def test_an_oversized_batch_is_refused(self):
        with self.assertRaises(Corrupt):
            decode_batch(bytes(MAX_BATCH_BYTES + 1))

    def test_a_version_of_the_future_is_unknown_only_when_its_crc_is_good(self):
        whole = bytearray(self.golden[0]["bytes"])
        whole[0] = 2
        with self.assertRaises(Corrupt):
            decode_batch(whole)
        seal(whole, len(whole) - 4)
        with self.assertRaises(Unknown):
            decode_batch(whole)


class AckTest(unittest.TestCase):
    def setUp(self):
        self.golden = vectors("acks")

    def test_every_golden_ack_is_read_and_written(self):
        for vector in self.golden:
            self.assertEqual(decode_ack(vector["bytes"]), vector["ack"])
            self.assertEqual(encode_ack(Ack(*vector["ack"])), vector["bytes"])

    def test_an_ack_of_another_length_is_refused(self):
        whole = self.golden[0]["bytes"]
        for length in range(len(whole)):
            with self.assertRaises(Truncated):
                decode_ack(whole[:length])
        with self.assertRaises(FormatError):
            decode_ack(whole + b"\x00")

    def test_any_flipped_bit_is_seen(self):
        whole = self.golden[2]["bytes"]
        for bit in range(8 * len(whole)):
            with self.assertRaises(FormatError):
                decode_ack(flipped(whole, bit))

    def test_a_version_of_the_future_is_unknown_only_when_its_crc_is_good(self):
        whole = bytearray(self.golden[0]["bytes"])
        whole[0] = 2
        with self.assertRaises(Corrupt):
            decode_ack(whole)
        seal(whole, len(whole) - 4)
        with self.assertRaises(Unknown):
            decode_ack(whole)


class TopicTest(unittest.TestCase):
    def test_each_kit_has_four_topics_of_its_own(self):
        self.assertEqual(
            [topic("HW-0001") for topic in (up_topic, ack_topic, command_topic, status_topic)],
            [
                "homeward/1/HW-0001/up",
                "homeward/1/HW-0001/down/ack",
                "homeward/1/HW-0001/down/command",
                "homeward/1/HW-0001/status",
            ],
        )


def flipped(whole, bit):
    broken = bytearray(whole)
    broken[bit >> 3] ^= 1 << (bit & 7)
    return broken
