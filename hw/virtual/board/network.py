# mypy: ignore-errors
"""Module network: WLAN as a station and as an access point. Status numbers are those of the ESP32."""

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


_AP_ADDRESS = "192.168.4.1"
_SEC_OPEN = const(0)
_MIN_KEY = const(8)
_QUIET = ("key",)  # can be set, and not read
_OLD_NAMES = {"essid": "ssid", "password": "key", "authmode": "security"}


class WLAN:
    """network.WLAN(STA_IF) and WLAN(AP_IF): one of each, as there is one radio, which can be both at once."""

    IF_STA = STA_IF
    IF_AP = AP_IF
    PM_NONE = const(0)
    PM_PERFORMANCE = const(1)
    PM_POWERSAVE = const(2)
    SEC_OPEN = _SEC_OPEN
    SEC_WPA2 = const(3)

    _made: dict = {}

    def __new__(cls, interface: int = STA_IF) -> "WLAN":
        if interface not in (STA_IF, AP_IF):
            raise ValueError("invalid WLAN interface identifier")
        if interface not in cls._made:
            one = cls._made[interface] = super().__new__(cls)
            one._interface = interface
            one._active = False
            one._settings = {"channel": 0, "ssid": "", "txpower": 20, "pm": 1}
            if interface == AP_IF:
                ssid = "ESP_" + chip.boot["mac"][-6:].upper()
                one._settings.update({"ssid": ssid, "key": "", "security": _SEC_OPEN})
                one._settings.update({"hidden": False, "max_clients": 4})
            else:
                one._settings["reconnects"] = 0
        return cls._made[interface]

    def __init__(self, interface: int = STA_IF) -> None:
        pass

    def active(self, on: bool = None) -> bool:
        if on is not None:
            self._active = bool(on)
            if self._interface == AP_IF:
                self._tell_point()
            else:
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
        if not WLAN(STA_IF)._active:
            raise OSError("STA must be active")
        return [
            (row[0].encode(), bytes.fromhex(row[1]), row[2], row[3], row[4], False)
            for row in chip.ask("wifi_scan")
        ]

    def isconnected(self) -> bool:
        if self._interface == AP_IF:
            return bool(self.status("stations"))
        return _status() == STAT_GOT_IP

    def status(self, what: str = None) -> object:
        if what is None:
            return _status() if self._interface == STA_IF else None
        if what == "stations":
            self._must_be(AP_IF)
            return [(bytes.fromhex(mac),) for mac in chip.ask("wifi_stations")]
        if what == "rssi":
            self._must_be(STA_IF)
            if not self.isconnected():
                raise OSError("Wifi Not Connected")
            return -chip.wires[WIFI_RSSI]
        raise ValueError("unknown status param")

    def ifconfig(self, _new: object = None) -> tuple:
        if self._interface == AP_IF:
            return (_AP_ADDRESS, "255.255.255.0", _AP_ADDRESS, "0.0.0.0")
        if not self.isconnected():
            return ("0.0.0.0", "0.0.0.0", "0.0.0.0", "0.0.0.0")
        return ("192.168.1.23", "255.255.255.0", "192.168.1.1", "192.168.1.1")

    def ipconfig(self, what: str = None, **_new: object) -> object:
        address, mask, gateway, _ = self.ifconfig()
        if what == "addr4":
            return (address, mask)
        return {"gw4": gateway, "has_dhcp4": self.isconnected(), "dhcp4": True}.get(what)

    def config(self, *what: str, **new: object) -> object:
        if what and new:
            raise TypeError("either pos or kw args are allowed")
        for name in new:
            self._settings[self._known(name, True)] = new[name]
        if new:
            if self._interface == AP_IF:
                self._check_key()
                self._tell_point()
            return None
        if len(what) != 1:
            raise TypeError("can query only one param")
        if what[0] == "mac":
            return bytes.fromhex(chip.boot["mac"])
        if what[0] in _QUIET:
            raise ValueError("unknown config param")
        return self._settings[self._known(what[0])]

    def _known(self, name: str, setting: bool = False) -> str:
        name = _OLD_NAMES.get(name, name)
        if name == "reconnects":
            self._must_be(STA_IF)
        if name in ("key", "security", "hidden", "max_clients") or (name == "ssid" and setting):
            self._must_be(AP_IF)
        if name not in self._settings:
            raise ValueError("unknown config param")
        return name

    def _check_key(self) -> None:
        if self._settings["security"] != _SEC_OPEN and len(_text(self._settings["key"])) < _MIN_KEY:
            raise OSError("Wifi Invalid Password")

    def _tell_point(self) -> None:
        about = {name: self._settings[name] for name in ("security", "max_clients")}
        ssid, key = _text(self._settings["ssid"]), _text(self._settings["key"])
        chip.ask("wifi_point", on=self._active, ssid=ssid, key=key, **about)

    def _must_be(self, interface: int) -> None:
        if self._interface != interface:
            raise OSError("AP required" if interface == AP_IF else "STA required")

    def _started(self) -> None:
        self._must_be(STA_IF)
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
