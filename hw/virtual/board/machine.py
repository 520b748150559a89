# mypy: ignore-errors
"""Module machine: resets, the watchdog, pins and the clock of the chip."""

import sys
import time

import chip
import ffi
from micropython import const
from wiring import PINS, RESET
from wiring import SOFT_RESET as SOFT_RESET_CODE

_path = sys.path[:]
sys.path.clear()
try:
    from machine import *  # noqa: F403  (the port's own, of which this file is the rest)
finally:
    sys.path[:] = _path

PWRON_RESET = const(1)
HARD_RESET = const(2)
WDT_RESET = const(3)
DEEPSLEEP_RESET = const(4)
SOFT_RESET = const(5)

_ITIMER_REAL = const(0)


def reset() -> None:
    chip.end(RESET)


def soft_reset() -> None:
    chip.end(SOFT_RESET_CODE)


def reset_cause() -> int:
    return chip.boot["cause"]


def unique_id() -> bytes:
    return bytes.fromhex(chip.boot["mac"])


def freq(hz: int = 0) -> int:
    return 240_000_000


def disable_irq() -> bool:
    return chip.interrupts(False)


def enable_irq(state: bool) -> None:
    chip.interrupts(state)


class WDT:
    """Starved, it ends the board at once, whatever the interpreter does: an alarm of the host's kernel."""

    def __init__(self, id: int = 0, timeout: int = 5000) -> None:
        import array

        self._after = array.array("l", [0, 0, timeout // 1000, timeout % 1000 * 1000])  # interval, value
        self._set = ffi.open(None).func("i", "setitimer", "ipp")
        self.feed()

    def feed(self) -> None:
        chip.counters.fed += 1
        self._set(_ITIMER_REAL, self._after, None)


class Pin:
    """machine.Pin: levels are wires to the host, which presses buttons and looks at lamps."""

    IN = const(1)
    OUT = const(3)
    OPEN_DRAIN = const(7)
    PULL_DOWN = const(1)
    PULL_UP = const(2)
    IRQ_RISING = const(1)
    IRQ_FALLING = const(2)

    _handlers: dict = {}

    def __init__(self, id: int, mode: int = -1, pull: int = -1, *, value: int = None) -> None:
        self._id = id
        self._mode = mode
        if mode == Pin.IN and pull == Pin.PULL_UP and not chip.wires[PINS + id] & 2:
            chip.wires[PINS + id] = 1  # bit 1: somebody outside drives the pin
        if value is not None:
            self.value(value)

    def init(self, mode: int = -1, pull: int = -1, *, value: int = None) -> None:
        self.__init__(self._id, mode, pull, value=value)

    def value(self, level: int = None) -> int:
        if level is None:
            return chip.wires[PINS + self._id] & 1
        chip.wires[PINS + self._id] = 1 if level else 0
        return None

    __call__ = value

    def on(self) -> None:
        self.value(1)

    def off(self) -> None:
        self.value(0)

    def irq(self, handler: object = None, trigger: int = 3) -> None:
        Pin._handlers[self._id] = (self, handler, trigger)
        chip.pin_handler = _on_edge


def _on_edge(number: int) -> None:
    pin, handler, trigger = Pin._handlers.get(number, (None, None, 0))
    if handler and trigger & (Pin.IRQ_RISING if pin.value() else Pin.IRQ_FALLING):
        handler(pin)


class PWM:
    """machine.PWM, as far as a buzzer needs it: the host hears frequency and duty."""

    def __init__(self, pin: Pin, freq: int = 5000, duty: int = 512, duty_u16: int = None) -> None:
        self._pin = pin
        self._freq = freq
        self._duty = duty if duty_u16 is None else duty_u16 >> 6
        self._tell()

    def freq(self, hz: int = None) -> int:
        if hz is None:
            return self._freq
        self._freq = hz
        return self._tell()

    def duty(self, duty: int = None) -> int:
        if duty is None:
            return self._duty
        self._duty = duty
        return self._tell()

    def duty_u16(self, duty: int = None) -> int:
        return self._duty << 6 if duty is None else self.duty(duty >> 6)

    def deinit(self) -> None:
        self._duty = 0
        self._tell()

    def _tell(self) -> None:
        chip.ask("sound", pin=self._pin._id, freq=self._freq, duty=self._duty)


class RTC:
    """machine.RTC. It runs through a reset and forgets when the power goes: then it is the year 2000."""

    def datetime(self, new: tuple = None) -> tuple:
        if new is None:
            year, month, day, hour, minute, second, weekday, _ = time.gmtime()
            return (year, month, day, weekday, hour, minute, second, time.time_ns() // 1000 % 1_000_000)
        year, month, day, _, hour, minute, second, micros = new
        time.set_clock(time.mktime((year, month, day, hour, minute, second, 0, 0)), micros)
        return None

    def init(self, new: tuple) -> None:
        self.datetime(new)

    def memory(self, value: object = None) -> bytes:
        return bytes.fromhex(chip.ask("memory", value=None if value is None else bytes(value).hex()))
