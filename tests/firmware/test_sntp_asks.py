"""The firmware asks a real UDP server: its answer becomes an ANCHOR, its silence costs two seconds."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import on_micropython
import pytest

from gateway.limits import SNTP_BOUND_MS
from gateway.record import FROM_SNTP, NO_OFFSET
from gateway.sntp import MAX_ROUND_TRIP_MS


@pytest.fixture
def server() -> Iterator[int]:
    """The port of an SNTP server that has this machine's time."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        wire.bind(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                packet, address = wire.recvfrom(100)
                if not packet:
                    return
                at = time.time() + 2_208_988_800
                answer = b"\x24\x02" + bytes(22) + packet[40:48] + bytes(8)
                wire.sendto(answer + struct.pack(">II", int(at), int(at % 1 * (1 << 32))), address)

        thread = threading.Thread(target=serve)
        thread.start()
        port: int = wire.getsockname()[1]
        yield port
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.sendto(b"", ("127.0.0.1", port))
        thread.join()


@pytest.mark.parametrize("bits", [64, 32])
def test_an_answer_becomes_an_anchor_and_silence_costs_no_more_than_its_wait(
    bits: int, server: int, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        ports = str(server), str(silent.getsockname()[1])
        before_ms = time.time() * 1000
        result = on_micropython.run(bits, "sntp_asks", tmp_path, *ports)
        after_ms = time.time() * 1000
    ((utc_ms, uncertainty_ms, source, offset_min),) = result["anchors"]
    assert before_ms - SNTP_BOUND_MS <= utc_ms <= after_ms + SNTP_BOUND_MS
    assert SNTP_BOUND_MS <= uncertainty_ms <= SNTP_BOUND_MS + MAX_ROUND_TRIP_MS
    assert (source, offset_min) == (FROM_SNTP, NO_OFFSET)
    assert result["events"] == 0
    assert MAX_ROUND_TRIP_MS <= result["waited_ms"] < 10 * MAX_ROUND_TRIP_MS
    assert not result["asks_without_a_name"]
    assert not result["wants"], "it has just been asked"
