"""umqtt.simple over the Wire: the pinned version and calls of later ones write the same, and never wait."""

import binascii
import socket
import struct
import sys
from typing import Any

import pytest

from firmware.wire import Absent, Wire
from gateway.limits import MAX_BATCH_BYTES
from gateway.message import up_topic
from hw.virtual import programs

TOPIC = up_topic("HW-ABCDEFGHIJKLM").encode()  # the longest Kit id


@pytest.fixture
def umqtt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module as PyPI has it; CPython lacks its names of MicroPython's modules."""
    for name, module in (("usocket", socket), ("ustruct", struct), ("ubinascii", binascii)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(programs.umqtt()))
    for name in ("umqtt", "umqtt.simple"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import umqtt.simple as module

    return module


def later(base: type) -> type:
    """The signatures of 1.5 (`ssl` is a context, None for none) and 1.8 (`timeout`, told to the socket)."""

    class Later(base):  # type: ignore[misc, valid-type]
        def __init__(
            self,
            client_id: bytes,
            server: str,
            port: int = 0,
            user: bytes | None = None,
            password: bytes | None = None,
            keepalive: int = 0,
            ssl: object = None,
        ) -> None:
            assert ssl is None
            super().__init__(client_id, server, port, user, password, keepalive)

        def connect(self, clean_session: bool = True, timeout: float | None = None) -> Any:
            return super().connect(clean_session)

    return Later


def written(wire: Wire) -> bytes:
    return bytes(wire._out_view[wire._out_start : wire._out_end])


@pytest.mark.parametrize("make", [lambda base: base, later], ids=["1.3.4", "later"])
def test_connect_and_subscribe_are_written_whole_and_do_not_wait(umqtt: Any, make: Any) -> None:
    wire = umqtt.socket = Wire()
    client = make(umqtt.MQTTClient)(b"HW-0001", "broker", port=8883, keepalive=60)
    client.set_last_will(b"homeward/1/HW-0001/status", b"{}", True)
    client.set_callback(lambda topic, message: None)
    with pytest.raises(Absent):
        client.connect()
    whole = written(wire)
    assert whole[0] == 0x10 and len(whole) == 2 + whole[1]
    assert whole.endswith(b"HW-0001\x00\x19homeward/1/HW-0001/status\x00\x02{}")
    wire._out_end = 0
    with pytest.raises(Absent):
        client.subscribe(b"homeward/1/HW-0001/down/ack")
    assert written(wire)[0] == 0x82 and len(written(wire)) == 2 + written(wire)[1]


def test_the_longest_batch_is_one_piece(umqtt: Any) -> None:
    wire = umqtt.socket = Wire()
    client = umqtt.MQTTClient(b"HW-0001", "broker")
    client.sock = wire
    wire.room[:] = batch = bytes(n & 0xFF for n in range(MAX_BATCH_BYTES))
    client.publish(TOPIC, wire.room)
    remaining = 2 + len(TOPIC) + MAX_BATCH_BYTES
    header = bytes([0x30, remaining & 0x7F | 0x80, remaining >> 7, 0, len(TOPIC)])
    assert written(wire) == header + TOPIC + batch
    with pytest.raises(OSError):
        client.publish(TOPIC, bytes(MAX_BATCH_BYTES))


def test_a_message_is_read_from_the_packet_that_is_here(umqtt: Any) -> None:
    heard = []
    wire = umqtt.socket = Wire()
    client = umqtt.MQTTClient(b"HW-0001", "broker")
    client.sock = wire
    client.set_callback(lambda topic, message: heard.append((topic, message)))
    packet = b"\x30\x07\x00\x02upack"
    wire._in[: len(packet)] = packet
    wire._end = len(packet)
    client.wait_msg()
    assert heard == [(b"up", b"ack")]
    with pytest.raises(Absent):
        client.wait_msg()
