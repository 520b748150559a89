"""The errors of the Gateway's core, on one screen.

HomewardError
+-- FormatError          bytes from outside are not what they claim: counted, refused, never retried
|   +-- Truncated        they end too early
|   +-- Corrupt          their CRC, magic or length does not agree
|   +-- Unknown          a version or type from the future
+-- JournalError         the flash is not a Journal, or can't be written
+-- SensorError          a Sensor's GATT table can't serve its session
"""


class HomewardError(Exception):
    """Base of all errors that the Gateway's core raises on purpose."""


class FormatError(HomewardError):
    """Bytes from outside are not what they claim to be."""


class Truncated(FormatError):
    """The bytes end before the value does."""


class Corrupt(FormatError):
    """CRC, magic or length does not agree with the bytes."""


class Unknown(FormatError):
    """A version or type that this release does not know; carried, never dropped."""


class JournalError(HomewardError):
    """The flash does not hold a Journal, or can't be written."""


class SensorError(HomewardError):
    """A Sensor's GATT table can't serve its session."""
