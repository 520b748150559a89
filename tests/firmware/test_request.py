"""What anybody in radio range may send to the set-up page: bounded, and never an exception."""

import html
import struct
from html.parser import HTMLParser
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware import names, page
from firmware.reach import is_foreign
from firmware.request import fields, parse

HERE = bytes((192, 168, 4, 1))
QUESTION = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + b"\7example\3com\0" + struct.pack(">HH", 1, 1)


def test_a_browser_is_understood() -> None:
    head = b"POST /join?x=1 HTTP/1.1\r\nHost: 192.168.4.1\r\nORIGIN: null\r\nContent-Length: 12"
    request = parse(head)
    assert request == ("POST", "/join", "192.168.4.1", "null", 12)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"GET /",
        b"GET / HTTP/2",
        b"PUT / HTTP/1.1",
        b"POST / HTTP/1.1\r\nContent-Length: -1",
        b"POST / HTTP/1.1\r\nContent-Length: 99999",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked",
        b"GET /\xff HTTP/1.1",
    ],
)
def test_what_makes_no_sense_is_no_request(head: bytes) -> None:
    assert parse(head) is None


@given(st.binary(max_size=1024))
def test_any_bytes_are_a_request_or_none(head: bytes) -> None:
    request = parse(head)
    assert request is None or request.length <= 9999


@given(st.text(), st.text(), st.binary(max_size=200))
def test_a_form_comes_back_as_it_was_typed_whatever_stands_beside_it(
    name: str, password: str, noise: bytes
) -> None:
    body = urlencode({"name": name, "password": password}, errors="replace").encode()
    found = fields(noise.replace(b"name", b"").replace(b"pass", b"").replace(b"%", b"") + b"&" + body)
    assert found["name"] == name.encode(errors="replace")
    assert found["password"] == password.encode(errors="replace")


@given(st.binary(max_size=512))
def test_any_bytes_are_fields_or_nothing(body: bytes) -> None:
    assert all(isinstance(value, bytes) for value in fields(body).values())


def test_every_name_is_here() -> None:
    answer = names.answer(QUESTION, HERE)
    assert answer is not None and answer.endswith(HERE) and answer[:2] == QUESTION[:2]
    assert struct.unpack(">HHHH", answer[4:12]) == (1, 1, 0, 0)


def test_who_asks_for_another_kind_of_address_hears_that_there_is_none() -> None:
    answer = names.answer(QUESTION[:-3] + b"\x1c\0\1", HERE)  # AAAA
    assert answer is not None and struct.unpack(">HHHH", answer[4:12]) == (1, 0, 0, 0)


@given(st.binary(max_size=600))
def test_any_bytes_get_a_short_answer_or_none(question: bytes) -> None:
    answer = names.answer(question, HERE)
    assert answer is None or len(answer) <= len(question) + 16


@given(st.integers(0, len(QUESTION) - 1), st.integers(0, 255))
def test_a_damaged_question_is_no_danger(at: int, byte: int) -> None:
    names.answer(QUESTION[:at] + bytes([byte]) + QUESTION[at + 1 :], HERE)
    assert names.answer(QUESTION[:at], HERE) is None


class Tags(HTMLParser):
    """The tags of a page, and the values of its options."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.options: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "option":
            self.options.append(dict(attrs)["value"] or "")


@given(st.lists(st.text(min_size=1, max_size=32).filter(lambda name: name.isprintable()), max_size=12))
def test_a_neighbour_s_network_name_is_never_html(near: list[str]) -> None:
    tags = Tags()
    tags.feed("".join(page.form("0" * 16, near, near[0] if near else "", "")))
    assert tags.options == ["", *near]
    assert tags.tags.count("option") == len(near) + 1
    assert all(html.unescape(page.escaped(name)) == name for name in near)


ASKED = b"iot.hospital.example"


@pytest.mark.parametrize(
    ("answer", "foreign"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://welcome.example/login?u=iot.hospital.example", True),
        (b"HTTP/1.1 301 Moved\r\nlocation: https://iot.hospital.example/homeward", False),
        (b"HTTP/1.1 302 Found\r\nLocation: http://iot.hospital.example:8080/", False),
        (b"HTTP/1.1 302 Found\r\nLocation: /login", False),
        (b"HTTP/1.0 200 OK\r\n\r\n<html>", True),
        (b"HTTP/1.1 511 Network Authentication Required", True),
        (b"HTTP/1.1 404 Not Found", False),
        (b"HTTP/1.1 30", False),
        (b"SSH-2.0", False),
        (b"", False),
    ],
)
def test_somebody_else_s_answer_is_told_from_the_service_s_own(answer: bytes, foreign: bool) -> None:
    assert is_foreign(answer, ASKED) is foreign


@given(st.binary(max_size=512))
def test_any_answer_is_judged(answer: bytes) -> None:
    assert is_foreign(b"HTTP/1.1 302 Found\r\n" + answer, ASKED) in (True, False)
