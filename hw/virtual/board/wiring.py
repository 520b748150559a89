"""
Where things lie in `wires`, the page of memory between the board and its host. Read by both interpreters.

Numbers of more than one byte are little-endian.
"""

WIRES_BYTES = 4096
BELL = 0  # 1: an event waits
KIND = 1  # of the event: an _IRQ_ number of bluetooth, or PIN_EDGE
ITEMS = 2  # how many values the event has
REPLY = 3  # what the handler returned: 0 nothing or False, 1 True, 2 the bytes at REPLY_VALUE
REPLY_LENGTH = 4  # u16
WIFI_STATUS = 6  # u16
WIFI_RSSI = 8  # dB below 0
HANDLER = 9  # 1: the radio's handler is registered
CUT_EVENT = 10  # the plug is pulled at an event of this kind ...
CUT_WHERE = 11  # ... BEFORE or AFTER its handler
COUNTERS = 16  # u32 each, in the order of COUNTER_NAMES
PINS = 64  # a byte for each pin: bit 0 its level, bit 1 somebody outside drives it
EVENT = 128  # the values of the event
REPLY_VALUE = 2048

COUNTER_NAMES = (
    "programs",  # operations on flash since power-on
    "erases",
    "cut_at",  # the plug is pulled in this one, counted down; 0: never
    "cut_kind",  # PROGRAM | ERASE
    "cut_bytes",  # that many bytes of it are still done
    "fed",  # how often the watchdog was fed
)
PROGRAM = 1
ERASE = 2
BEFORE = 1
AFTER = 2
PIN_EDGE = 200

# Exit codes of a boot that ends itself.
RESET = 77
SOFT_RESET = 78
