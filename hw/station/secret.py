"""Secrets: what of a Kit may stand in its NVS and nowhere else, and where bytes hold one in whatever form."""

from base64 import b64encode
from collections.abc import Iterable, Mapping

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

MIN_BYTES = 8
"""WPA2 takes no shorter password; shorter bytes would be found anywhere."""


def named(key: bytes, passwords: Iterable[str], portal_key: str = "") -> dict[str, bytes]:
    """The secrets of a Kit by a name that says nothing: its key (DER), that key's bare number, passwords."""
    found = {"private key": key}
    private = serialization.load_der_private_key(key, None)
    if isinstance(private, ec.EllipticCurvePrivateKey):
        length = (private.key_size + 7) // 8
        found["private key's number"] = private.private_numbers().private_value.to_bytes(length, "big")
    for position, password in enumerate(passwords, 1):
        if len(password.encode()) >= MIN_BYTES:
            found[f"password of network {position}"] = password.encode()
    if portal_key:
        found["portal key"] = portal_key.encode()
    return found


def forms(secret: bytes) -> set[bytes]:
    """The bytes that give a secret away: itself, hexadecimal, base64 at each of three alignments."""
    found = {secret, secret.hex().encode(), secret.hex().upper().encode()}
    for before in range(3):
        encoded = b64encode(bytes(before) + secret)
        inside = encoded[(before * 8 + 5) // 6 : (before + len(secret)) * 8 // 6]
        found |= {inside, inside.replace(b"+", b"-").replace(b"/", b"_")}
    return found


def places(content: bytes, secrets: Mapping[str, bytes]) -> list[tuple[str, int]]:
    """(name, offset) of each place where a secret stands in any of its forms, in order."""
    found = set()
    for name, secret in secrets.items():
        for form in forms(secret):
            at = content.find(form)
            while at >= 0:
                found.add((name, at))
                at = content.find(form, at + 1)
    return sorted(found, key=lambda place: place[1])
