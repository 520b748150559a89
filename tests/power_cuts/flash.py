"""NOR flash that tells, before each program and erase, everything that a power cut in it can leave behind.

A block is an immutable `bytes`, so that a copy of the whole flash is a list of references. What a worn-out
block refuses or forgets changes nothing, and so is no operation.
"""

import random
from collections.abc import Callable, Iterator

WORD_BYTES = 4
HEADER_BYTES = 32
ERASE_OUTCOMES = 9
"""Before it, after it, and seven ways to be half-way."""

FADED = 1
"""A program that was cut short may read as whole at first, and as torn later: its last bits are weak."""

Watch = Callable[[list["NorFlash"], bool], None]


class NorFlash:
    """`watch` gets, before each operation, one flash for each way in which power can fail in it.

    Of a program (True) of n words: the first 0, 1, ... n of them are written (0: cut before it, n: cut after
    it), and for each word those before it and some of its bits: 2n + 1 ways, the last two of which are also
    one flash that reads as whole first and as torn later. Of an erase (False): ERASE_OUTCOMES.
    `outcomes` counts them from what was programmed and erased, not from what `watch` has looked at.
    """

    def __init__(self, blocks: list[bytes], like: "NorFlash | None" = None) -> None:
        self.blocks = blocks
        self.block_bytes = len(blocks[0])
        self.size = len(blocks) * self.block_bytes
        self.watch: Watch | None = None
        self.programs = self.erases = self.words = 0
        self.refuses: set[int] = like.refuses if like else set()  # positions of blocks that raise OSError
        self.forgets: set[int] = like.forgets if like else set()  # and of those in which bits stay 1
        self._random: random.Random = like._random if like else random.Random(1)

    @classmethod
    def erased(cls, blocks: int, block_bytes: int) -> "NorFlash":
        return cls([b"\xff" * block_bytes] * blocks)

    @property
    def operations(self) -> int:
        return self.programs + self.erases

    @property
    def outcomes(self) -> int:
        """In how many ways power could have failed since this object was made."""
        return 2 * self.words + (1 + FADED) * self.programs + ERASE_OUTCOMES * self.erases

    def read(self, offset: int, buffer: bytearray | memoryview) -> None:
        position, at = divmod(offset, self.block_bytes)
        buffer[:] = self.blocks[position][at : at + len(buffer)]

    def program(self, offset: int, buffer: bytearray | memoryview) -> None:
        position, at = divmod(offset, self.block_bytes)
        if position in self.refuses:
            raise OSError(5)
        if position in self.forgets:
            return
        new = bytes(buffer)
        old = self.blocks[position]
        assert at % WORD_BYTES == len(new) % WORD_BYTES == 0 and at + len(new) <= self.block_bytes
        before = int.from_bytes(old[at : at + len(new)])
        assert int.from_bytes(new) & ~before == 0, "a 1 over a 0"
        if self.watch:
            self.watch(self._failed(position, self._torn(old, at, new)), True)
        self.programs += 1
        self.words += len(new) // WORD_BYTES
        self.blocks[position] = old[:at] + new + old[at + len(new) :]

    def erase(self, position: int) -> None:
        if position in self.refuses:
            raise OSError(5)
        if self.watch:
            self.watch(self._failed(position, self._half_erased(self.blocks[position])), False)
        self.erases += 1
        self.blocks[position] = b"\xff" * self.block_bytes

    def _failed(self, position: int, outcomes: Iterator[bytes]) -> "list[NorFlash]":
        failed = []
        for block in outcomes:
            blocks = self.blocks.copy()
            blocks[position] = block
            failed.append(NorFlash(blocks, self))
        return failed

    def _torn(self, old: bytes, at: int, new: bytes) -> Iterator[bytes]:
        for end in range(0, len(new) + 1, WORD_BYTES):
            head = old[:at] + new[:end]
            yield head + old[at + end :]
            if end < len(new):
                cleared = self._random.getrandbits(32) | int.from_bytes(new[end : end + WORD_BYTES])
                was = int.from_bytes(old[at + end : at + end + WORD_BYTES])
                yield head + (was & cleared).to_bytes(WORD_BYTES) + old[at + end + WORD_BYTES :]

    def _half_erased(self, old: bytes) -> Iterator[bytes]:
        size = self.block_bytes
        blank = b"\xff" * size
        bits = self._random.getrandbits(8 * size)
        yield old
        yield blank
        yield blank[: size // 2] + old[size // 2 :]
        yield old[: size // 2] + blank[size // 2 :]
        yield old[:HEADER_BYTES] + blank[HEADER_BYTES:]
        yield blank[:HEADER_BYTES] + old[HEADER_BYTES:]
        yield b"".join(
            (blank if at // WORD_BYTES % 2 else old)[at : at + WORD_BYTES]
            for at in range(0, size, WORD_BYTES)
        )
        yield (int.from_bytes(old) | bits).to_bytes(size)
        weak = self._random.randrange(size)  # all but a few bits of one byte
        yield blank[:weak] + old[weak : weak + 1] + blank[weak + 1 :]
