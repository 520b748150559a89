import binascii
import struct

import pytest
from wire import JOURNAL, UPTIME_MS, batch, broken, frame, frames, lost

from gateway.record import LOST, Record, decode_body, encode
from sync_service.arrival import MAX_STATUS_BYTES, Arrival, Refusal, Said, decode

UP, STATUS = "homeward/1/HW-0001/up", "homeward/1/HW-0001/status"


def arrived(whole: bytes) -> Arrival:
    found = decode(UP, whole, 7)
    assert isinstance(found, Arrival)
    return found


def sequences(arrival: Arrival) -> list[int]:
    return [one.sequence for one in arrival.records]


def test_a_good_batch_accounts_for_its_sequences() -> None:
    found = arrived(batch(frames(5, 9), first=5))
    assert (found.kit, found.received_ms, found.batch.journal_id) == ("HW-0001", 7, JOURNAL)
    assert (found.spans, found.broken, found.unknown) == ([(5, 9)], [], 0)


def test_an_empty_batch_is_an_arrival_without_spans() -> None:
    assert arrived(batch()).spans == []


def test_lost_accounts_for_its_range() -> None:
    assert arrived(batch([*frames(1, 2), lost(3, 90), *frames(91, 92)], first=1)).spans == [(1, 92)]


def test_a_gap_between_records_is_not_accounted_for() -> None:
    assert arrived(batch([*frames(1, 2), *frames(5, 6)], first=1)).spans == [(1, 2), (5, 6)]


@pytest.mark.parametrize("cut", [0, 1, 41])
def test_a_truncated_batch_is_refused(cut: int) -> None:
    assert decode(UP, batch()[:cut], 0) == Refusal("HW-0001", "batch truncated", None)


@pytest.mark.parametrize("cut", [42, -1])
def test_a_batch_cut_within_its_records_is_refused(cut: int) -> None:
    assert decode(UP, batch(frames(1, 3), first=1)[:cut], 0) == Refusal("HW-0001", "batch CRC broken", None)


def test_an_oversized_batch_is_refused() -> None:
    whole = batch([bytes(5_000)], first=1)
    assert decode(UP, whole, 0) == Refusal("HW-0001", "batch oversized", None)


def test_every_single_turned_bit_of_a_batch_is_noticed() -> None:
    whole = batch(frames(1, 1), first=1)
    for bit in range(len(whole) * 8):
        turned = bytearray(whole)
        turned[bit // 8] ^= 1 << bit % 8
        assert isinstance(decode(UP, bytes(turned), 0), Refusal)


def test_a_batch_of_a_version_from_the_future_is_quarantined() -> None:
    whole = b"\x09" + batch()[1:-4]
    whole += struct.pack("<I", binascii.crc32(whole))
    assert decode(UP, whole, 0) == Refusal("HW-0001", "batch of unknown version", whole)


@pytest.mark.parametrize(
    "topic", ["homeward/1/HW-0001", "homeward/1/service/up", "homeward/2/HW-0001/up", "homeward/1/a/b/up", ""]
)
def test_an_unknown_topic_is_refused(topic: str) -> None:
    assert decode(topic, batch(), 0) == Refusal("", "topic unknown", None)


def test_a_broken_record_costs_itself_alone() -> None:
    found = arrived(batch([*frames(1, 2), broken(frame(3)), *frames(4, 5)], first=1))
    assert found.broken == [broken(frame(3))]
    assert sequences(found) == [1, 2, 3, 4, 5]
    assert found.records[2].type == LOST
    assert found.spans == [(1, 5)]


def test_broken_records_at_either_end_are_accounted_for() -> None:
    found = arrived(batch([broken(frame(8)), frame(9), broken(frame(10)), broken(frame(11))], first=8))
    assert found.spans == [(8, 11)]
    assert len(found.broken) == 3


def test_after_a_length_that_makes_no_sense_all_is_one_broken_piece() -> None:
    rest = b"\xff\x00" + frame(3)[2:] + frame(4)
    found = arrived(batch([*frames(1, 2), rest], first=1, count=4))
    assert found.broken == [rest]
    assert found.spans == [(1, 4)]


def test_a_broken_tail_is_never_accounted_for_beyond_the_batch() -> None:
    """An Ack for the future is refused by the Kit, which would then send the same Batch for ever."""
    swallowing = struct.pack("<H", len(frame(2)) + 5) + frame(2)[2:]  # its length covers its neighbour too
    found = arrived(batch([frame(1), swallowing, frame(3), frame(4)], first=1, count=4))
    assert max(last for _, last in found.spans) <= 4


def test_trailing_bytes_that_no_record_is_missing_for_are_only_quarantined() -> None:
    found = arrived(batch([*frames(1, 2), b"\x01"], first=1, count=2))
    assert (found.spans, found.broken) == ([(1, 2)], [b"\x01"])


def test_a_broken_record_in_a_peek_needs_no_place() -> None:
    found = arrived(batch([frame(90), broken(frame(95))], first=90, peek=True))
    assert sequences(found) == [90]
    assert len(found.broken) == 1


def test_records_of_an_unknown_type_or_version_are_carried() -> None:
    strange = encode(77, 3, 2, 1, UPTIME_MS, b"from the future")
    found = arrived(batch([frame(1), strange, frame(3, version=9)], first=1))
    assert found.unknown == 2
    assert found.spans == [(1, 3)]
    assert found.records[1] == Record(77, 3, 2, 1, UPTIME_MS, b"from the future")


def test_a_lost_that_contradicts_itself_accounts_for_its_own_sequence() -> None:
    liar = encode(LOST, 1, 5, 1, UPTIME_MS, struct.pack("<IIB", 1, 4_000_000_000, 1))
    backwards = encode(LOST, 1, 6, 1, UPTIME_MS, struct.pack("<IIB", 6, 2, 1))
    assert arrived(batch([liar, backwards], first=5)).spans == [(5, 6)]


def test_the_placeholder_says_what_is_missing() -> None:
    found = arrived(batch([frame(1), broken(lost(2, 6)), frame(7)], first=1))
    body = decode_body(LOST, 1, found.records[1].body)
    assert (body.first, body.last) == (2, 6)


def test_a_status_is_kept_as_the_kit_sent_it() -> None:
    assert decode(STATUS, b'{"online": true}', 7) == Said("HW-0001", '{"online": true}', 7)


@pytest.mark.parametrize(
    ("whole", "reason"),
    [
        (b"", "status not JSON"),
        (b"\xff", "status not JSON"),
        (b'{"online": NaN}', "status not JSON"),
        (b"[" * 2_000, "status not JSON"),
        (b"[]", "status not a Kit's"),
        (b"{}", "status not a Kit's"),
        (b'{"online": "yes"}', "status not a Kit's"),
        (b'{"kit": "HW-0002", "online": true}', "status not a Kit's"),
        (b'{"online": true}' + b" " * MAX_STATUS_BYTES, "status oversized"),
    ],
)
def test_a_status_that_is_none_is_refused(whole: bytes, reason: str) -> None:
    assert decode(STATUS, whole, 0) == Refusal("HW-0001", reason, None)
