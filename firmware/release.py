"""What this firmware is. The release build writes the time."""

from gateway.port import const

RELEASE = "0.1.0"
BUILT_UTC_S = const(1_760_000_000)
"""When it was built, in seconds since 1970: it can't be earlier than that."""
