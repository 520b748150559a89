"""Status: what a Kit says of itself on its retained topic. No patient detail, no address, no value."""

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from gateway.journal import Journal

STATUS_VERSION = 1
STATUS_EVERY_MS = 300_000
"""Counters are for people and for alarms: five minutes are soon enough, and 300 bytes each cost nothing."""


def encode_status(
    kit: str,
    release: str,
    journal: "Journal",
    *,
    uptime_ms: int,
    host_confirmed: bool,
    counters: "dict[str, int]",
    sensors: "list[dict[str, int | None]]",
    rim: "dict[str, object] | None" = None,
) -> bytes:
    """Return the JSON of an online Kit. `sensors`: {"sensor": reference, "seen_ms": uptime or None}.

    `rim`: what the rim says of itself, as it is: "networks" (one word for each), "radio" (whether it works).
    """
    status = dict(rim or {})
    status.update(
        {
            "version": STATUS_VERSION,
            "kit": kit,
            "online": True,
            "release": release,
            "host_confirmed": host_confirmed,
            "journal": journal.journal_id.hex(),
            "boot": journal.boot,
            "uptime_ms": uptime_ms,
            "pending": journal.pending,
            "acked": journal.acked,
            "free": journal.free,
            "counters": counters,
            "sensors": sensors,
        }
    )
    return _encode(status)


def encode_offline(kit: str, release: str) -> bytes:
    """Return the JSON that the broker publishes as last will, and the Kit itself at an orderly end."""
    return _encode({"version": STATUS_VERSION, "kit": kit, "online": False, "release": release})


def _encode(status: "dict[str, object]") -> bytes:
    return json.dumps(status).encode()
