"""Board: what is wired to the chip of a Kit, and how its boots begin and end."""

import machine
from machine import Pin

from firmware import pins

JOURNAL = "journal"
"""Label of the partition of the Journal."""
BONDS = "bonds"
"""Label of the partition of the bonds: 16 KiB, two copies of 8."""


def light() -> Pin:
    """Pin of the neopixel."""
    return Pin(pins.LIGHT, Pin.OUT)


def buzzer() -> Pin:
    """Pin of the buzzer."""
    return Pin(pins.BUZZER, Pin.OUT)


class Button:
    """The one button of a Kit."""

    def __init__(self) -> None:
        self._pin = Pin(pins.BUTTON, Pin.IN, Pin.PULL_UP)

    def is_down(self) -> bool:
        return self._pin.value() == 0


def reset_cause() -> int:
    """Why this boot has begun: one of machine's *_RESET."""
    return machine.reset_cause()


def reset() -> None:
    """Begin again. What counts is in flash."""
    machine.reset()
