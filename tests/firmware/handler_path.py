"""The path from the irq entry to the flash, on real MicroPython. The last line is JSON."""

import gc
import json
import time

from nor import records_after
from rim_kit import CONNECTION, HANDLE, INDICATE, NOTIFY, Kit, Names, event_of

from gateway.limits import MAX_BODY_BYTES
from gateway.record import FRAME, frame_length

# Halves of the uptime: 0; just below and above 2^30 ms; the last that has 48 bits.
UPTIMES = ((0, 0), (63, 0xFFFFFF), (64, 0), (70, 0x123456), (0xFFFFFF, 0xF00000))


def allocated(kit, event, kind=INDICATE):
    """Bytes that one indication or notification takes from the heap."""
    gc.collect()
    gc.disable()
    before = gc.mem_alloc()
    kit.radio._on_event(kind, event)
    after = gc.mem_alloc()
    gc.enable()
    return after - before


def every_size():
    """Every length of a value, at uptimes around 2^30 ms; returns (bytes allocated at most, values wrong)."""
    most = wrong = 0
    sizes = range(MAX_BODY_BYTES - frame_length(0) + 1)
    kit = Kit()
    for size in sizes:
        event = event_of(size)
        kit.at(*UPTIMES[size % len(UPTIMES)])
        before = kit.journal.next_sequence
        most = max(most, allocated(kit, event))
        while kit.gateway.maintain():
            pass
        records = [each for each in records_after(kit.journal, before - 1) if each.type == FRAME]
        good = len(records) == 1 and records[0].body[4:] == bytes(event[2])
        hi, lo = UPTIMES[size % len(UPTIMES)]
        good = good and 0 <= records[0].uptime_ms - (hi << 24 | lo) < 5000
        wrong += not good
    return most, wrong, kit.radio.counters


def every_branch():
    """No block in reserve, a block that refuses, one that forgets: what it takes then."""
    most = 0
    kit = Kit()
    for number in range(2 * 6 * 1024 // 48):
        if number == 50:
            kit.flash.refuses = [3]
        if number == 150:
            kit.flash.refuses = []
            kit.flash.forgets = [4]
        most = max(most, allocated(kit, event_of(19)))  # and never `maintain`: the handler erases
    late = kit.journal._late_hi >= 0
    return most, late, kit.radio.counters


def streamed():
    """A stream of a value a second: bytes allocated at most, values kept, values left out."""
    most = 0
    kit = Kit()
    kit.radio._links[CONNECTION].handles[HANDLE] = 0x2A5F
    before = kit.journal.next_sequence
    for number in range(130):  # the clock runs on between two of them
        at_ms = (1 << 30) - 60_000 + number * 1000
        kit.at(at_ms >> 24, at_ms & 0xFFFFFF)
        most = max(most, allocated(kit, event_of(5), NOTIFY))
    return most, kit.journal.next_sequence - before, kit.radio.counters["thinned"]


def refused():
    """A flash that takes nothing more: the failure stays inside, is counted, and ends the link."""
    ended = []
    kit = Kit()
    kit.radio._ble = Names(gap_disconnect=ended.append)
    kit.flash.refuses = list(range(6))
    for _ in range(200):
        kit.indicate(event_of(19))
    return kit.radio.counters["handler_failures"] > 0 and CONNECTION in ended


def microseconds(call, event, times=200):
    start = time.ticks_us()
    for _ in range(times):
        call(event)
    return time.ticks_diff(time.ticks_us(), start) / times


def main():
    most, wrong, counters = every_size()
    branches, late, more = every_branch()
    streamed_bytes, kept, thinned = streamed()
    kit = Kit()
    for _ in range(4):
        kit.gateway.maintain()
    print(
        json.dumps(
            {
                "alloc_bytes": most,
                "alloc_bytes_worst": branches,
                "alloc_bytes_streamed": streamed_bytes,
                "streamed_kept": kept,
                "streamed_thinned": thinned,
                "wrong": wrong,
                "failures": counters["handler_failures"] + more["handler_failures"],
                "erased_late": late,
                "refusal_contained": refused(),
                "handler_us": microseconds(kit.indicate, event_of(19)),
                "empty_us": microseconds(lambda event: None, event_of(19)),
            }
        )
    )


main()
