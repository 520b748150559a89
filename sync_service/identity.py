"""Identity: the project CA, certificates, and a Mosquitto that lets each Kit be only itself (P8).

A name in a certificate is everything: Mosquitto makes it the user name and the client id, and the ACL grants
topics by it. Every certificate starts at the CA's birth, so that a Kit whose clock is late still believes the
broker. Keys are P-256, mode 0600, and are made here and nowhere else.

A revoked Kit is refused by ingest from its next Batch on. At the broker it is refused at its next connection
after a SIGHUP: its certificate stands in the CRL. Mosquitto refuses *everybody* once a CRL is past its
nextUpdate, so ours lasts as long as the CA: it is a file on the broker's own disk, whose age says nothing.
"""

import getpass
import ipaddress
import os
import re
import socket
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sync_service.arrival import KIT
from sync_service.config import FILE_NAME, hub_url, zone_of

SERVICE = "service"
CA_DAYS = 20 * 365
"""Longer than any Kit is in use: a new CA means that every Kit has to come back to the bench."""
BIRTH_SLACK = timedelta(days=1)
"""Clocks of the bench and of this machine may differ; a day is more than they do."""
MAX_PACKET_BYTES = 8192
"""A Batch has 4 KiB at most; the broker need not take more from anybody."""

_HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(\.(?!-)[A-Za-z0-9-]{1,63})*")

_ACL = """\
# Written by homeward-sync: who may do what. No other topic, no $SYS.
user service
topic read homeward/1/+/up
topic read homeward/1/+/status
topic write homeward/1/+/down/#

# A Kit, by the name in its certificate.
pattern write homeward/1/%u/up
pattern write homeward/1/%u/status
pattern read homeward/1/%u/down/#
"""

_MOSQUITTO = """\
# Written by homeward-sync. SIGHUP reads the ACL and the revoked certificates again.
listener {port} {listen}
cafile {folder}/ca/ca.pem
crlfile {folder}/broker/revoked.pem
certfile {folder}/broker/server.pem
keyfile {folder}/broker/server.key
tls_version tlsv1.2
require_certificate true
use_identity_as_username true
# The client id is the certificate's name too: nobody takes over another Kit's session.
use_username_as_clientid true
allow_anonymous false
acl_file {folder}/broker/acl

# QoS 0 and an Ack from the Store: the broker remembers nothing that matters.
persistence false
set_tcp_nodelay true
max_packet_size {max_packet}
sys_interval 0
log_dest file {folder}/broker/mosquitto.log
log_type error
log_type warning
log_type notice
log_type information
{user}"""

_CONFIG = """\
store = "sqlite:///store.sqlite"
time_zone = "{zone}"
max_bracket_min = 720

[broker]
host = "{host}"
port = {port}

[hub]
url = "{hub}"

[console]
host = "127.0.0.1"
port = {console}
"""


class IdentityError(Exception):
    """What can't be made or revoked; the sentence is for the operator."""


class Certified(NamedTuple):
    """A Kit's newest certificate."""

    born_ms: int  # no Record of the Kit is older
    revoked: bool


class _Issued(NamedTuple):
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def init(
    folder: Path,
    *,
    names: Sequence[str] = (),
    listen: str = "127.0.0.1",
    port: int = 0,
    console_port: int = 0,
    hub: str = "http://127.0.0.1:8080",
    zone: str = "Europe/London",
) -> None:
    """Make everything that a new project needs in `folder`. Port 0: a free one.

    `names` are the host names and addresses that Kits know the broker by, besides those of this machine;
    `listen` is the address that the broker listens on. Raises IdentityError, ConfigError.
    """
    if (folder / "ca").exists():
        raise IdentityError(f"{folder / 'ca'} is there already: a new CA would lock out every Kit")
    address = _address(listen)
    loopback = "127.0.0.1" if address.version == 4 else "::1"
    host = loopback if address.is_unspecified else str(address)
    alternatives = [_general_name(name) for name in dict.fromkeys(("localhost", loopback, host, *names))]
    port, console_port = port or free_port(listen), console_port or free_port("127.0.0.1")
    config = _CONFIG.format(zone=zone_of(zone), host=host, port=port, hub=hub_url(hub), console=console_port)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("ca", "ca/issued", "broker", "service", "kits"):
        (folder / name).mkdir(mode=0o700, exist_ok=True)
    authority = _make_authority()
    _write(folder / "ca/ca.key", _key_pem(authority.key))
    _write(folder / "ca/ca.pem", _pem(authority.certificate))
    _write_pair(folder / "broker", "server", _issue(authority, "broker", alternatives))
    _write_pair(folder / "service", SERVICE, _issue(authority, SERVICE))
    _write_revoked(folder, authority, ())
    _write(folder / "broker/acl", _ACL.encode())
    _write(folder / "broker/mosquitto.conf", _mosquitto(folder.resolve(), str(address), port).encode())
    _write(folder / FILE_NAME, config.encode())


def add_kit(folder: Path, kit: str) -> Path:
    """Make a Kit's certificate and key; return its folder. Raises IdentityError."""
    if not KIT.fullmatch(kit):
        raise IdentityError(f"a Kit's name looks like HW-0001 (2 to 16 of A-Z, 0-9 and '-'), not {kit!r}")
    if (folder / f"ca/issued/{kit}.pem").exists():
        raise IdentityError(f"Kit {kit} has a certificate already")
    issued = _issue(_authority(folder), kit)
    place = folder / "kits" / kit
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write_pair(place, "kit", issued)
    _write(place / "ca.pem", (folder / "ca/ca.pem").read_bytes())
    _write(folder / f"ca/issued/{kit}.pem", _pem(issued.certificate))
    return place


def sign_kit(folder: Path, kit: str, request: str) -> str:
    """Certify the key of a CSR (PEM) that the Station has made; return the certificate, PEM.

    The Kit's certificate before it is revoked first, so that a Kit has one identity at a time. Only the
    request's key is used: names and extensions are ours. Raises IdentityError.
    """
    key = _requested_key(kit, request)
    authority = _authority(folder)
    path = folder / f"ca/issued/{kit}.pem"
    if path.exists():
        revoke_kit(folder, kit)
    certificate = _pem(_certify(authority, kit, key))
    _write(path, certificate)
    return certificate.decode()


def station_pair(folder: Path, names: Sequence[str]) -> None:
    """Make the certificate that the Station knows the service's API by. Raises IdentityError."""
    if not names:
        raise IdentityError("name the host or address that the Station reaches this service at")
    place = folder / "station"
    place.mkdir(mode=0o700, exist_ok=True)
    issued = _issue(_authority(folder), "station", [_general_name(name) for name in dict.fromkeys(names)])
    _write_pair(place, "server", issued)


def _requested_key(kit: str, request: str) -> ec.EllipticCurvePublicKey:
    try:
        asked = x509.load_pem_x509_csr(request.encode())
        valid, key = asked.is_signature_valid, asked.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise IdentityError("the certificate request can't be read") from None
    if not valid:
        raise IdentityError("the certificate request is not signed by its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError("a Kit's key is P-256: the request has another one")
    names = [one.value for one in asked.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [kit]:
        raise IdentityError(f"the certificate request is not for Kit {kit}")
    return key


def revoke_kit(folder: Path, kit: str) -> None:
    """Put the Kit's certificate into the CRL; the broker reads it at SIGHUP. Raises IdentityError."""
    path = folder / f"ca/issued/{kit}.pem"
    if not KIT.fullmatch(kit) or not path.is_file():
        raise IdentityError(f"Kit {kit} has no certificate from here")
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    authority = _authority(folder)
    revoked = x509.load_pem_x509_crl((folder / "broker/revoked.pem").read_bytes())
    serials = {one.serial_number for one in revoked} | {certificate.serial_number}
    _write_revoked(folder, authority, sorted(serials))


def issued(folder: Path) -> dict[str, Certified]:
    """What there is of each Kit that has ever had a certificate from here."""
    crl = x509.load_pem_x509_crl((folder / "broker/revoked.pem").read_bytes())
    found = {}
    for path in sorted((folder / "ca/issued").glob("*.pem")):
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        revoked = crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
        born_ms = round(certificate.not_valid_before_utc.timestamp() * 1000)
        found[path.stem] = Certified(born_ms, revoked)
    return found


def free_port(address: str) -> int:
    """A TCP port that nobody listens on now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


# --- Certificates -------------------------------------------------------------------------------------------


def _make_authority() -> _Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Homeward project CA")])
    birth = datetime.now(UTC).replace(microsecond=0) - BIRTH_SLACK
    usage = _usage(key_cert_sign=True, crl_sign=True)
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(birth)
        .not_valid_after(birth + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _Issued(builder.sign(key, hashes.SHA256()), key)


def _issue(authority: _Issued, name: str, alternatives: Sequence[x509.GeneralName] = ()) -> _Issued:
    """A certificate as long-lived as the CA: a server's for its alternative names, else a client's."""
    key = ec.generate_private_key(ec.SECP256R1())
    return _Issued(_certify(authority, name, key.public_key(), alternatives), key)


def _certify(
    authority: _Issued,
    name: str,
    key: ec.EllipticCurvePublicKey,
    alternatives: Sequence[x509.GeneralName] = (),
) -> x509.Certificate:
    ca = authority.certificate
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if alternatives else ExtendedKeyUsageOID.CLIENT_AUTH
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = (
        x509.CertificateBuilder(ca.subject)
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(ca.not_valid_before_utc)
        .not_valid_after(ca.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(signer, critical=False)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(authority.key, hashes.SHA256())


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not _HOST.fullmatch(name):
        raise IdentityError(f"{name!r} is neither a host name nor an address")
    return x509.DNSName(name)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise IdentityError(f"the broker must listen on an address, not on {text!r}") from None


def _authority(folder: Path) -> _Issued:
    try:
        key = serialization.load_pem_private_key((folder / "ca/ca.key").read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((folder / "ca/ca.pem").read_bytes())
    except (OSError, ValueError) as error:
        raise IdentityError(f"the CA in {folder / 'ca'} can't be used: {error}") from None
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return _Issued(certificate, key)


def _write_revoked(folder: Path, authority: _Issued, serials: Iterable[int]) -> None:
    ca = authority.certificate
    builder = (
        x509.CertificateRevocationListBuilder(ca.subject)
        .last_update(ca.not_valid_before_utc)
        .next_update(ca.not_valid_after_utc)
    )
    for serial in serials:
        one = x509.RevokedCertificateBuilder(serial, ca.not_valid_before_utc).build()
        builder = builder.add_revoked_certificate(one)
    signed = builder.sign(authority.key, hashes.SHA256())
    _write(folder / "broker/revoked.pem", signed.public_bytes(serialization.Encoding.PEM))


# --- Files --------------------------------------------------------------------------------------------------


def _write_pair(place: Path, name: str, issued: _Issued) -> None:
    _write(place / f"{name}.pem", _pem(issued.certificate))
    _write(place / f"{name}.key", _key_pem(issued.key))


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """SEC 1 form: mbedTLS on the ESP32 and OpenSSL both read it."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def _write(path: Path, content: bytes) -> None:
    """Write for the owner alone, in one step: nobody reads half a file, nor a key before its mode is set."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _mosquitto(folder: Path, listen: str, port: int) -> str:
    # As root Mosquitto would become another user, who can't read the owner's files.
    user = f"user {getpass.getuser()}\n" if os.geteuid() == 0 else ""
    return _MOSQUITTO.format(folder=folder, listen=listen, port=port, max_packet=MAX_PACKET_BYTES, user=user)
