"""Kit folders for tests, with certificates from a real project CA made on the spot."""

import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from hw.station.kit_folder import KitFolder
from sync_service import identity

NETWORKS = (("Kit router", "dove umber lattice"), ("Café", "naïve password"), ("open", ""))
PORTAL_KEY = "plum-42-harbour"


def project(folder: Path) -> Path:
    """A new project as `homeward-sync init` makes it; return its folder."""
    identity.init(folder)
    return folder


def kit_folder(
    sync: Path,
    kit: str,
    *,
    board: str = "esp32-4mb",
    host: str = "broker.example",
    port: int = 8883,
    networks: tuple[tuple[str, str], ...] = NETWORKS,
) -> KitFolder:
    """A new Kit of that project."""
    place = identity.add_kit(sync, kit)
    ca, certificate = (
        x509.load_pem_x509_certificate((place / name).read_bytes()).public_bytes(serialization.Encoding.DER)
        for name in ("ca.pem", "kit.pem")
    )
    key = serialization.load_pem_private_key((place / "kit.key").read_bytes(), None)
    return KitFolder(
        kit=kit,
        board=board,
        host=host,
        port=port,
        networks=networks,
        ca=ca,
        certificate=certificate,
        key=key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        ),
        made_at=int(time.time()),
        portal_key=PORTAL_KEY,
        support="+44 20 7946 0000",
    )
