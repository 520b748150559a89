"""Pins of the recommended board. The image for another one has its numbers here (hw/boards/)."""

LIGHT = 48  # WS2812
BUTTON = 0  # pressed is low
BUZZER = 5
