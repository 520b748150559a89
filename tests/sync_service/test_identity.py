"""P8, each Kit only itself: what Mosquitto lets through with the configuration that `init` writes."""

import socket
import ssl
import stat
from datetime import timedelta
from pathlib import Path

import aiomqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from sync_service import identity
from sync_service.config import ConfigError, load
from sync_service.identity import IdentityError
from tests.broker import Broker, next_message

UP, ACK, STATUS = "homeward/1/{}/up", "homeward/1/{}/down/ack", "homeward/1/{}/status"
A, B = "HW-0001", "HW-0002"


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


# --- Files --------------------------------------------------------------------------------------------------


def test_every_certificate_is_as_old_as_its_ca(folder: Path) -> None:
    """A Kit whose clock is late still believes the broker, and the broker the Kit."""
    ca = certificate(folder / "ca/ca.pem")
    for name in ("broker/server.pem", "service/service.pem", f"kits/{A}/kit.pem"):
        one = certificate(folder / name)
        one.verify_directly_issued_by(ca)
        assert one.not_valid_before_utc == ca.not_valid_before_utc
        assert one.not_valid_after_utc - one.not_valid_before_utc > timedelta(days=3650)
        assert isinstance(one.public_key(), ec.EllipticCurvePublicKey)


def test_no_file_is_for_others_to_read(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.name != "store.sqlite.lock":
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_second_init_leaves_the_ca_alone(folder: Path) -> None:
    before = (folder / "ca/ca.key").read_bytes()
    with pytest.raises(IdentityError, match="lock out every Kit"):
        identity.init(folder)
    assert (folder / "ca/ca.key").read_bytes() == before


@pytest.mark.parametrize("kit", ["hw-0001", "A", "HW 1", "HW-0001\n", "../HW", "service", "A" * 17, "-HW"])
def test_a_name_that_is_no_kits_gets_no_certificate(folder: Path, kit: str) -> None:
    with pytest.raises(IdentityError, match="looks like HW-0001"):
        identity.add_kit(folder, kit)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"listen": "localhost"}, "listen on an address"),
        ({"names": ["a b"]}, "neither a host name nor an address"),
        ({"names": ["x\nallow_anonymous true"]}, "neither a host name nor an address"),
        ({"hub": "ftp://hub"}, "http or https"),
        ({"zone": "Mars/Olympus"}, "not known"),
    ],
)
def test_a_wrong_value_leaves_nothing_behind(tmp_path: Path, wrong: dict[str, object], said: str) -> None:
    with pytest.raises((IdentityError, ConfigError), match=said):
        identity.init(tmp_path / "sync", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "sync").exists()


def test_the_broker_is_known_by_the_names_given(tmp_path: Path) -> None:
    identity.init(tmp_path, names=["hub.example", "10.0.0.5"], listen="0.0.0.0", port=8883)
    names = certificate(tmp_path / "broker/server.pem").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["localhost", "hub.example"]
    addresses = [str(one) for one in names.value.get_values_for_type(x509.IPAddress)]
    assert addresses == ["127.0.0.1", "10.0.0.5"]
    assert (load(tmp_path).broker.host, load(tmp_path).broker.port) == ("127.0.0.1", 8883)


def test_the_revoked_list_never_ends_before_the_ca(folder: Path) -> None:
    """Past its nextUpdate Mosquitto would refuse every client."""
    identity.revoke_kit(folder, A)
    revoked = x509.load_pem_x509_crl((folder / "broker/revoked.pem").read_bytes())
    ca = certificate(folder / "ca/ca.pem")
    assert revoked.next_update_utc == ca.not_valid_after_utc
    assert [one.serial_number for one in revoked] == [certificate(folder / f"kits/{A}/kit.pem").serial_number]


# --- The broker ---------------------------------------------------------------------------------------------


async def test_a_kit_reaches_the_service_and_the_service_the_kit(broker: Broker) -> None:
    async with broker.service() as service, broker.kit(A) as kit:
        await service.subscribe("$share/sync/homeward/1/+/up")
        await service.subscribe("homeward/1/+/status")
        await kit.subscribe("homeward/1/HW-0001/down/#")
        for topic in (UP, STATUS):
            await kit.publish(topic.format(A), b"from the Kit")
            assert (await next_message(service)).topic.value == topic.format(A)
        await service.publish(ACK.format(A), b"an Ack")
        assert (await next_message(kit)).payload == b"an Ack"


async def test_a_kit_can_not_publish_as_another_nor_send_acks(broker: Broker) -> None:
    async with broker.service() as service, broker.kit(A) as kit, broker.kit(B) as other:
        await service.subscribe("homeward/1/+/up")
        await service.subscribe("homeward/1/+/status")
        await other.subscribe("homeward/1/+/down/#")
        await kit.subscribe("homeward/1/+/down/#")
        for topic in (UP, STATUS, ACK, "homeward/1/{}/down/command", "homeward/1/{}/other", "$SYS/{}"):
            await kit.publish(topic.format(B), b"forged")
        await kit.publish(ACK.format(A), b"forged")
        # Whatever had been let through would have come before these.
        await kit.publish(UP.format(A), b"true")
        assert (await next_message(service)).payload == b"true"
        for topic, client in ((ACK.format(A), kit), (ACK.format(B), other)):
            await service.publish(topic, b"true")
            assert (await next_message(client)).payload == b"true"


async def test_a_kit_reads_only_its_own_down_topics(broker: Broker) -> None:
    async with broker.service() as service, broker.kit(A) as kit, broker.kit(B) as other:
        for topic in ("#", "homeward/1/+/down/#", ACK.format(B), UP.format(B), STATUS.format(B), "$SYS/#"):
            await kit.subscribe(topic)
        await other.publish(UP.format(B), b"not for A")
        await other.publish(STATUS.format(B), b"not for A", retain=True)
        await service.publish(ACK.format(B), b"not for A")
        await service.publish(ACK.format(A), b"for A")
        assert (await next_message(kit)).payload == b"for A"


async def test_the_service_can_not_speak_as_a_kit(broker: Broker) -> None:
    async with broker.service() as service, broker.kit(A) as kit:
        await service.subscribe("homeward/1/+/up")
        await service.publish(UP.format(A), b"forged")
        await kit.publish(UP.format(A), b"true")
        assert (await next_message(service)).payload == b"true"


async def test_a_client_id_takes_over_nobodys_session(broker: Broker) -> None:
    async with broker.service() as service, broker.kit(A) as kit:
        await kit.subscribe("homeward/1/HW-0001/down/#")
        async with broker.kit(B, client_id=A) as thief:
            await thief.subscribe("homeward/1/HW-0001/down/#")
            await service.publish(ACK.format(A), b"for A")
            assert (await next_message(kit)).payload == b"for A"
            assert len(thief.messages) == 0
        assert f"as {B} " in broker.log()
        assert "closing old connection" not in broker.log()


async def test_no_certificate_no_connection(broker: Broker) -> None:
    tls = ssl.create_default_context(cafile=broker.folder / "ca/ca.pem")
    await refused(aiomqtt.Client("127.0.0.1", broker.port, identifier=A, tls_context=tls, timeout=0.5))
    await refused(aiomqtt.Client("127.0.0.1", broker.port, identifier=A, timeout=0.5))


async def test_a_certificate_of_another_ca_is_refused(broker: Broker, tmp_path: Path) -> None:
    identity.init(tmp_path / "other")
    identity.add_kit(tmp_path / "other", A)
    tls = ssl.create_default_context(cafile=broker.folder / "ca/ca.pem")
    place = tmp_path / "other/kits" / A
    tls.load_cert_chain(place / "kit.pem", place / "kit.key")
    await refused(aiomqtt.Client("127.0.0.1", broker.port, identifier=A, tls_context=tls, timeout=0.5))


def test_a_kit_does_not_believe_another_ca(broker: Broker, tmp_path: Path) -> None:
    identity.init(tmp_path / "other")
    tls = ssl.create_default_context(cafile=tmp_path / "other/ca/ca.pem")
    with (
        socket.create_connection(("127.0.0.1", broker.port)) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        tls.wrap_socket(plain, server_hostname="127.0.0.1")


async def test_a_revoked_kit_can_not_connect_again_and_the_others_can(broker: Broker) -> None:
    identity.revoke_kit(broker.folder, A)
    broker.reload()
    client = broker.kit(A)
    client.timeout = 0.5
    await refused(client)
    async with broker.kit(B), broker.service():
        pass


async def refused(client: aiomqtt.Client) -> None:
    with pytest.raises(aiomqtt.MqttError):
        await client.__aenter__()
