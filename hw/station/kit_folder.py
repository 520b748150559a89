"""A Kit's folder on the bench, `<bench>/kits/<KIT>/`: all that a Kit is told when it is made.

    kit.json   0600  what people may read, and the passwords of the networks
    ca.pem     0600  project CA
    kit.pem    0600  certificate of this Kit
    kit.key    0600  its private key

The folder is 0700. The one rule: a folder that loads can be flashed. Whatever is wrong in it is said here, in
a sentence that names the file and the key, and never what a secret is.
"""

import argparse
import json
import os
import ssl
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.limits import STREAM_WINDOW_MAX_MS
from hw.station import StationError, secret
from sync_service.arrival import KIT

CARD, CA, CERTIFICATE, KEY = "kit.json", "ca.pem", "kit.pem", "kit.key"
KITS = "kits"
BENCH_FILE = "bench.toml"
NEWEST_FORMAT = 1
MAX_NETWORKS = 8
"""The Kit's own router, the bench, the home: more than that is a mistake."""
MAX_NAME_BYTES = 32  # of a network (IEEE 802.11)
PASSWORD_BYTES = range(8, 64)  # of WPA2; an open network has none
STREAM_S = range(1, STREAM_WINDOW_MAX_MS // 1000 + 1)
_MODE = 0o600
_FOLDER_MODE = 0o700


class KitFolderError(StationError):
    """The folder can't be used; one sentence that names the file."""


@dataclass(frozen=True, kw_only=True)
class KitFolder:
    """What a Kit is told. Certificates and key are DER (key: SEC 1, as mbedTLS reads it), times UTC."""

    kit: str  # as on the label
    board: str  # a name in hw/boards/
    host: str  # of the broker, as in its certificate
    port: int
    networks: tuple[tuple[str, str], ...] = field(repr=False)  # (name, password; "" when open), best first
    ca: bytes = field(repr=False)
    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)
    made_at: int  # seconds since 1970: the Kit's clock never shows less
    portal_key: str = field(default="", repr=False)  # WPA2 key of the set-up portal, as on the label
    support: str = ""  # telephone number on the label
    sensors: tuple[dict[str, Any], ...] = ()  # as firmware/bonds.py keeps them
    pairing_s: int = 0  # unknown Sensors may bond for so long after the first boot
    sntp: str = ""  # time server; "" asks none
    stream_s: int | None = None  # of streamed values, keep one in so many seconds

    @classmethod
    def load(cls, path: Path) -> "KitFolder":
        """Return the checked content of a folder. Raises KitFolderError."""
        if not path.is_dir():
            raise KitFolderError(f"there is no Kit folder {path}; homeward-station provision makes one")
        card = _card(path / CARD)
        folder = cls(
            networks=_networks(card.pop("networks")),
            sensors=tuple(card.pop("sensors", ())),
            ca=_certificate(path / CA),
            certificate=_certificate(path / CERTIFICATE),
            key=_key(path / KEY),
            **card,
        )
        folder.check()
        return folder

    def save(self, path: Path) -> None:
        """Write the folder, for the owner alone; each file appears whole. Raises KitFolderError."""
        self.check()
        try:
            path.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            path.chmod(_FOLDER_MODE)
            _write(path / CA, ssl.DER_cert_to_PEM_cert(self.ca).encode())
            _write(path / CERTIFICATE, ssl.DER_cert_to_PEM_cert(self.certificate).encode())
            _write(path / KEY, _pem_key(self.key))
            _write(path / CARD, _card_text(self))
        except OSError as problem:
            raise KitFolderError(f"{problem.filename or path} can't be written: {problem.strerror}") from None

    def check(self) -> None:
        """Raise KitFolderError for what no Kit could work with."""
        for name, kind in _KINDS.items():
            if not isinstance(getattr(self, name), kind) or isinstance(getattr(self, name), bool):
                raise KitFolderError(f"{CARD}: {name} is not {_WORDS[kind]}")
        if not KIT.fullmatch(self.kit):
            raise KitFolderError(f"{CARD}: a Kit's name looks like HW-0001, not {self.kit!r}")
        if not self.host or not self.board:
            raise KitFolderError(f"{CARD}: {'board' if self.host else 'host'} is empty")
        if not 0 < self.port < 65536:
            raise KitFolderError(f"{CARD}: port must be between 1 and 65535, not {self.port}")
        if self.pairing_s < 0:
            raise KitFolderError(f"{CARD}: pairing_s must not be negative")
        if self.stream_s is not None and (type(self.stream_s) is not int or self.stream_s not in STREAM_S):
            raise KitFolderError(f"{CARD}: stream_s must be {STREAM_S[0]} to {STREAM_S[-1]}")
        _check_networks(self.networks)
        if self.portal_key and len(self.portal_key.encode()) not in PASSWORD_BYTES:
            raise KitFolderError(f"{CARD}: portal_key must have 8 to 63 characters, as WPA2 asks")
        if not all(isinstance(sensor, dict) for sensor in self.sensors):
            raise KitFolderError(f"{CARD}: sensors is not a list of objects")
        _check_certificates(self)

    def secrets(self) -> dict[str, bytes]:
        """What may stand in NVS and nowhere else, by a name that says nothing."""
        return secret.named(self.key, [password for _, password in self.networks], self.portal_key)


def add_bench(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the bench keeps its Kits."""
    parser.add_argument(
        "--bench",
        metavar="PATH",
        type=Path,
        default=Path(BENCH_FILE),
        help=f"{BENCH_FILE}, or the bench's folder",
    )


def bench_folder(bench: Path) -> Path:
    """Where a bench keeps what it has: a folder, or what its file says. Raises KitFolderError."""
    if not bench.is_file():
        return bench.parent if bench.suffix == ".toml" else bench
    try:
        return bench.parent / str(tomllib.loads(bench.read_text()).get("folder", "."))
    except (OSError, ValueError) as problem:
        raise KitFolderError(f"{bench} can't be read: {problem}") from None


def locate(kit: str, bench: Path) -> Path:
    """The folder of a Kit that is given as a folder or by its name. Raises KitFolderError."""
    if KIT.fullmatch(kit) and not Path(kit, CARD).is_file():
        return bench_folder(bench) / KITS / kit
    return Path(kit)


_KINDS: dict[str, type] = {
    "kit": str,
    "board": str,
    "host": str,
    "port": int,
    "portal_key": str,
    "support": str,
    "pairing_s": int,
    "sntp": str,
    "made_at": int,
}
_WORDS = {str: "a text", int: "a whole number"}
_NEEDED = ("kit", "board", "host", "port", "networks", "made_at")
_FILES = ("ca", "certificate", "key")  # have files of their own


def _card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_bytes())
    except OSError as problem:
        raise KitFolderError(f"{path} can't be read: {problem.strerror}") from None
    except ValueError as problem:
        raise KitFolderError(f"{path} is no JSON: {problem}") from None
    if not isinstance(card, dict):
        raise KitFolderError(f"{path} does not hold an object")
    made_by = card.pop("format", None)
    if made_by != NEWEST_FORMAT:
        raise KitFolderError(f"{path}: format is {made_by!r}; this Station reads {NEWEST_FORMAT}")
    known = {one.name for one in fields(KitFolder) if one.name not in _FILES}
    for unknown in card.keys() - known:
        raise KitFolderError(f"{path}: {unknown} is not a key of this file")
    for missing in (one.name for one in fields(KitFolder) if one.name in known - card.keys()):
        if missing in _NEEDED:
            raise KitFolderError(f"{path}: {missing} is missing")
    if not isinstance(card.get("sensors", []), list):
        raise KitFolderError(f"{path}: sensors is not a list of objects")
    return card


def _card_text(folder: KitFolder) -> bytes:
    card: dict[str, Any] = {"format": NEWEST_FORMAT}
    card |= {one.name: getattr(folder, one.name) for one in fields(folder) if one.name not in _FILES}
    return json.dumps(card, indent=1, ensure_ascii=False).encode() + b"\n"


def _networks(written: Any) -> tuple[tuple[str, str], ...]:
    try:
        return tuple((name, password) for name, password in written)
    except (TypeError, ValueError):
        raise KitFolderError(f"{CARD}: networks is not a list of [name, password]") from None


def _check_networks(networks: tuple[tuple[str, str], ...]) -> None:
    if not 0 < len(networks) <= MAX_NETWORKS:
        raise KitFolderError(f"{CARD}: a Kit knows 1 to {MAX_NETWORKS} networks, not {len(networks)}")
    for name, password in networks:
        if not isinstance(name, str) or not isinstance(password, str):
            raise KitFolderError(f"{CARD}: networks is not a list of [name, password]")
        if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
            raise KitFolderError(f"{CARD}: the network {name!r} must have 1 to {MAX_NAME_BYTES} bytes")
        if password and len(password.encode()) not in PASSWORD_BYTES:
            raise KitFolderError(
                f"{CARD}: the password of {name!r} must have 8 to 63 characters, or none when it is open"
            )


def _check_certificates(folder: KitFolder) -> None:
    """The mistakes that would only show at the door: another Kit's certificate, another project's CA."""
    try:
        ca = x509.load_der_x509_certificate(folder.ca)
        certificate = x509.load_der_x509_certificate(folder.certificate)
        key = serialization.load_der_private_key(folder.key, None)
        certificate.verify_directly_issued_by(ca)
    except InvalidSignature:
        raise KitFolderError(f"{CERTIFICATE} is not signed by {CA}") from None
    except (ValueError, TypeError) as problem:
        raise KitFolderError(f"{CA}, {CERTIFICATE} or {KEY} is unusable: {problem}") from None
    names = [str(one.value) for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [folder.kit]:
        raise KitFolderError(f"{CERTIFICATE} is that of {' '.join(names)}, not of {folder.kit}")
    if (
        not ca.not_valid_before_utc.timestamp()
        <= folder.made_at
        <= certificate.not_valid_after_utc.timestamp()
    ):
        # A Kit begins with this time, and would believe no broker.
        raise KitFolderError(
            f"{CARD}: made_at lies outside of the time in which {CA} and {CERTIFICATE} are valid"
        )
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        raise KitFolderError(f"{KEY} does not belong to {CERTIFICATE}")


def _certificate(path: Path) -> bytes:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(serialization.Encoding.DER)
    except OSError as problem:
        raise KitFolderError(f"{path} can't be read: {problem.strerror}") from None
    except ValueError:
        raise KitFolderError(f"{path} is no certificate in PEM form") from None


def _key(path: Path) -> bytes:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as problem:
        raise KitFolderError(f"{path} can't be read: {problem.strerror}") from None
    except (ValueError, TypeError):
        raise KitFolderError(f"{path} is no plain private key in PEM form") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KitFolderError(f"{path} is no key of an elliptic curve")
    return _encoded(key, serialization.Encoding.DER)


def _pem_key(der: bytes) -> bytes:
    key = serialization.load_der_private_key(der, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return _encoded(key, serialization.Encoding.PEM)


def _encoded(key: ec.EllipticCurvePrivateKey, encoding: serialization.Encoding) -> bytes:
    form, plain = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    return key.private_bytes(encoding, form, plain)


def _write(path: Path, content: bytes) -> None:
    """For the owner alone, in one step: nobody reads half a file, nor a key before its mode is set."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
