"""Every bound of the Gateway, each with the reason for its figure."""

from gateway.port import const

# --- Record and Journal -------------------------------------------------------------------------------------
MAX_BODY_BYTES = const(600)
"""An ATT value has at most 512 bytes; SENSOR records with every feature value stay below 600."""
BLOCK_BYTES = const(4096)
"""The erase unit of the NOR flash on every ESP32 board."""
RESERVE_BLOCKS = const(2)
"""Blocks kept erased ahead of the head, so that the indication handler need not erase (45 ms typical, 400 ms
at worst)."""
ACKED_EVERY = const(32)
"""Records acked before the position is appended again: at most that many are sent twice after a power cut,
for 22 bytes of flash per 32 Records."""

# --- Batch and Uplink ---------------------------------------------------------------------------------------
MAX_BATCH_BYTES = const(4096)
"""At most one block of Records, envelope included: one buffer serves flash and wire, and brokers accept it by
default."""
MAX_BATCH_RECORDS = const(64)
"""Bounds the work of one transaction at the service; 64 Records of 60 bytes fill a block."""
ACK_WAIT_MS = const(10_000)
"""An Ack that has not come after 10 s will hardly come: a group commit takes milliseconds, a mobile link
seconds."""
ACK_WAIT_MAX_MS = const(120_000)
"""Resending slows down to this while the service is away, so that a restarted service is not met by a
storm."""
ANCHOR_EVERY_MS = const(3_600_000)
"""An ESP32 crystal drifts 10-40 ppm: 144 ms in an hour at worst, well inside the bound of one anchor."""
STUCK_WAITS = const(90)
"""A link over which no Ack has come for 90 first waits (15 minutes) is made anew. Rarely, since the usual
reason is a service that is down: ten thousand Kits then shake hands with the broker eleven times a second."""
PEEK_RECORDS = const(8)
"""The newest clinical Frames that go before a backlog: what the clinician waits for fits one screen. A peek
reaches back to the begin of the block in which it has them, if its Batch holds so much."""
TAIL_BLOCKS = const(4)
"""Blocks that are read for a peek at most: where streamed values fill more, nothing new lies behind them.
0.2 s for each on an ESP32."""

SPEAK_AFTER_MS = const(300_000)
"""A boot that has nothing else to tell says what is wrong with it only now: a loop of boots, the watchdog's
too, would fill the Journal with that."""

# --- Time ---------------------------------------------------------------------------------------------------
DRIFT_PPM = const(100)
"""Bound of the Gateway's crystal over temperature and ageing: the part is sold as +-10 ppm; cheap boards were
seen at 40."""
SENSOR_DRIFT_PPM = const(500)
"""Bound of a cuff's clock: 43 s a day. 2 minutes within hours has been seen only when the clock was
stepped."""
SNTP_BOUND_MS = const(5_000)
"""Bound of an SNTP server that has not been caught lying: one that smears a leap second is off by 0.5 s, a
router that asks upstream once a day by some seconds."""
MAX_ROUND_TRIP_MS = const(60_000)
"""An Ack that took longer gives no time: its uncertainty would be wider than receipt itself."""

# --- Streams ------------------------------------------------------------------------------------------------
STREAM_WINDOW_MS = const(60_000)
"""Of continuous oximetry one value in so long is kept, besides each that changes class: a value a minute
takes 63 kB a day, one a second 3.8 MB, and the Journal would hold half a day."""
STREAM_WINDOW_MAX_MS = const(600_000)
"""A stream that is seen once in ten minutes is still seen to run."""

# --- Sensor sessions ----------------------------------------------------------------------------------------
QUIET_MS = const(2_000)
"""No further indication for this long: the Sensor has sent what it holds. PLXS allows 5 s inside a RACP
procedure, where the response code, not the quiet, says that it has ended."""
RACP_WAIT_MS = const(5_000)
"""PLXS 1.0.1: a gap of more than 5 s between indications means that the procedure has failed."""
STEP_WAIT_MS = const(10_000)
"""One GATT operation that has no answer by then never gets one; the ATT time-out of 30 s ends the link
anyway."""
MAX_SENSORS = const(8)
"""Sensors bonded to a Kit; NimBLE keeps a few bonds, a Kit ships with at most four."""
