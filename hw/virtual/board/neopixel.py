# mypy: ignore-errors
"""Module neopixel: a strip of lamps; the host sees what was written."""

import chip


class NeoPixel:
    """neopixel.NeoPixel: tuples of (r, g, b) or (r, g, b, w)."""

    def __init__(self, pin: object, n: int, bpp: int = 3, timing: int = 1) -> None:
        self.pin = pin
        self.n = n
        self.bpp = bpp
        self.buf = bytearray(n * bpp)

    def __len__(self) -> int:
        return self.n

    def __setitem__(self, index: int, colour: tuple) -> None:
        for part in range(self.bpp):
            self.buf[index * self.bpp + part] = colour[part]

    def __getitem__(self, index: int) -> tuple:
        return tuple(self.buf[index * self.bpp : (index + 1) * self.bpp])

    def fill(self, colour: tuple) -> None:
        for index in range(self.n):
            self[index] = colour

    def write(self) -> None:
        chip.ask("pixels", bpp=self.bpp, value=self.buf.hex())
