"""The service as the bench sees it (sync_service/station_api.py), believed by the project CA alone."""

import http.client
import json
import ssl
from typing import Any
from urllib.parse import quote, urlsplit

from hw.station import StationError
from hw.station.bench import Bench

_PREFIX = "/station/1/"
_TIMEOUT_S = 20.0
_MAX_ANSWER_BYTES = 1 << 20
"""A history of years has some 100 kB."""


class ServiceError(StationError):
    """The service could not be asked, or has refused; `status` 0: it was not reached."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Service:
    """The service of a bench. Every call raises ServiceError, BenchError."""

    def __init__(self, bench: Bench) -> None:
        parts = urlsplit(bench.service)
        assert parts.hostname
        self._host, self._port = parts.hostname, parts.port or 443
        self._address = bench.service
        self._token = bench.token()
        try:
            self._tls = ssl.create_default_context(cafile=str(bench.ca))
        except OSError as problem:
            raise ServiceError(
                0, f"{bench.ca} is not the project CA: {problem.strerror or problem}"
            ) from None
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2

    def status(self) -> dict[str, Any]:
        """The service's clock, and who the token says we are."""
        return self._ask("GET", "status")

    def make(self, series: str, count: int) -> list[str]:
        """Take the next numbers of a series."""
        kits: list[str] = self._ask("POST", "kits", {"series": series, "count": count})["kits"]
        return kits

    def kit(self, kit: str) -> dict[str, Any]:
        """All that the bench may know of a Kit."""
        return self._ask("GET", f"kits/{quote(kit, safe='')}")

    def sensors(self, kit: str) -> list[dict[str, Any]]:
        """The Sensors that its Gateway itself has told of (sync_service/sensor_bonds.py)."""
        found: list[dict[str, Any]] = self._ask("GET", f"kits/{quote(kit, safe='')}/sensors")["sensors"]
        return found

    def post(self, kit: str, what: str, body: dict[str, Any]) -> dict[str, Any]:
        """provision, steps, label, self-tests, sensors or wipe of a Kit."""
        return self._ask("POST", f"kits/{quote(kit, safe='')}/{what}", body)

    def step(self, kit: str, step: str, note: str = "") -> str:
        """Take a step in the Kit's life; return where it is now."""
        life: str = self.post(kit, "steps", {"step": step, "note": note})["life"]
        return life

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        status, raw = self._exchange(method, path, None if body is None else json.dumps(body).encode())
        try:
            answer = json.loads(raw)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ServiceError(status, f"what answers at {self._address} is not the service ({status})")
        if status >= 300:
            raise ServiceError(status, str(answer.get("problem", f"the service has refused ({status})")))
        return answer

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {self._token}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        line = http.client.HTTPSConnection(self._host, self._port, timeout=_TIMEOUT_S, context=self._tls)
        try:
            line.request(method, _PREFIX + path, body, headers)
            answer = line.getresponse()
            return answer.status, answer.read(_MAX_ANSWER_BYTES)
        except ssl.SSLCertVerificationError as problem:
            why = problem.verify_message or "its certificate is not the project's"
            raise ServiceError(0, f"{self._address} is not our service: {why}") from None
        except (OSError, http.client.HTTPException) as problem:
            why = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
            raise ServiceError(
                0, f"the service at {self._address} can't be reached ({why}): is it on line?"
            ) from None
        finally:
            line.close()
