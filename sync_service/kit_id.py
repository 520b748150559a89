"""Kit ids: a number that people type, with a check character that catches what they mistype. Pure.

    HW-0001-T       series, number, check character

The check character is that of ISO 7064 MOD 37,36 over the letters and digits before it. It catches every
single wrong character and nearly every swap of two neighbours; unlike MOD 37-2 it needs no '*', which a topic
filter and a certificate's name are better without. Kits that were named before there were check characters
(HW-0001) have none and are taken as they are.
"""

import re

SERIES = re.compile(r"[A-Z]{2,4}")
_CHECKED = re.compile(r"([A-Z]{2,4})-([0-9]{4,6})-([A-Z0-9])")
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_M = len(_ALPHABET)
NUMBERS = 999_999
"""Six digits: a series of its own begins before they are used up."""


def kit_id(series: str, number: int) -> str:
    """The id of a Kit. Raises ValueError for a series or number that can't be."""
    if not SERIES.fullmatch(series):
        raise ValueError(f"a series of Kits is 2 to 4 letters, like HW, not {series!r}")
    if not 0 < number <= NUMBERS:
        raise ValueError(f"a Kit's number is 1 to {NUMBERS}, not {number}")
    stem = f"{series}-{number:04}"
    return f"{stem}-{check_character(stem)}"


def check_character(stem: str) -> str:
    """ISO 7064 MOD 37,36 over the letters and digits of `stem`."""
    product = _M
    for character in stem.replace("-", ""):
        product = (product + _ALPHABET.index(character)) % _M or _M
        product = product * 2 % (_M + 1)
    return _ALPHABET[(_M + 1 - product) % _M]


def mistake(kit: str) -> str | None:
    """Why this can't be the id on a label, as a sentence; None when nothing speaks against it."""
    match = _CHECKED.fullmatch(kit)
    if match is None or check_character(f"{match[1]}-{match[2]}") == match[3]:
        return None
    return f"{kit} is mistyped: its check character {match[3]!r} does not belong to {match[1]}-{match[2]}"


def number_of(kit: str, series: str) -> int:
    """The number of a Kit of this series; 0 when it belongs to none or another."""
    match = _CHECKED.fullmatch(kit)
    return int(match[2]) if match and match[1] == series else 0
