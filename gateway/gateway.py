"""Gateway: the whole brain. The rim (firmware/ or gateway/linux/) gives it values, Acks and time.

    radio --received--> Journal --next_batch--> uplink --receive_ack--> time, pointer
            session --> SENSOR, SENSOR_CLOCK, EVENT ^

The rule kept here: a value is in the Journal before anything else happens with it, and its Sensor is
described in the same Journal before it.
"""

from gateway.errors import FormatError, JournalError, SensorError
from gateway.limits import MAX_SENSORS, SPEAK_AFTER_MS, STREAM_WINDOW_MS
from gateway.peek import is_live
from gateway.port import const
from gateway.record import (
    ANCHOR,
    BATTERY,
    BOND_CHANGED,
    BOND_MADE,
    BOOTED,
    EVENT,
    HOST_CONFIRMED,
    NO_OFFSET,
    SENSOR,
    SENSOR_CLOCK,
    SENSOR_CONNECTED,
    SENSOR_DISCONNECTED,
    SENSOR_FAILED,
    SNTP_REFUSED,
    Event,
    Sensor,
    SensorClock,
    encode_anchor,
    encode_event,
    encode_sensor,
    encode_sensor_clock,
)
from gateway.sensor_session import SENSOR_SERVICES, SensorSession
from gateway.sntp import BELIEVED, EXCLUDED, SLOW, Sntp, answer, judge, moved
from gateway.status import encode_status
from gateway.stream import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from gateway.journal import Journal
    from gateway.record import Anchor
    from gateway.sensor_session import Items
    from gateway.uplink import Uplink

    class Bonds(Protocol):
        """Where the rim keeps the list of bonded Sensors, safe from a power cut."""

        def load(self) -> "list[dict[str, Any]]": ...
        def save(self, sensors: "list[dict[str, Any]]") -> None: ...


_LINK_EVENTS = (SENSOR_CONNECTED, SENSOR_DISCONNECTED, SENSOR_FAILED)
_BOND_EVENTS = (BOND_MADE, BOND_CHANGED)
_LINK_EVENT_EVERY_MS = const(600_000)
"""A Sensor that fails whenever it is called shall not fill the Journal; counters tell how often."""

COUNTERS = ("sessions", "failures", "strangers", "scan_failures", "thinned", "sntp_refused")
"""Sessions begun, those that failed, adverts of Sensors that are not bonded, scans begun again; streamed
values left out; answers of an SNTP server that were not believed."""


class Gateway:
    """`frame_flags` stand in every Frame (HOST_CONFIRMED on Linux). Sensors have references 1 to MAX_SENSORS.

    `stream_window_ms`: of continuous oximetry one value in so long is kept, besides each that changes class.
    All times are uptime in ms; only `received` takes it in two halves, since it must not allocate.
    """

    def __init__(
        self,
        kit: str,
        release: str,
        *,
        journal: "Journal",
        uplink: "Uplink",
        bonds: "Bonds",
        frame_flags: int = 0,
        stream_window_ms: int = STREAM_WINDOW_MS,
    ) -> None:
        self.kit = kit
        self.release = release
        self.journal = journal
        self.uplink = uplink
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.rim: dict[str, object] = {}  # what the rim adds to the status
        self._bonds = bonds
        self._bonded = [_Bonded(kept) for kept in bonds.load()]
        for bonded in self._bonded:
            bonded.unmarked_through = journal.next_sequence - 1
        self._frame_flags = frame_flags
        self._stream = Stream(stream_window_ms)
        self._seen_hi: list[int | None] = [None] * (MAX_SENSORS + 1)
        self._seen_lo = [0] * (MAX_SENSORS + 1)
        self._pairing_until_ms = 0
        self._anchor: tuple[Anchor, int] | None = None  # of this boot, and the uptime of its receipt
        self._said_ms: dict[tuple[int, int], int] = {}  # uptime of the last link event of a code and Sensor
        self.sntp = Sntp()
        self._begun: tuple[int, int] | None = None  # uptime and cause, until BOOTED says it
        uplink.peek.marks = self._marks

    def start(self, now_ms: int, *, cause: int = 0) -> None:
        """Describe every Sensor, since it may send at once. BOOTED waits for something to tell.

        A Kit in a boot loop would fill the Journal with nothing else. So BOOTED comes with the boot's first
        Record of the main loop, or before its first Batch: until then nobody has seen this boot's number,
        and the next boot may have it. A Frame that comes earlier holds the number itself.
        """
        self._begun = (now_ms, cause)
        for bonded in self._bonded:
            self.describe(bonded.reference, bonded.items, bonded.complete, now_ms)

    def close(self) -> None:
        """Before an orderly end: keep what else only RAM knows."""
        self.journal.settle()

    # --- The handler path -----------------------------------------------------------------------------------

    def received(
        self,
        sensor: int,
        characteristic: int,
        value: "bytes | memoryview",
        flags: int,
        uptime_hi: int,
        uptime_lo: int,
    ) -> int:
        """Keep a value; return its sequence. Runs in the indication handler (P1) and does not allocate."""
        sequence = self.journal.append_frame(
            sensor, flags | self._frame_flags, characteristic, value, uptime_hi, uptime_lo
        )
        if is_live(characteristic, flags):
            self.uplink.peek.live = sequence
        self._seen_hi[sensor] = uptime_hi
        self._seen_lo[sensor] = uptime_lo
        return sequence

    def thins(
        self, sensor: int, characteristic: int, value: "bytes | memoryview", uptime_hi: int, uptime_lo: int
    ) -> bool:
        """Whether to leave a *notified* value out: then it is counted, and not `received`. Does not allocate.

        An indicated one is never asked about: it is confirmed, so it is kept (P1).
        """
        if not self._stream.thins(sensor, characteristic, value, uptime_hi, uptime_lo):
            return False
        self.counters["thinned"] += 1
        return True

    # --- Sensors --------------------------------------------------------------------------------------------

    def open_pairing(self, now_ms: int, window_ms: int) -> None:
        """Let unknown Sensors bond for a while: at the bench, or when a button says so."""
        self._pairing_until_ms = now_ms + window_ms

    def pairing(self, now_ms: int) -> bool:
        """Whether an unknown Sensor may bond now."""
        return now_ms < self._pairing_until_ms

    def reference_of(self, address: bytes) -> int:
        """Reference of the Sensor bonded with this address (6 bytes, as people write it), 0: none."""
        for bonded in self._bonded:
            if bonded.address == address:
                return bonded.reference
        return 0

    def wants(self, address: bytes, services: "list[int]", now_ms: int) -> bool:
        """Whether to connect to who advertises this. Outside the window a stranger is only counted."""
        if self.reference_of(address):
            return True
        if not any(uuid in SENSOR_SERVICES for uuid in services):
            return False
        if self.pairing(now_ms) and len(self._bonded) < MAX_SENSORS:
            return True
        self.counters["strangers"] += 1
        return False

    def bond(self, address_type: int, address: bytes, now_ms: int) -> int:
        """A bond was made now; return the Sensor's reference. One bonded before has *changed* its bond.

        Raises SensorError when MAX_SENSORS are bonded.
        """
        reference = self.reference_of(address)
        if reference:
            self.append_event(BOND_CHANGED, reference, b"bond", now_ms)
            return reference
        taken = [bonded.reference for bonded in self._bonded]
        free = [reference for reference in range(1, MAX_SENSORS + 1) if reference not in taken]
        if not free:
            raise SensorError("%d Sensors are bonded already" % MAX_SENSORS)
        bonded = _Bonded({"reference": free[0], "address_type": address_type, "address": address.hex()})
        self._bonded.append(bonded)
        self.describe(bonded.reference, (), False, now_ms)
        self.append_event(BOND_MADE, bonded.reference, b"", now_ms)
        return bonded.reference

    def session(
        self, sensor: int, *, name: str, services: "list[int]", table: "dict[int, int]", now_ms: int
    ) -> SensorSession:
        """Begin the session of a Sensor that has just connected. Raises SensorError."""
        self.counters["sessions"] += 1
        return SensorSession(self, sensor, name=name, services=services, table=table, now_ms=now_ms)

    # --- The link to the service ----------------------------------------------------------------------------

    def connected(self, now_ms: int) -> None:
        """A link to the broker is up. What goes over it names this boot, whose number is used then."""
        self._say_booted()
        self.uplink.connected(now_ms)

    def receive_ack(self, whole: "bytes | memoryview", now_ms: int) -> None:
        """Take an Ack; whatever it is, nothing is raised."""
        anchor = self.uplink.receive_ack(whole, now_ms)
        if anchor is not None:
            self._anchor = (anchor, now_ms)
            if self.sntp.is_excluded_by(anchor, now_ms):
                self._refuse_sntp(EXCLUDED, now_ms)

    def wants_sntp(self, now_ms: int) -> bool:
        """Whether to ask an SNTP server, if there is one: the service has not given the time for a while."""
        return self.sntp.is_due(now_ms, None if self._anchor is None else self._anchor[1])

    def receive_sntp(self, packet: bytes, nonce: bytes, *, sent_ms: int, now_ms: int, floor_ms: int) -> None:
        """Take an SNTP server's answer; whatever it is, nothing is raised. UTC is past `floor_ms`."""
        try:
            utc_ms = answer(packet, nonce)
        except FormatError:
            self.counters["sntp_refused"] += 1
            return
        known = None if self._anchor is None else moved(self._anchor[0], now_ms - self._anchor[1])
        reason, anchor = judge(utc_ms, now_ms - sent_ms, floor_ms, known)
        self.sntp.told(anchor, now_ms, reason)
        if reason == BELIEVED:
            self._append(ANCHOR, encode_anchor(anchor), now_ms)
        else:
            self._refuse_sntp(reason, now_ms)

    def _refuse_sntp(self, reason: int, now_ms: int) -> None:
        self.counters["sntp_refused"] += 1
        if reason != SLOW:
            self.append_event(SNTP_REFUSED, 0, bytes([reason]), now_ms)

    def local_time(self, now_ms: int) -> "tuple[int, int] | None":
        """Return the home's wall time in ms since 1970 and its UTC offset in minutes; None: not known yet."""
        if self._anchor is None or self._anchor[0].offset_min == NO_OFFSET:
            return None
        anchor, at_ms = self._anchor
        return (anchor.utc_ms + now_ms - at_ms + anchor.offset_min * 60_000, anchor.offset_min)

    def status(self, now_ms: int) -> bytes:
        """Return the JSON for the status topic."""
        counters = dict(self.counters)
        counters.update(self.uplink.counters)
        return encode_status(
            self.kit,
            self.release,
            self.journal,
            uptime_ms=now_ms,
            host_confirmed=bool(self._frame_flags & HOST_CONFIRMED),
            counters=counters,
            sensors=[{"sensor": b.reference, "seen_ms": self._seen_ms(b.reference)} for b in self._bonded],
            rim=self.rim,
        )

    def maintain(self) -> bool:
        """Do one piece of the Journal's housekeeping; True: there is more."""
        return self.journal.maintain()

    def wipe(self, journal_id: bytes, *, force_unsent: bool = False) -> None:
        """Forget every Record and Sensor. Raises JournalError while Records wait and are not given up."""
        if self.journal.pending and not force_unsent:
            raise JournalError("%d Records have not been sent" % self.journal.pending)
        self.journal.format(journal_id)
        self._bonded = []
        self._bonds.save([])

    # --- What sessions append -------------------------------------------------------------------------------

    def identity(self, sensor: int) -> "tuple[Items, bool]":
        """Return what is known of a Sensor, and whether that is all there is to know."""
        bonded = self._find(sensor)
        return bonded.items, bonded.complete

    def describe(self, sensor: int, items: "Items", complete: bool, now_ms: int) -> None:
        """Make sure that this Journal holds a SENSOR record with these items."""
        bonded = self._find(sensor)
        changed = items != bonded.items or complete != bonded.complete
        if changed or not self._stands(bonded):
            body = encode_sensor(Sensor(sensor, bonded.address_type, bonded.address, items))
            bonded.sequence = self._append_marked(bonded, SENSOR, body, now_ms)
            bonded.items, bonded.complete = items, complete
            bonded.journal_id = self.journal.journal_id
            self._save()

    def append_clock(
        self, sensor: int, kind: int, offset_min: int, characteristic: int, value: bytes, now_ms: int
    ) -> None:
        """Append a reading or a setting of a Sensor's clock."""
        body = encode_sensor_clock(SensorClock(sensor, kind, offset_min, characteristic, value))
        self._append(SENSOR_CLOCK, body, now_ms)

    def append_event(self, code: int, sensor: int, detail: bytes, now_ms: int) -> None:
        """Append an EVENT; those of the link at most once in _LINK_EVENT_EVERY_MS."""
        if code in _LINK_EVENTS:
            if code == SENSOR_FAILED:
                self.counters["failures"] += 1
            said_ms = self._said_ms.get((code, sensor))
            if said_ms is not None and now_ms - said_ms < _LINK_EVENT_EVERY_MS:
                return
            self._said_ms[(code, sensor)] = now_ms
        body = encode_event(Event(code, sensor, detail))
        if code in _BOND_EVENTS:
            bonded = self._find(sensor)
            bonded.bond_sequence = self._append_marked(bonded, EVENT, body, now_ms)
            self._save()
        else:
            self._append(EVENT, body, now_ms)

    def append_battery(self, sensor: int, percent: int, now_ms: int) -> None:
        """Append a Sensor's battery level if it is another one than last time."""
        bonded = self._find(sensor)
        if bonded.battery != percent:
            bonded.battery = percent
            self.append_event(BATTERY, sensor, bytes([percent]), now_ms)

    # --- Where the Records stand that a peek needs ----------------------------------------------------------

    def _marks(self) -> "list[int] | None":
        """Sequences of each Sensor's newest SENSOR and bond EVENT, None when one of them is not known."""
        marks = []
        for bonded in self._bonded:
            if not self._is_marked(bonded):
                return None
            marks += [bonded.sequence, bonded.bond_sequence]
        return marks

    def _is_marked(self, bonded: "_Bonded") -> bool:
        """Whether its marks are right, or what they may have missed has been acked."""
        return bonded.is_marked or bonded.unmarked_through <= self.journal.acked

    def _append_marked(self, bonded: "_Bonded", type: int, body: bytes, now_ms: int) -> int:
        """Append a Record of which the place is kept. If power fails in between, no mark is believed.

        A peek that hid a changed bond could bring a stranger's value under the patient's name (P5).
        """
        is_marked = self._is_marked(bonded)
        bonded.is_marked = False
        self._save()
        sequence = self._append(type, body, now_ms)
        bonded.is_marked = is_marked
        return sequence

    def _save(self) -> None:
        self._bonds.save([each.kept() for each in self._bonded])

    def may_speak(self, now_ms: int) -> bool:
        """Whether this boot is known already, or too old to be part of a loop: else its troubles wait."""
        return self._begun is None or now_ms >= SPEAK_AFTER_MS

    def _append(self, type: int, body: bytes, now_ms: int) -> int:
        self._say_booted()
        return self.journal.append(type, 1, body, now_ms)

    def _say_booted(self) -> None:
        if self._begun is not None:
            (at_ms, cause), self._begun = self._begun, None
            self.journal.append(EVENT, 1, encode_event(Event(BOOTED, 0, bytes([cause]))), at_ms)

    def _find(self, sensor: int) -> "_Bonded":
        for bonded in self._bonded:
            if bonded.reference == sensor:
                return bonded
        raise SensorError("Sensor %d is not bonded" % sensor)

    def _stands(self, bonded: "_Bonded") -> bool:
        """Its SENSOR record is in this Journal, and the service has it or will get it."""
        if bonded.journal_id != self.journal.journal_id:
            return False
        return bonded.sequence <= self.journal.acked or bonded.sequence >= self.journal.first_sequence

    def _seen_ms(self, sensor: int) -> "int | None":
        hi = self._seen_hi[sensor]
        return None if hi is None else hi << 24 | self._seen_lo[sensor]


class _Bonded:
    """One bonded Sensor, and where its last SENSOR record stands. `kept` is its JSON form."""

    def __init__(self, kept: "dict[str, Any]") -> None:
        self.reference: int = kept["reference"]
        self.address_type: int = kept["address_type"]
        self.address = bytes.fromhex(kept["address"])
        self.items: Items = tuple((tag, bytes.fromhex(value)) for tag, value in kept.get("items", ()))
        self.complete: bool = kept.get("complete", False)
        self.journal_id = bytes.fromhex(kept.get("journal", ""))
        self.sequence: int = kept.get("sequence", 0)
        self.bond_sequence: int = kept.get("bond_sequence", 0)
        self.is_marked: bool = kept.get("is_marked", False)  # no newer SENSOR or bond EVENT than these
        self.unmarked_through = 0  # where it is not: those that were missed stand no further than here
        self.battery: int | None = None

    def kept(self) -> "dict[str, Any]":
        return {
            "reference": self.reference,
            "address_type": self.address_type,
            "address": self.address.hex(),
            "items": [[tag, value.hex()] for tag, value in self.items],
            "complete": self.complete,
            "journal": self.journal_id.hex(),
            "sequence": self.sequence,
            "bond_sequence": self.bond_sequence,
            "is_marked": self.is_marked,
        }
