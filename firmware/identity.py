"""Identity: who this Kit is and whom it talks to, as the Station has written it into NVS.

key      kind  namespace "homeward"
kit      blob  kit id, as on the label
host     blob  name of the broker, as in its certificate
port     i32
wifi     blob  JSON [[network, password], ...]
ca       blob  project CA, DER
cert     blob  certificate of this Kit, DER
key      blob  its private key, DER
wipe     i32   1: begin a new Journal and forget every Sensor at the next boot, once
pair_s   i32   let unknown Sensors bond for so long after the next boot, once
selftest i32   1: test everything at the next boot, until all has passed once
stream_s i32   of continuous oximetry, keep one value in so many seconds (1 to 600; 60 when it is not there)
sntp     blob  name of an SNTP server to ask while the service gives no time; none when it is not there
utc_s    i32   the latest time that was known, in seconds since 2000
portal_key  blob  key of the set-up page's Wi-Fi, 8 to 63 characters, as on the label; without it the page
               never opens
"""

import json

from esp32 import NVS

from gateway.errors import HomewardError
from gateway.limits import STREAM_WINDOW_MAX_MS, STREAM_WINDOW_MS
from gateway.port import const

_MAX_BLOB_BYTES = const(1984)
"""A P-256 certificate has 500 bytes; 1984 is the longest blob that NVS keeps in one page."""
_TO_2000_S = const(946_684_800)
"""An i32 holds seconds since 2000 until 2068."""
_KEEP_EVERY_S = const(86_400)
"""A day late is early enough for certificates that live for years, and spares the flash."""


class IdentityError(HomewardError):
    """NVS does not hold an identity: the Kit has not been provisioned."""


class Identity:
    """Raises IdentityError when a value is missing. Networks: [[name, password], ...]."""

    def __init__(self) -> None:
        self._nvs = NVS("homeward")
        self.kit = self._blob("kit").decode()
        self.host = self._blob("host").decode()
        self.port = self._number("port")
        try:
            known = json.loads(self._blob("wifi"))
            self.networks: list[list[str]] = [[str(name), str(key)] for name, key in known]
        except (ValueError, TypeError):
            raise IdentityError("wifi") from None
        self.portal_key = self._blob("portal_key", b"").decode()
        self.ca = self._blob("ca")
        self.certificate = self._blob("cert")
        self.key = self._blob("key")
        self.sntp = self._text("sntp")
        self.utc_s = self._number("utc_s", 0) + _TO_2000_S
        self.stream_window_ms = self._number("stream_s", STREAM_WINDOW_MS // 1000) * 1000
        if not 0 < self.stream_window_ms <= STREAM_WINDOW_MAX_MS:
            raise IdentityError("stream_s must be 1 to %d" % (STREAM_WINDOW_MAX_MS // 1000))

    @property
    def wipe_asked(self) -> bool:
        """Whether the Station has asked for a new Journal."""
        return self._number("wipe", 0) == 1

    def wiped(self) -> None:
        """The new Journal has begun."""
        self._forget("wipe")

    @property
    def test_asked(self) -> bool:
        """Whether the Station has asked for the self-test."""
        return self._number("selftest", 0) == 1

    def tested(self) -> None:
        """It has passed."""
        self._forget("selftest")

    def take_pairing_s(self) -> int:
        """How long unknown Sensors may bond from now on. Asked for once, given once."""
        seconds = self._number("pair_s", 0)
        if seconds:
            self._forget("pair_s")
        return seconds

    def keep_utc_s(self, utc_s: int) -> None:
        """Remember the time for a boot without a network; once a day."""
        if utc_s - self.utc_s >= _KEEP_EVERY_S:
            self.utc_s = utc_s
            self._nvs.set_i32("utc_s", utc_s - _TO_2000_S)
            self._nvs.commit()

    def forget_keys(self) -> None:
        """TLS has its own copies: these would stay in the heap for nothing."""
        self.ca = self.certificate = self.key = b""

    def keep_networks(self) -> bool:
        """Remember the networks as they are in the list; False: they do not fit, and the old ones stay."""
        whole = json.dumps(self.networks).encode()
        if len(whole) > _MAX_BLOB_BYTES:
            return False
        self._nvs.set_blob("wifi", whole)
        self._nvs.commit()
        return True

    def _forget(self, key: str) -> None:
        self._nvs.erase_key(key)
        self._nvs.commit()

    def _blob(self, key: str, default: "bytes | None" = None) -> bytes:
        buffer = bytearray(_MAX_BLOB_BYTES)
        try:
            return bytes(buffer[: self._nvs.get_blob(key, buffer)])
        except OSError:
            if default is None:
                raise IdentityError(key) from None
            return default

    def _text(self, key: str) -> str:
        """Empty when it is not there."""
        try:
            return self._blob(key).decode()
        except IdentityError:
            return ""

    def _number(self, key: str, default: "int | None" = None) -> int:
        try:
            return self._nvs.get_i32(key)
        except OSError:
            if default is None:
                raise IdentityError(key) from None
            return default
