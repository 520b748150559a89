# mypy: ignore-errors
"""Module network: WLAN as a station. Status numbers are those of the ESP32."""

import chip
from micropython import const
from wiring import WIFI_RSSI, WIFI_STATUS

STA_IF = const(0)
AP_IF = const(1)
STAT_IDLE = const(1000)
STAT_CONNECTING = const(1001)
STAT_GOT_IP = const(1010)
STAT_BEACON_TIMEOUT = const(200)
STAT_NO_AP_FOUND = const(201)
STAT_WRONG_PASSWORD = const(202)
STAT_ASSOC_FAIL = const(203)
STAT_HANDSHAKE_TIMEOUT = const(204)

_hostname = "mpy-esp32"
_country = "XX"


class WLAN:
    """network.WLAN(STA_IF). There is one, as there is one radio."""

    IF_STA = STA_IF
    IF_AP = AP_IF
    PM_NONE = const(0)
    PM_PERFORMANCE = const(1)
    PM_POWERSAVE = const(2)

    _one = None

    def __new__(cls, interface: int = STA_IF) -> "WLAN":
        if interface != STA_IF:
            raise ValueError("the virtual board has no access point")
        if cls._one is None:
            cls._one = super().__new__(cls)
            cls._one._active = False
            cls._one._settings = {"reconnects": 0, "pm": 1, "txpower": 20, "channel": 0, "ssid": ""}
        return cls._one

    def __init__(self, interface: int = STA_IF) -> None:
        pass

    def active(self, on: bool = None) -> bool:
        if on is not None:
            self._active = bool(on)
            chip.ask("wifi_active", on=self._active)
        return self._active

    def connect(self, ssid: str = None, key: str = "", *, bssid: bytes = None) -> None:
        self._started()
        if ssid is not None:
            self._settings["ssid"] = _text(ssid)
        chip.ask(
            "wifi_connect",
            ssid=self._settings["ssid"],
            key=_text(key),
            reconnects=self._settings["reconnects"],
        )

    def disconnect(self) -> None:
        self._started()
        chip.ask("wifi_disconnect")

    def scan(self) -> list:
        if not self._active:
            raise OSError("STA must be active")
        return [
            (row[0].encode(), bytes.fromhex(row[1]), row[2], row[3], row[4], False)
            for row in chip.ask("wifi_scan")
        ]

    def isconnected(self) -> bool:
        return _status() == STAT_GOT_IP

    def status(self, what: str = None) -> int:
        if what is None:
            return _status()
        if what == "rssi":
            if not self.isconnected():
                raise OSError("Wifi Not Connected")
            return -chip.wires[WIFI_RSSI]
        raise ValueError("unknown status param")

    def ifconfig(self, _new: object = None) -> tuple:
        if not self.isconnected():
            return ("0.0.0.0", "0.0.0.0", "0.0.0.0", "0.0.0.0")
        return ("192.168.1.23", "255.255.255.0", "192.168.1.1", "192.168.1.1")

    def ipconfig(self, what: str = None, **_new: object) -> object:
        address, mask, gateway, _ = self.ifconfig()
        if what == "addr4":
            return (address, mask)
        return {"gw4": gateway, "has_dhcp4": self.isconnected(), "dhcp4": True}.get(what)

    def config(self, *what: str, **new: object) -> object:
        self._settings.update(new)
        if not what:
            return None
        if what[0] == "mac":
            return bytes.fromhex(chip.boot["mac"])
        if what[0] not in self._settings:
            raise ValueError("unknown config param")
        return self._settings[what[0]]

    def _started(self) -> None:
        if not self._active:
            raise OSError("Wifi Not Started")


def hostname(name: str = None) -> str:
    global _hostname
    _hostname = name or _hostname
    return _hostname


def country(code: str = None) -> str:
    global _country
    _country = code or _country
    return _country


def _status() -> int:
    return chip.wires[WIFI_STATUS] | chip.wires[WIFI_STATUS + 1] << 8


def _text(value: object) -> str:
    return value if isinstance(value, str) else bytes(value).decode()
