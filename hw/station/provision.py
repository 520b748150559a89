"""`homeward-station provision`: makes a Kit's identity at the bench. Its private key never leaves it.

    number from the service -> key pair -> CSR -> certificate -> kits/KIT/ (hw/station/kit_folder.py)

The rule: the folder is written last and whole. What fails before it can be run again: a new key is made, and
the certificate of the one before it is revoked by the service.
"""

import argparse
import secrets
import ssl
import time
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hw.station import StationError, bench
from hw.station.bench import Bench
from hw.station.kit_folder import KitFolder
from hw.station.report import Report
from hw.station.service import Service
from sync_service.kit_id import mistake
from sync_service.life import MAX_BATCH

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_PORTAL_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
"""None of them looks like another one on a label: no i, l, o, 0, 1."""
_PORTAL_LENGTH = 12
"""59 bits: out of reach for whoever hears a handshake, and three groups of four to type."""


def add(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the sub-command `provision`."""
    parser = commands.add_parser("provision", help="make a Kit's key, certificate and folder")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("kit", nargs="?", help="as on its label, HW-0001-Z")
    which.add_argument("--next", type=int, nargs="?", const=1, metavar="N", help="the next N numbers (1)")
    bench.add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Provision one Kit, or the next N. Raises StationError."""
    here = bench.load(options.bench)
    report = Report(json=options.json, dry_run=options.dry_run)
    if options.kit:
        check_kit(options.kit)
    elif not 0 < options.next <= MAX_BATCH:
        raise StationError(f"--next takes 1 to {MAX_BATCH}, not {options.next}")
    title = f"Kit {options.kit}" if options.kit else f"The next {options.next} Kits of series {here.series}"
    steps = [
        "take the numbers from the service"
        if options.next
        else "ask the service whether it may be provisioned",
        "make a P-256 key pair on this computer; the key never leaves it",
        f"have the certificate signed by {here.service}, which revokes the one before",
        f"write {here.kit_folder('KIT')} with {len(here.networks)} networks and a key for the set-up portal",
    ]
    if not report.plan(title, steps):
        return
    service = Service(here)
    kits = [options.kit] if options.kit else service.make(here.series, options.next)
    for number, kit in enumerate(kits, 1):
        provision(here, service, kit)
        report.progress("provisioned", number, len(kits))
        report.say(f"{kit} provisioned")
    report.result({"provisioned": kits}, f"{len(kits)} provisioned; flash next")


def provision(here: Bench, service: Service, kit: str) -> KitFolder:
    """Make the Kit's identity and write its folder. Raises StationError."""
    key = ec.generate_private_key(ec.SECP256R1())
    answer = service.post(kit, "provision", {"request": _request(kit, key)})
    folder = KitFolder(
        kit=kit,
        board=here.board,
        host=answer["host"],
        port=answer["port"],
        networks=here.networks,
        ca=_der(answer["ca"]),
        certificate=_der(answer["certificate"]),
        key=key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        ),
        made_at=int(time.time()),
        portal_key=portal_key(),
        support=here.support,
        pairing_s=here.pairing_s,
    )
    folder.save(here.kit_folder(kit))
    return folder


def check_kit(kit: str) -> None:
    """Refuse what was mistyped. Raises StationError."""
    if problem := mistake(kit):
        raise StationError(f"{problem}; look at the label again")


def portal_key() -> str:
    """The WPA2 key of a Kit's set-up portal. Its hyphens are part of it: a space would be typed or not."""
    letters = [secrets.choice(_PORTAL_LETTERS) for _ in range(_PORTAL_LENGTH)]
    return "-".join("".join(letters[n : n + 4]) for n in range(0, _PORTAL_LENGTH, 4))


def _request(kit: str, key: ec.EllipticCurvePrivateKey) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, kit)])
    made = x509.CertificateSigningRequestBuilder(subject).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


def _der(pem: Any) -> bytes:
    try:
        return ssl.PEM_cert_to_DER_cert(pem)
    except (ValueError, TypeError):
        raise StationError("the service has answered with something that is no certificate") from None
