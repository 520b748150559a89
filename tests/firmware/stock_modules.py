"""What a stock ESP32 image has: ESP32_GENERIC 1.25.0 (15 April 2025), built in or frozen; 1.26 has these too.

Frozen ones were read out of the official image. Sizes and versions: see the MicroPython download page.
"""

VERSION = (1, 25, 0)

# fmt: off
BUILT_IN = {
    "_asyncio", "_espnow", "_onewire", "_thread", "_webrepl", "array", "binascii", "bluetooth", "btree",
    "builtins", "cmath", "collections", "cryptolib", "deflate", "errno", "esp", "esp32", "framebuf", "gc",
    "hashlib", "heapq", "io", "json", "machine", "math", "micropython", "network", "os", "platform", "random",
    "re", "select", "socket", "struct", "sys", "time", "tls", "uctypes", "vfs", "websocket",
}
FROZEN = {
    "_boot", "aioespnow", "apa106", "asyncio", "dht", "ds18x20", "espnow", "flashbdev", "inisetup", "mip",
    "neopixel", "ntptime", "onewire", "requests", "ssl", "umqtt.robust", "umqtt.simple", "upysh", "urequests",
    "webrepl", "webrepl_setup",
}
# fmt: on
STOCK = BUILT_IN | FROZEN
