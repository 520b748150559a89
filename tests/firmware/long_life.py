"""Weeks in a Kit, faster: radio, Gateway, Journal and Uplink on real MicroPython. The last line is JSON.

A day: readings while the home is offline and online, reconnects, sessions that end early, a status. The heap
is looked at after each day. Uptime begins a day before 2^30 ms.
"""

import gc
import json
import struct
import time
from binascii import crc32

import micropython
from rim_kit import CHARACTERISTIC, SENSOR, Kit, event_of

DAYS = 29
READINGS = 690  # a day; 20,000 in all
DAY_MS = 86_400_000
UTC_MS = 1_800_000_000_000
_ACK = "<BB8s8sIIIIQh"
TABLE = {CHARACTERISTIC: 0x20, 0x2A49: 0x02, 0x2A08: 0x0A, 0x2A19: 0x02}


class Service:
    """Acks what comes."""

    def __init__(self):
        self.received = 0  # Records
        self.through = 0

    def ack_of(self, batch):
        first, count = struct.unpack_from("<IH", batch, 32)
        if count:
            self.received += count
            self.through = self.last(batch, count)
        journal_id, nonce = bytes(batch[2:10]), bytes(batch[20:28])
        body = struct.pack(_ACK, 1, 1, journal_id, nonce, self.through, first, 0, 0, UTC_MS, 0)
        return body + struct.pack("<I", crc32(body) & 0xFFFFFFFF)

    def last(self, batch, count):
        """Sequence of the last Record; a LOST's own body says where it ends."""
        at = 38
        for _ in range(count):
            length, type, _, sequence = struct.unpack_from("<HBBI", batch, at)
            last = struct.unpack_from("<I", batch, at + 22)[0] if type == 6 else sequence
            at += 22 + length
        return last


def drain(kit, service, now_ms):
    uplink = kit.gateway.uplink
    kit.gateway.connected(now_ms)
    while True:
        batch = uplink.next_batch(now_ms)
        if batch is None:
            break
        kit.gateway.receive_ack(service.ack_of(batch), now_ms + 20)
    uplink.disconnected(now_ms)


def visit(kit, now_ms):
    """A session that is left in the middle of its steps."""
    session = kit.gateway.session(SENSOR, name="Cuff", services=[0x1810], table=TABLE, now_ms=now_ms)
    for _ in range(6):
        step = session.next_step(now_ms)
        if step is None:
            break
        session.step_done(b"\x00" * 7, now_ms)
    session.closed(now_ms)


def day(kit, service, now_ms):
    event = event_of(19)
    for number in range(READINGS):
        at_ms = now_ms + number * (DAY_MS // READINGS)
        kit.at(at_ms >> 24, at_ms & 0xFFFFFF)
        kit.indicate(event)
        while kit.gateway.maintain():
            pass
        if number % 5 == 4:
            drain(kit, service, at_ms)
        if number % 50 == 0:
            visit(kit, at_ms)
    kit.gateway.status(now_ms)


def used():
    gc.collect()
    gc.collect()
    return gc.mem_alloc()


def speed(work, count):
    start = time.ticks_us()
    work()
    return count * 1_000_000 // max(time.ticks_diff(time.ticks_us(), start), 1)


def main():
    kit, service = Kit(), Service()
    now_ms = (1 << 30) - DAY_MS
    heap = [0] * DAYS  # its growth would be measured too
    for number in range(DAYS):
        day(kit, service, now_ms)
        now_ms += DAY_MS  # `number * DAY_MS` becomes a long integer on the 13th day: garbage of this script
        heap[number] = used()
    before = service.received
    event = event_of(19)
    appends = speed(lambda: [kit.indicate(event) for _ in range(60)], 60)
    start = time.ticks_us()
    drain(kit, service, now_ms)
    drains = (service.received - before) * 1_000_000 // time.ticks_diff(time.ticks_us(), start)
    micropython.qstr_info()
    print(
        json.dumps(
            {
                "readings": DAYS * READINGS,
                "received": service.received,
                "failures": kit.radio.counters["handler_failures"],
                "heap_after_days": heap,
                "append_per_s": appends,
                "drain_per_s": drains,
            }
        )
    )


main()
