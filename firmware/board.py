"""Board: the ESP32-S3 of a Kit. Its pins, and how its boots begin and end."""

import machine
from machine import Pin

from gateway.port import const

_LIGHT = const(48)  # the neopixel of an ESP32-S3-DevKitC
_BUZZER = const(5)
_BUTTON = const(0)  # "BOOT" on the DevKitC: pressed is low

JOURNAL = "journal"
"""Label of the partition of the Journal."""
BONDS = "bonds"
"""Label of the partition of the bonds: 16 KiB, two copies of 8."""


def light() -> Pin:
    """Pin of the neopixel."""
    return Pin(_LIGHT, Pin.OUT)


def buzzer() -> Pin:
    """Pin of the buzzer."""
    return Pin(_BUZZER, Pin.OUT)


class Button:
    """The one button of a Kit."""

    def __init__(self) -> None:
        self._pin = Pin(_BUTTON, Pin.IN, Pin.PULL_UP)

    def is_down(self) -> bool:
        return self._pin.value() == 0


def reset_cause() -> int:
    """Why this boot has begun: one of machine's *_RESET."""
    return machine.reset_cause()


def reset() -> None:
    """Begin again. What counts is in flash."""
    machine.reset()
