# mypy: ignore-errors
"""
Module ssl, which the ESP32 has and the unix port lacks: contexts over the port's `tls`.

The port checks a certificate against the host's clock; here its dates are checked against the chip's too.
"""

import time

import tls
from tls import *  # noqa: F403

_VERIFY_FAILED = -0x2700  # MBEDTLS_ERR_X509_CERT_VERIFY_FAILED


class SSLContext:
    """ssl.SSLContext: files or bytes for keys, and the attributes that the documentation names."""

    def __init__(self, protocol: int) -> None:
        self._context = tls.SSLContext(protocol)

    @property
    def verify_mode(self) -> int:
        return self._context.verify_mode

    @verify_mode.setter
    def verify_mode(self, mode: int) -> None:
        self._context.verify_mode = mode

    def get_ciphers(self) -> list:
        return self._context.get_ciphers()

    def set_ciphers(self, ciphers: list) -> None:
        self._context.set_ciphers(ciphers)

    def load_cert_chain(self, certfile: object, keyfile: object) -> None:
        self._context.load_cert_chain(_bytes_of(certfile), _bytes_of(keyfile))

    def load_verify_locations(self, cafile: str = None, cadata: bytes = None) -> None:
        self._context.load_verify_locations(_bytes_of(cafile) if cafile else cadata)

    def wrap_socket(
        self,
        sock: object,
        *,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        server_hostname: str = None,
        client_id: bytes = None,
    ) -> object:
        if self._context.verify_mode == tls.CERT_REQUIRED:
            self._context.verify_callback = _check_dates
        return self._context.wrap_socket(
            sock,
            server_side=server_side,
            do_handshake_on_connect=do_handshake_on_connect,
            server_hostname=server_hostname,
        )


def wrap_socket(
    sock: object,
    server_side: bool = False,
    key: object = None,
    cert: object = None,
    cert_reqs: int = tls.CERT_NONE,
    cadata: bytes = None,
    server_hostname: str = None,
    do_handshake: bool = True,
) -> object:
    """The old call: no check at all unless it is asked for."""
    context = SSLContext(tls.PROTOCOL_TLS_SERVER if server_side else tls.PROTOCOL_TLS_CLIENT)
    context.verify_mode = cert_reqs
    if cert or key:
        context.load_cert_chain(cert, key)
    if cadata:
        context.load_verify_locations(cadata=cadata)
    return context.wrap_socket(
        sock, server_side=server_side, server_hostname=server_hostname, do_handshake_on_connect=do_handshake
    )


def _bytes_of(source: object) -> bytes:
    """A path's bytes, or the bytes themselves."""
    if not isinstance(source, str):
        return source
    with open(source, "rb") as file:
        return file.read()


def _check_dates(certificate: bytes, _depth: int) -> int:
    """What mbedTLS asks for each certificate of a chain: 0, or the error that ends the handshake."""
    begins, ends = _validity(bytes(certificate))
    return 0 if begins <= time.time() <= ends else _VERIFY_FAILED


def _validity(certificate: bytes) -> list:
    """[not before, not after] in seconds since 2000: the field after the issuer (RFC 5280 section 4.1)."""
    start, _ = _inside(certificate, 0)
    at, _ = _inside(certificate, start)
    if certificate[at] == 0xA0:  # version
        at = _after(certificate, at)
    for _ in range(3):  # serial number, signature algorithm, issuer
        at = _after(certificate, at)
    first, _ = _inside(certificate, at)
    return [_date(certificate, first), _date(certificate, _after(certificate, first))]


def _inside(der: bytes, at: int) -> tuple:
    """(where the content of the element begins, where it ends)."""
    length = der[at + 1]
    at += 2
    if length & 0x80:
        width = length & 0x7F
        length = int.from_bytes(der[at : at + width], "big")
        at += width
    return at, at + length


def _after(der: bytes, at: int) -> int:
    return _inside(der, at)[1]


def _date(der: bytes, at: int) -> int:
    start, end = _inside(der, at)
    text = der[start:end].decode()
    if der[at] == 0x17:  # UTCTime: two digits of the year
        text = ("19" if text[:2] >= "50" else "20") + text
    parts = [int(text[:4])] + [int(text[i : i + 2]) for i in range(4, 14, 2)]
    return time.mktime(tuple(parts) + (0, 0))
