"""One connection to one Sensor: which GATT operation comes next, and what its answer means. Knows no radio.

Theory of operation. The session is a row of steps, each done once and in this order, because a cuff may
switch off seconds after it has connected and any Sensor may leave at any moment: what is lost then is only
what comes after.

    step          GATT operation                   on an answer             on a failure
    IDENTIFY      read the serial (all of DIS and  SENSOR before any        unless refused for good, asked
                  the features, when new or        Frame, if new or         for again next time
                  changed)                         changed
    CLOCK_READ    read 2A08 or 2A2B                SENSOR_CLOCK "before"    go on
    SUBSCRIBE     2A5E 2A35 2A5F, then 2A52        values may come          SENSOR_FAILED, disconnect
    REPORT        write 2A52 "report all", if the  wait for the response,   not drained this time
                  features say that it can store   at most 5 s from value
                                                   to value
    COLLECT       none: wait for 2 s without a     EVENT SENSOR_DRAINED
                  new indicated value
    CLOCK_WRITE   write the home's local time, if  (SENSOR_CLOCK "set"      SENSOR_CLOCK "set" without a
                  the Gateway knows it             stands already)          value: nobody knows its time
    CLOCK_VERIFY  read it back                     SENSOR_CLOCK "after"     go on
    BATTERY       read 2A19                        EVENT BATTERY            go on
    STAY          none, until the link ends: collects new values; a time that has only now become known goes
                  back to CLOCK_WRITE

The clock is read before it is set, since stored values carry the time of the clock as it was; and drained is
said as soon as it is true, not after the clock has been set, since many cuffs leave in between (A&D
UA-651BLE).

The raw values themselves do not pass here: the rim gives them to Gateway.received first and then tells
`value_received`.
"""

import struct

from gateway.errors import SensorError, Truncated
from gateway.limits import ANCHOR_EVERY_MS, QUIET_MS, RACP_WAIT_MS
from gateway.port import const
from gateway.reading import DATE_TIME
from gateway.record import (
    BOND_CHANGED,
    CLOCK_AFTER,
    CLOCK_BEFORE,
    CLOCK_SET,
    FEATURE,
    FIRMWARE,
    FROM_STORAGE,
    INDICATED,
    MANUFACTURER,
    MODEL,
    NAME,
    NO_OFFSET,
    RACP_ENDED,
    SENSOR_CONNECTED,
    SENSOR_DISCONNECTED,
    SENSOR_DRAINED,
    SENSOR_FAILED,
    SERIAL,
    SERVICE_UUID,
    SYSTEM_ID,
)
from gateway.sensors.blood_pressure import BLOOD_PRESSURE_FEATURE, BLOOD_PRESSURE_MEASUREMENT
from gateway.sensors.clock import CURRENT_TIME, DATE_TIME_CHARACTERISTIC
from gateway.sensors.pulse_oximeter import (
    PLX_CONTINUOUS,
    PLX_FEATURES,
    PLX_SPOT_CHECK,
    STORAGE,
    decode_features,
)
from gateway.sensors.racp import RECORD_ACCESS_CONTROL_POINT, REPORT_ALL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    Items = tuple[tuple[int, bytes], ...]
    Step = tuple[str, int, bytes | str | None]

    class Log(Protocol):
        """What a session needs of the Gateway."""

        def identity(self, sensor: int) -> "tuple[Items, bool]": ...
        def describe(self, sensor: int, items: Items, complete: bool, now_ms: int) -> None: ...
        def append_clock(
            self, sensor: int, kind: int, offset_min: int, characteristic: int, value: bytes, now_ms: int
        ) -> None: ...
        def append_event(self, code: int, sensor: int, detail: bytes, now_ms: int) -> None: ...
        def append_battery(self, sensor: int, percent: int, now_ms: int) -> None: ...
        def local_time(self, now_ms: int) -> "tuple[int, int] | None": ...


# Properties of a characteristic, as in its GATT declaration.
CAN_READ = const(0x02)
CAN_WRITE = const(0x08)
CAN_NOTIFY = const(0x10)
CAN_INDICATE = const(0x20)

# Operations of a step; every step is (operation, characteristic, argument).
READ = "read"
WRITE = "write"  # argument: the bytes
SUBSCRIBE = "subscribe"  # argument: INDICATE or NOTIFY
DISCONNECT = "disconnect"
INDICATE = "indicate"
NOTIFY = "notify"

PULSE_OXIMETER = const(0x1822)
BLOOD_PRESSURE = const(0x1810)
SENSOR_SERVICES = (PULSE_OXIMETER, BLOOD_PRESSURE)
"""What a Sensor's advert must name to be bonded."""

_BATTERY_LEVEL = const(0x2A19)
_MEASUREMENTS = (PLX_SPOT_CHECK, BLOOD_PRESSURE_MEASUREMENT, PLX_CONTINUOUS)
"""Not 2A36: an intermediate cuff pressure is never a Reading, and would only wear the flash."""
_IDENTITY = (
    (0x2A25, SERIAL),
    (0x2A23, SYSTEM_ID),
    (0x2A29, MANUFACTURER),
    (0x2A24, MODEL),
    (0x2A26, FIRMWARE),
    (PLX_FEATURES, FEATURE),
    (BLOOD_PRESSURE_FEATURE, FEATURE),
)
_MAX_ITEM_BYTES = const(64)
"""DIS texts are 20 characters in practice; this keeps a SENSOR record below MAX_BODY_BYTES in any case."""
_MAX_SERVICES = const(8)

_RESPONSE = const(6)
_SUCCESS = const(1)
_NO_RECORDS = const(6)
_NO_ANSWER = const(0)
_TIME_WRITTEN = const(0x02)  # Current Time, adjust reason: external reference

_LOOK_AGAIN_MS = const(1_000)
"""How often a Sensor that stays is asked again whether the home's time has become known."""
_MAX_REASON_BYTES = const(40)

# Rows of the session's table, in order.
_IDENTIFY = const(0)
_CLOCK_WRITE = const(5)
_CLOCK_VERIFY = const(6)
_FAILED = const(9)

_WAIT = ("wait", 0, None)


class SensorSession:
    """`table` maps the 16-bit characteristics that the Sensor offers to their properties.

    Raises SensorError when it offers no measurement. All times are the Gateway's uptime in ms.
    """

    def __init__(
        self,
        log: "Log",
        sensor: int,
        *,
        name: str,
        services: "list[int]",
        table: "dict[int, int]",
        now_ms: int,
    ) -> None:
        self._log = log
        self._sensor = sensor
        self._table = table
        self._rows = (
            (self._identify, self._identified, self._not_identified),
            (self._read_clock, self._clock_read, self._pass),
            (self._subscribe, self._pass, self._not_subscribed),
            (self._report, self._pass, self._report_refused),
            (self._collect, self._pass, self._pass),
            (self._write_clock, self._pass, self._clock_unknown),
            (self._verify_clock, self._clock_read, self._pass),
            (self._read_battery, self._battery_read, self._pass),
            (self._stay, self._pass, self._pass),
            (self._leave, self._pass, self._pass),
        )
        self._row = _IDENTIFY
        self._asked: Step | None = None
        self._tried = False  # the row's single operation has been asked for
        # IDENTIFY
        self._known, self._complete = log.identity(sensor)
        self._found = _label(name, services)
        self._reads = self._first_reads()
        self._missed = False
        # SUBSCRIBE, REPORT, COLLECT
        self._subscriptions = [uuid for uuid in _MEASUREMENTS if uuid in table]
        if not self._subscriptions:
            raise SensorError("no measurement characteristic")
        self._indicated: list[int] = []
        self._quiet_from_ms = now_ms
        self._fresh = True  # a value may have come since the Sensor was last drained
        self._reporting = False
        self._drains = True
        # CLOCK_*
        self._clock = DATE_TIME_CHARACTERISTIC if DATE_TIME_CHARACTERISTIC in table else CURRENT_TIME
        self._sent: tuple[int, int] | None = None  # UTC offset of the time, and the uptime when sent
        log.append_event(SENSOR_CONNECTED, sensor, b"", now_ms)

    # --- What the rim asks and tells ------------------------------------------------------------------------

    def next_step(self, now_ms: int) -> "Step | None":
        """Return the GATT operation to begin now, or None: ask again at `due_ms` or after an event."""
        if self._asked is not None:
            return None
        while True:
            step = self._rows[self._row][0](now_ms)
            if step is _WAIT:
                return None
            if step is not None:
                self._asked = step
                return step
            self._go(self._row + 1)

    def step_done(self, value: "bytes | None", now_ms: int) -> None:
        """The operation has succeeded; `value` is what was read."""
        step = self._asked
        self._asked = None
        if step is not None:
            self._rows[self._row][1](step, value or b"", now_ms)

    def step_failed(self, reason: str, now_ms: int, *, refused: bool = False) -> None:
        """The operation had no answer, or the Sensor `refused` it and always will."""
        step = self._asked
        self._asked = None
        if step is not None:
            self._missed = self._missed or not refused
            self._rows[self._row][2](step, reason.encode(), now_ms)

    def value_received(self, characteristic: int, value: "bytes | memoryview", now_ms: int) -> None:
        """A value has come; a measurement is in the Journal already."""
        if characteristic == RECORD_ACCESS_CONTROL_POINT:
            self._racp_received(value, now_ms)
        elif characteristic in self._indicated:
            self._quiet_from_ms = now_ms
            self._fresh = True

    def closed(self, now_ms: int) -> None:
        """The link has ended, and the session with it."""
        step = self._asked
        self._asked = None
        if step is not None and self._row == _CLOCK_WRITE:
            self._clock_unknown(step, b"", now_ms)
        self._log.append_event(SENSOR_DISCONNECTED, self._sensor, b"", now_ms)

    def due_ms(self, now_ms: int) -> int:
        """When to ask for the next step if nothing happens before."""
        if self._reporting:
            return self._quiet_from_ms + RACP_WAIT_MS
        if self._fresh:
            return self._quiet_from_ms + QUIET_MS
        return now_ms + (_LOOK_AGAIN_MS if self._may_write_clock() else ANCHOR_EVERY_MS)

    @property
    def drained(self) -> bool:
        """The Sensor has gone quiet since its last value."""
        return not self._fresh

    def frame_flags(self, how: int) -> int:
        """Flags of a Frame that comes now; `how`: INDICATED or NOTIFIED. A streamed one was never stored."""
        return how | FROM_STORAGE if self._reporting and how == INDICATED else how

    # --- IDENTIFY -------------------------------------------------------------------------------------------

    def _first_reads(self) -> "list[tuple[int, int]]":
        """A Sensor known in full is only asked who it is: another one may stand at the same address."""
        reads = [row for row in _IDENTITY if self._table.get(row[0], 0) & CAN_READ]
        if not self._complete:
            return reads
        return [row for row in reads if row[1] in (SERIAL, SYSTEM_ID)][:1]

    def _identify(self, now_ms: int) -> "Step | None":
        if self._reads:
            return (READ, self._reads[0][0], None)
        if not self._complete:
            self._known = tuple(self._found)
        self._log.describe(self._sensor, self._known, self._complete or not self._missed, now_ms)
        return None

    def _identified(self, step: "Step", value: bytes, now_ms: int) -> None:
        item = _item(self._reads.pop(0), value)
        if not self._complete:
            self._found.append(item)
        elif item not in self._known:
            self._complete = False
            self._known = ()
            self._reads = self._first_reads()
            self._log.append_event(BOND_CHANGED, self._sensor, b"identity", now_ms)

    def _not_identified(self, step: "Step", reason: bytes, now_ms: int) -> None:
        """What an earlier session has read stays known: a serial that comes and goes would be two Sensors."""
        uuid, tag = self._reads.pop(0)
        if not self._complete:
            prefix = _prefix(uuid, tag)
            self._found += [item for item in self._known if item[0] == tag and item[1].startswith(prefix)]

    # --- SUBSCRIBE ------------------------------------------------------------------------------------------

    def _subscribe(self, now_ms: int) -> "Step | None":
        if not self._subscriptions:
            self._quiet_from_ms = now_ms
            return None
        uuid = self._subscriptions.pop(0)
        if not self._subscriptions and uuid != RECORD_ACCESS_CONTROL_POINT and self._stores():
            self._subscriptions.append(RECORD_ACCESS_CONTROL_POINT)
        if not self._table[uuid] & CAN_INDICATE:
            return (SUBSCRIBE, uuid, NOTIFY)
        self._indicated.append(uuid)
        return (SUBSCRIBE, uuid, INDICATE)

    def _stores(self) -> bool:
        """The Sensor keeps spot-checks and gives them out by RACP (PLXS 1.0.1, features bit 2)."""
        if RECORD_ACCESS_CONTROL_POINT not in self._table:
            return False
        prefix = _prefix(PLX_FEATURES, FEATURE)
        values = [value[2:] for tag, value in self._known if tag == FEATURE and value[:2] == prefix]
        try:
            return any(STORAGE in decode_features(value).supported for value in values)
        except Truncated:
            return False

    def _not_subscribed(self, step: "Step", reason: bytes, now_ms: int) -> None:
        """Without its store a Sensor still serves new values; without its values it serves nothing."""
        self._log.append_event(SENSOR_FAILED, self._sensor, reason[:_MAX_REASON_BYTES], now_ms)
        if step[1] == RECORD_ACCESS_CONTROL_POINT:
            self._indicated.remove(RECORD_ACCESS_CONTROL_POINT)
            self._drains = False
        else:
            self._go(_FAILED)

    def _leave(self, now_ms: int) -> "Step":
        return (DISCONNECT, 0, None)

    # --- REPORT and COLLECT ---------------------------------------------------------------------------------

    def _report(self, now_ms: int) -> "Step | None":
        if not self._tried and RECORD_ACCESS_CONTROL_POINT in self._indicated:
            self._tried = self._reporting = True
            self._quiet_from_ms = now_ms
            return (WRITE, RECORD_ACCESS_CONTROL_POINT, REPORT_ALL)
        if self._reporting and now_ms - self._quiet_from_ms >= RACP_WAIT_MS:
            self._end_report(_NO_ANSWER, now_ms)
        return _WAIT if self._reporting else None

    def _report_refused(self, step: "Step", reason: bytes, now_ms: int) -> None:
        self._end_report(_NO_ANSWER, now_ms)

    def _racp_received(self, value: "bytes | memoryview", now_ms: int) -> None:
        if self._reporting and len(value) >= 4 and value[0] == _RESPONSE and value[2] == REPORT_ALL[0]:
            self._end_report(value[3], now_ms)

    def _end_report(self, code: int, now_ms: int) -> None:
        """`code` is RACP's response; "no records found" is a good answer."""
        self._reporting = False
        self._quiet_from_ms = now_ms
        self._drains = code in (_SUCCESS, _NO_RECORDS)
        self._log.append_event(RACP_ENDED, self._sensor, bytes([code]), now_ms)

    def _collect(self, now_ms: int) -> "Step | None":
        if now_ms - self._quiet_from_ms < QUIET_MS:
            return _WAIT
        self._fresh = False
        if self._drains:
            self._log.append_event(SENSOR_DRAINED, self._sensor, b"", now_ms)
        return None

    # --- CLOCK_* --------------------------------------------------------------------------------------------

    def _read_clock(self, now_ms: int) -> "Step | None":
        return self._once((READ, self._clock, None), CAN_READ)

    def _verify_clock(self, now_ms: int) -> "Step | None":
        return None if self._sent is None else self._once((READ, self._clock, None), CAN_READ)

    def _clock_read(self, step: "Step", value: bytes, now_ms: int) -> None:
        kind = CLOCK_AFTER if self._row == _CLOCK_VERIFY else CLOCK_BEFORE
        self._log.append_clock(self._sensor, kind, NO_OFFSET, self._clock, value, now_ms)

    def _may_write_clock(self) -> bool:
        return self._sent is None and bool(self._table.get(self._clock, 0) & CAN_WRITE)

    def _write_clock(self, now_ms: int) -> "Step | None":
        local = self._log.local_time(now_ms) if self._may_write_clock() else None
        if local is None:
            return None
        local_ms, offset_min = local
        value = encode_clock(self._clock, local_ms)
        self._sent = (offset_min, now_ms)
        # First: a power cut after the write would leave a step of the clock that nobody knows of.
        self._log.append_clock(self._sensor, CLOCK_SET, offset_min, self._clock, value, now_ms)
        return (WRITE, self._clock, value)

    def _clock_unknown(self, step: "Step", reason: bytes, now_ms: int) -> None:
        """Nobody knows whether the Sensor took the time: a new epoch of its clock, without a value."""
        if self._sent is not None:
            offset_min, sent_ms = self._sent
            self._log.append_clock(self._sensor, CLOCK_SET, offset_min, self._clock, b"", sent_ms)

    # --- BATTERY and STAY -----------------------------------------------------------------------------------

    def _read_battery(self, now_ms: int) -> "Step | None":
        return self._once((READ, _BATTERY_LEVEL, None), CAN_READ)

    def _battery_read(self, step: "Step", value: bytes, now_ms: int) -> None:
        if value:
            self._log.append_battery(self._sensor, value[0], now_ms)

    def _stay(self, now_ms: int) -> "Step | None":
        if self._fresh:
            self._collect(now_ms)
        if self._may_write_clock() and self._log.local_time(now_ms) is not None:
            self._go(_CLOCK_WRITE)
            return self._write_clock(now_ms)
        return _WAIT

    # --- Rows -----------------------------------------------------------------------------------------------

    def _go(self, row: int) -> None:
        self._row = row
        self._tried = False

    def _once(self, step: "Step", needs: int) -> "Step | None":
        """`step` the first time, if the Sensor offers it."""
        if self._tried or not self._table.get(step[1], 0) & needs:
            return None
        self._tried = True
        return step

    def _pass(self, step: "Step", value: bytes, now_ms: int) -> None:
        """Nothing depends on it."""


def encode_clock(characteristic: int, local_ms: int) -> bytes:
    """Return Date Time 0x2A08 or Current Time 0x2A2B for a local time in ms since 1970."""
    if characteristic == DATE_TIME_CHARACTERISTIC:
        return _date_time((local_ms + 500) // 1000)
    seconds = local_ms // 1000
    weekday = (seconds // 86400 + 3) % 7 + 1  # Monday is 1; 1970-01-01 was a Thursday
    return _date_time(seconds) + bytes([weekday, local_ms % 1000 * 256 // 1000, _TIME_WRITTEN])


def _date_time(seconds: int) -> bytes:
    """Date Time: u16 year, month, day, hours, minutes, seconds. Days to date: years that begin on 1 March."""
    days = seconds // 86400 + 719468  # since 0000-03-01
    era, day = divmod(days, 146097)
    year = (day - day // 1460 + day // 36524 - day // 146096) // 365
    day -= 365 * year + year // 4 - year // 100
    month = (5 * day + 2) // 153
    day -= (153 * month + 2) // 5
    rest = seconds % 86400
    return struct.pack(
        DATE_TIME,
        era * 400 + year + (1 if month > 9 else 0),
        month - 9 if month > 9 else month + 3,
        day + 1,
        rest // 3600,
        rest // 60 % 60,
        rest % 60,
    )


def _label(name: str, services: "list[int]") -> "list[tuple[int, bytes]]":
    """What is known of a Sensor before anything is read."""
    items = [(NAME, name.encode()[:_MAX_ITEM_BYTES])] if name else []
    return items + [(SERVICE_UUID, struct.pack("<H", uuid)) for uuid in services[:_MAX_SERVICES]]


def _item(row: "tuple[int, int]", value: bytes) -> "tuple[int, bytes]":
    uuid, tag = row
    return (tag, _prefix(uuid, tag) + value[:_MAX_ITEM_BYTES])


def _prefix(uuid: int, tag: int) -> bytes:
    """A FEATURE item names its characteristic."""
    return struct.pack("<H", uuid) if tag == FEATURE else b""
