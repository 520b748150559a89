"""A backlog of 40,000 Records goes out, on real MicroPython with the heap of a board. The last line is JSON.

Acks are lost, links break, and new values are taken in the middle and peeked. The heap is looked at after
each 4,000 Records. The flash is a whole partition, and none of the heap's.
"""

import gc
import json
import struct
from binascii import crc32

from nor import NorFlash
from rim_kit import Kit, pages

from gateway.message import PEEK
from gateway.record import EVENT, INDICATED, Event, encode_event

RECORDS = 40_000
LOOK_EVERY = 4_000
SPOT = b"\x02\x61\x00\x48\x00\x00\x01"
UTC_MS = 1_800_000_000_000
START_MS = (1 << 30) + 5  # uptimes are long integers from here on, as after 12 days
_ACK = "<BB8s8sIIIIQh"


class Partition(NorFlash):
    """2 MiB in pages of the system."""

    def __init__(self):
        self.block_bytes = 4096
        self.size = 512 * 4096
        self.cells = pages(self.size)
        self._copy = None
        self._forget()
        for position in range(512):
            self._blank(position)

    def read(self, offset, buffer):
        buffer[:] = memoryview(self.cells)[offset : offset + len(buffer)]


class Service:
    """Stores in order and acks; loses every seventh Ack."""

    def __init__(self):
        self.through = 0
        self.batches = self.peeks = self.gaps = 0

    def ack_of(self, batch):
        self.batches += 1
        first, count = struct.unpack_from("<IH", batch, 32)
        if batch[1] & PEEK:
            self.peeks += 1
        elif count:
            self.gaps += first > self.through + 1
            self.through = max(self.through, first + count - 1)
        if self.batches % 7 == 0:
            return None
        journal_id, nonce = bytes(batch[2:10]), bytes(batch[20:28])
        body = struct.pack(_ACK, 1, 1, journal_id, nonce, self.through, 0, 0, 0, UTC_MS, 0)
        return body + struct.pack("<I", crc32(body) & 0xFFFFFFFF)


def used():
    gc.collect()
    gc.collect()
    return gc.mem_alloc()


def fill(kit):
    body = encode_event(Event(10, 0, b"0123456789"))
    while kit.journal.next_sequence <= RECORDS:
        kit.journal.append(EVENT, 1, body, START_MS)


def take_value(kit, now_ms):
    while kit.gateway.maintain():
        pass
    kit.gateway.received(1, 0x2A5E, SPOT, INDICATED, now_ms >> 24, now_ms & 0xFFFFFF)


def drain(kit, service, heap):
    """Until nothing waits; `heap` gets what is used after each part."""
    uplink, now_ms, looked = kit.gateway.uplink, START_MS, 0
    kit.gateway.connected(now_ms)
    while kit.journal.pending:
        batch = uplink.next_batch(now_ms)
        if batch is None:
            now_ms = max(now_ms, uplink.due_ms(now_ms))
            continue
        ack = service.ack_of(batch)
        now_ms += 20
        if ack is not None:
            kit.gateway.receive_ack(ack, now_ms)
        if service.batches % 50 == 0 and kit.journal.pending > 100:
            take_value(kit, now_ms)
        if service.batches % 90 == 0:
            uplink.disconnected(now_ms)
            kit.gateway.connected(now_ms)
        if kit.journal.acked // LOOK_EVERY > looked and looked < len(heap):
            batch = ack = None
            heap[looked] = used()
            looked += 1


def main():
    heap = [0] * (RECORDS // LOOK_EVERY)
    kit, service, nonces = Kit(Partition()), Service(), [0]

    def nonce():
        nonces[0] += 1
        return struct.pack("<Q", nonces[0])

    kit.gateway.uplink._nonce = nonce
    fill(kit)
    drain(kit, service, heap)
    print(
        json.dumps(
            {
                "through": service.through,
                "last": kit.journal.next_sequence - 1,
                "batches": service.batches,
                "peeks": service.peeks,
                "resent": kit.gateway.uplink.counters["resent"],
                "gaps": service.gaps,
                "heap": heap,
            }
        )
    )


main()
