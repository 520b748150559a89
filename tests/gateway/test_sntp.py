import struct
import unittest

from gateway.errors import Corrupt, Truncated
from gateway.limits import SNTP_BOUND_MS
from gateway.record import FROM_ACK, FROM_SNTP, NO_OFFSET, Anchor
from gateway.sntp import (
    AGAIN_MS,
    BEFORE_FLOOR,
    BELIEVED,
    EXCLUDED,
    MAX_ROUND_TRIP_MS,
    SLOW,
    Sntp,
    answer,
    judge,
    moved,
    question,
)

NONCE = b"8 bytes!"
NOW = 1_783_641_600_000  # 2026-07-10T00:00:00Z
HOUR = 3_600_000


def packet(seconds, fraction=0, head=b"\x24\x02", nonce=NONCE):
    """A server's answer; seconds since 1900."""
    return head + bytes(22) + nonce + bytes(8) + struct.pack(">II", seconds, fraction)


class Packets(unittest.TestCase):
    def test_the_question_carries_the_nonce_and_no_time(self):
        asked = question(NONCE)
        self.assertEqual(asked, b"\x23" + bytes(39) + NONCE)
        self.assertEqual(len(asked), 48)

    def test_the_answer_is_the_servers_time(self):
        self.assertEqual(answer(packet(2_208_988_800 + NOW // 1000, 0x80000000), NONCE), NOW + 500)

    def test_the_counter_begins_anew_in_2036(self):
        self.assertEqual(answer(packet(0), NONCE), 2_085_978_496_000)
        self.assertEqual(answer(packet(1), NONCE), 2_085_978_497_000)

    def test_an_answer_to_another_question_is_refused(self):
        with self.assertRaises(Corrupt):
            answer(packet(0, nonce=b"another!"), NONCE)

    def test_a_server_without_a_time_is_refused(self):
        for head in (b"\x23\x02", b"\xe4\x02", b"\x24\x00", b"\x24\x10"):
            with self.assertRaises(Corrupt):
                answer(packet(0, head=head), NONCE)

    def test_a_short_packet_is_refused(self):
        with self.assertRaises(Truncated):
            answer(packet(0)[:47], NONCE)


class Judging(unittest.TestCase):
    def test_it_is_never_better_than_its_bound(self):
        reason, anchor = judge(NOW, 100, 0, None)
        self.assertEqual(reason, BELIEVED)
        self.assertEqual(anchor, Anchor(NOW + 50, SNTP_BOUND_MS + 50, FROM_SNTP, NO_OFFSET))

    def test_a_slow_answer_is_refused(self):
        self.assertEqual(judge(NOW, MAX_ROUND_TRIP_MS, 0, None)[0], BELIEVED)
        self.assertEqual(judge(NOW, MAX_ROUND_TRIP_MS + 1, 0, None)[0], SLOW)

    def test_a_time_before_the_floor_is_refused(self):
        self.assertEqual(judge(NOW, 0, NOW + SNTP_BOUND_MS, None)[0], BELIEVED)
        self.assertEqual(judge(NOW, 0, NOW + SNTP_BOUND_MS + 1, None)[0], BEFORE_FLOOR)

    def test_what_an_ack_excludes_is_refused(self):
        known = (NOW - 40, NOW + 40)
        for off_ms, reason in ((0, BELIEVED), (5_000, BELIEVED), (5_100, EXCLUDED), (-5_100, EXCLUDED)):
            self.assertEqual(judge(NOW + off_ms, 0, 0, known)[0], reason)

    def test_a_bound_grows_with_drift(self):
        anchor = Anchor(NOW, 40, FROM_ACK, 60)
        self.assertEqual(moved(anchor, 0), (NOW - 41, NOW + 41))
        self.assertEqual(moved(anchor, 10 * HOUR), (NOW + 10 * HOUR - 3641, NOW + 10 * HOUR + 3641))


class Asking(unittest.TestCase):
    def setUp(self):
        self.sntp = Sntp()
        self.anchor = judge(NOW, 0, 0, None)[1]

    def test_it_is_asked_while_no_ack_gives_the_time(self):
        self.assertTrue(self.sntp.is_due(0, None))
        self.assertFalse(self.sntp.is_due(HOUR, 1))
        self.assertTrue(self.sntp.is_due(HOUR + 2, 1))

    def test_a_server_that_is_silent_is_asked_again_later(self):
        self.sntp.asked(0)
        self.assertFalse(self.sntp.is_due(AGAIN_MS - 1, None))
        self.assertTrue(self.sntp.is_due(AGAIN_MS, None))

    def test_after_an_answer_it_has_rest_for_an_hour(self):
        for reason in (BELIEVED, BEFORE_FLOOR):
            self.sntp.asked(0)
            self.sntp.told(self.anchor, 100, reason)
            self.assertFalse(self.sntp.is_due(HOUR, None))
            self.assertTrue(self.sntp.is_due(HOUR + 100, None))

    def test_a_server_that_an_ack_excludes_is_not_asked_again(self):
        self.sntp.told(self.anchor, 0, EXCLUDED)
        self.assertFalse(self.sntp.is_due(100 * HOUR, None))

    def test_a_later_ack_finds_it_out_once(self):
        self.sntp.told(self.anchor, 0, BELIEVED)
        right = Anchor(NOW + HOUR, 40, FROM_ACK, 60)
        wrong = Anchor(NOW + HOUR + 20_000, 40, FROM_ACK, 60)
        self.assertFalse(self.sntp.is_excluded_by(right, HOUR))
        self.sntp.told(self.anchor, 0, BELIEVED)
        self.assertTrue(self.sntp.is_excluded_by(wrong, HOUR))
        self.assertFalse(self.sntp.is_excluded_by(wrong, HOUR))
        self.assertFalse(self.sntp.is_due(100 * HOUR, None))


if __name__ == "__main__":
    unittest.main()
