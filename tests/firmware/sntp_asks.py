"""The Kit asks a real server on this machine: `sntp_asks PORT SILENT_PORT`. Prints what came of it."""

import asyncio
import json
import sys

from rim_kit import Kit

from firmware.sntp import Sntp
from gateway.record import ANCHOR, EVENT, decode_all, decode_body


def records(journal):
    """Type and body of every Record."""
    buffer = bytearray(4096)
    _, _, end = journal.read_batch(buffer, 0, len(buffer), 0)
    return [(r.type, decode_body(r.type, r.version, r.body)) for r in decode_all(bytes(buffer[:end]))]


async def main(port, silent_port):
    kit = Kit()
    clock = kit.clock
    online = []
    asking = Sntp(kit.gateway, clock, "127.0.0.1", lambda: online.append(1) or True, port)
    await asking.ask()
    before_ms = clock.now_ms()
    await Sntp(kit.gateway, clock, "127.0.0.1", lambda: True, silent_port).ask()
    waited_ms = clock.now_ms() - before_ms
    running = asyncio.create_task(Sntp(kit.gateway, clock, "", lambda: online.append(2) or True).run())
    await asyncio.sleep_ms(20)
    running.cancel()
    kept = records(kit.journal)
    anchors = [body for kind, body in kept if kind == ANCHOR]
    print(
        json.dumps(
            {
                "anchors": [[a.utc_ms, a.uncertainty_ms, a.source, a.offset_min] for a in anchors],
                "events": len([1 for kind, _ in kept if kind == EVENT]),
                "waited_ms": waited_ms,
                "asks_without_a_name": 2 in online,
                "wants": kit.gateway.wants_sntp(clock.now_ms()),
            }
        )
    )


asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
