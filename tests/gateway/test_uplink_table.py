"""Uplink: every cell of its tables, driven from outside with what can happen to a Gateway."""

import unittest

from nor import Lock, NorFlash

from gateway.journal import Journal
from gateway.limits import ACK_WAIT_MAX_MS, ACK_WAIT_MS, ANCHOR_EVERY_MS, STUCK_WAITS
from gateway.message import Ack, encode_ack
from gateway.record import EVENT, Event, encode_event
from gateway.uplink import (
    DOWN,
    FLYING,
    GREET,
    GREETED,
    MAIN,
    NONE,
    PEEKED,
    PEEKS,
    READY,
    WANTED,
    Uplink,
)

UTC_MS = 1_764_000_000_000
SPOT = b"\x02\x61\x00\x48\x00\x00\x01"
BACKLOG = 150

# What happens, and the state of the main lane after it in each state that it may find.
# fmt: off
MAIN_CELLS = {
    #                  DOWN   GREET    GREETED  READY    FLYING
    "connected":      (GREET, GREET,   GREET,   GREET,   GREET),
    "disconnected":   (DOWN,  DOWN,    DOWN,    DOWN,    DOWN),
    "asked":          (DOWN,  GREETED, GREETED, READY,   FLYING),
    "asked with news":(DOWN,  GREETED, GREETED, FLYING,  FLYING),
    "asked too late": (DOWN,  GREETED, GREETED, GREETED, FLYING),
    "acked":          (DOWN,  GREET,   READY,   READY,   READY),
    "acked by a stranger": (DOWN, GREET, GREETED, READY, FLYING),
}
PEEK_CELLS = {
    #                  NONE    WANTED  PEEKED
    "connected":      (NONE,   NONE,   NONE),
    "disconnected":   (NONE,   NONE,   NONE),
    "asked":          (NONE,   PEEKED, PEEKED),
    "asked too late": (NONE,   PEEKED, PEEKED),
    "live value":     (PEEKED, PEEKED, PEEKED),
    "acked":          (NONE,   WANTED, NONE),
    "acked by a stranger": (NONE, WANTED, PEEKED),
    "backlog acked":  (NONE,   NONE,   PEEKED),
}
# fmt: on


class World:
    """An Uplink, and what can happen to it."""

    def __init__(self):
        self.journal = Journal(NorFlash(12), Lock())
        self.journal.format(b"journal1")
        self.journal.mount()
        self.nonces = 0
        self.uplink = Uplink(self.journal, self.next_nonce)
        self.now_ms = 0

    def next_nonce(self):
        self.nonces += 1
        return bytes([0] * 7 + [self.nonces])

    def append(self, count=1):
        for _ in range(count):
            self.journal.append(EVENT, 1, encode_event(Event(10, 0, b"")), 5)

    def live(self):
        self.journal.maintain()
        self.uplink.peek.live = self.journal.append_frame(1, 1, 0x2A5E, SPOT, 0, self.now_ms)

    def ask(self):
        return self.uplink.next_batch(self.now_ms)

    def ack(self, nonce, through=None):
        through = self.journal.acked if through is None else through
        ack = Ack(self.journal.journal_id, nonce or bytes(8), through, 0, 0, None, UTC_MS, 0)
        self.uplink.receive_ack(encode_ack(ack), self.now_ms)

    def ack_main(self, through=None):
        self.ack(self.uplink.main.nonce, through)

    def clear(self):
        """Everything that waits is acked: no backlog, and no Record on its way."""
        while self.uplink.main.state != READY or self.journal.pending:
            self.ask()
            self.ack_main(self.journal.next_sequence - 1)

    # --- What can happen

    def happen(self, what):
        lanes = self.uplink
        if what == "connected":
            lanes.connected(self.now_ms)
        elif what == "disconnected":
            lanes.disconnected(self.now_ms)
        elif what == "asked":
            self.ask()
        elif what == "asked with news":
            self.append()
            self.ask()
        elif what == "asked too late":
            self.now_ms += ANCHOR_EVERY_MS
            self.ask()
        elif what == "live value":
            self.live()
            self.ask()
        elif what == "acked by a stranger":
            self.ack(b"\xee" * 8)


class MainLane(unittest.TestCase):
    def world(self, state):
        world = World()
        if state == DOWN:
            return world
        world.uplink.connected(0)
        if state == GREET:
            return world
        world.ask()
        if state == GREETED:
            return world
        world.clear()
        if state == FLYING:
            world.append()
            world.ask()
        return world

    def test_every_event_in_every_state(self):
        for what, cells in MAIN_CELLS.items():
            for before, after in zip((DOWN, GREET, GREETED, READY, FLYING), cells):
                world = self.world(before)
                self.assertEqual(world.uplink.main.state, before)
                if what == "acked":
                    world.ack_main()
                else:
                    world.happen(what)
                self.assertEqual(world.uplink.main.state, after, "%s in %s" % (what, before))

    def test_a_batch_is_in_flight_in_two_states_alone(self):
        for state in MAIN:
            lane = self.world(state).uplink.main
            self.assertEqual(lane.nonce is not None, state in (GREETED, FLYING))

    def test_what_is_overdue_goes_again_and_counts_its_tries(self):
        for state, again in ((GREETED, 0), (FLYING, 1)):
            world = self.world(state)
            nonce = world.uplink.main.nonce
            world.now_ms += ACK_WAIT_MS - 1
            self.assertIsNone(world.ask())
            world.now_ms += 1
            self.assertEqual(bytes(world.ask())[36], again)
            self.assertEqual((world.uplink.main.state, world.uplink.main.tries), (state, 1))
            self.assertNotEqual(world.uplink.main.nonce, nonce)


class PeekLane(unittest.TestCase):
    def world(self, state):
        """With a backlog, of which a Batch is in flight."""
        world = World()
        world.uplink.connected(0)
        if state == NONE:
            world.ask()
            world.ack_main()  # no backlog yet: no peek
            world.append(BACKLOG)
            world.ask()
            return world
        world.append(BACKLOG)
        world.live()
        world.ask()
        world.ack_main()
        if state == PEEKED:
            world.ask()
            world.ask()
        return world

    def test_every_event_in_every_state(self):
        for what, cells in PEEK_CELLS.items():
            for before, after in zip((NONE, WANTED, PEEKED), cells):
                world = self.world(before)
                self.assertEqual(world.uplink.peeks.state, before)
                if what == "acked":
                    world.ack(world.uplink.peeks.nonce)
                elif what == "backlog acked":
                    world.journal.ack(world.journal.next_sequence - 1)
                    world.ask()
                else:
                    world.happen(what)
                self.assertEqual(world.uplink.peeks.state, after, "%s in %s" % (what, before))

    def test_one_batch_and_one_peek_are_in_flight_at_most(self):
        world = self.world(WANTED)
        sent = []
        while True:
            batch = world.ask()
            if batch is None:
                break
            sent.append(batch[1] & 1)
        self.assertEqual(sent, [1, 0])
        self.assertEqual((world.uplink.main.state, world.uplink.peeks.state), (FLYING, PEEKED))
        self.assertEqual(sorted(PEEKS), sorted((NONE, WANTED, PEEKED)))


class Silence(unittest.TestCase):
    def test_a_link_without_an_answer_is_stuck_after_a_bound_and_a_new_one_is_not(self):
        world = World()
        world.uplink.connected(0)
        bound_ms = STUCK_WAITS * ACK_WAIT_MS
        world.ask()
        self.assertFalse(world.uplink.is_stuck(bound_ms))
        self.assertTrue(world.uplink.is_stuck(bound_ms + 1))
        world.uplink.disconnected(bound_ms + 1)
        self.assertFalse(world.uplink.is_stuck(bound_ms + 2))
        world.now_ms = bound_ms + 3
        world.uplink.connected(world.now_ms)
        self.assertFalse(world.uplink.is_stuck(world.now_ms))
        world.ask()
        world.ack_main()
        self.assertFalse(world.uplink.is_stuck(world.now_ms + 10 * bound_ms))

    def test_a_service_that_is_down_for_two_weeks_is_asked_seldom_and_nothing_grows(self):
        world = World()
        world.uplink._nonce = lambda: bytes([sent * 37 & 0xFF] * 8)
        world.append(BACKLOG)
        last, sent, longest_ms = world.journal.next_sequence, 0, 0
        world.uplink.connected(0)
        while world.now_ms < 14 * 86_400_000:
            if world.uplink.is_stuck(world.now_ms):
                world.uplink.disconnected(world.now_ms)
                world.uplink.connected(world.now_ms)
            sent += world.ask() is not None
            wait_ms = world.uplink.due_ms(world.now_ms) - world.now_ms
            self.assertTrue(0 <= wait_ms <= ACK_WAIT_MAX_MS)
            longest_ms = max(longest_ms, wait_ms)
            world.now_ms += max(wait_ms, 1)
        self.assertEqual((world.journal.next_sequence, world.journal.pending), (last, BACKLOG))
        self.assertTrue(sent < 25_000, "%d Batches" % sent)
        world.ack_main()
        world.clear()
        self.assertEqual(world.journal.pending, 0)

    def test_a_clock_that_jumps_by_a_fortnight_sends_once(self):
        world = World()
        world.append(3)
        world.uplink.connected(0)
        world.ask()
        world.now_ms = 14 * 86_400_000
        self.assertTrue(world.ask() is not None)
        self.assertIsNone(world.ask())
        self.assertTrue(world.uplink.due_ms(world.now_ms) - world.now_ms <= ACK_WAIT_MAX_MS)

    def test_kits_that_were_silenced_together_do_not_come_back_together(self):
        due = []
        for nonce in range(0, 250, 25):
            world = World()
            world.uplink.connected(0)
            world.append()
            world.next_nonce = None
            world.uplink._nonce = lambda nonce=nonce: bytes([nonce] * 8)
            for _ in range(6):
                world.ask()
                world.now_ms = world.uplink.due_ms(world.now_ms)
            due.append(world.now_ms)
        self.assertEqual(len(set(due)), 10)
        self.assertTrue(max(due) - min(due) > ACK_WAIT_MAX_MS)
