"""The development Hub's memory: a log of resources in SQLite, its indexes in RAM.

The one rule: an answer leaves the Hub only after `settle`, when everything that it has seen is on disk. So a
resource that the Hub has told anybody of, as created or as found, is still there after kill -9.

One row of the log holds the lines of one commit, one JSON resource a line, zlib-compressed; all who wait at
the same time share the commit. The price is that the indexes are built anew at start and live in RAM, which
suits a hub for demo, tests and bench.

A resource's key is the sequence of its first version, a number counted over all types. It is its FHIR id,
too.
"""

from __future__ import annotations

import asyncio
import sqlite3
import zlib
from array import array
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Self

import orjson

from hw.virtual.hub_validation import TYPES, Resource, claims

_SCHEMA = "create table if not exists log (first integer primary key, lines blob not null)"

# Unpacked rows kept for reading: a checker pages through them in order.
_CACHED_ROWS = 32

Token = tuple[str, str, str]


class Tokens(NamedTuple):
    """The search keys of one resource, each once."""

    identifiers: tuple[Token, ...]  # type, system, value
    postings: tuple[Token, ...]  # type, search parameter, value

    @classmethod
    def of(cls, resource: Resource) -> Self:
        """TypeError, KeyError or AttributeError if the resource is not shaped as FHIR."""
        return cls(identifiers_of(resource), postings_of(resource))


class Store:
    """Append-only resources with search by token. All runs in one event loop; only commits use a thread."""

    def __init__(self, path: Path | str) -> None:
        self._writer, self._reader = _connect(path), _connect(path)
        self._thread = ThreadPoolExecutor(1, "hub-commit")
        self._commit: asyncio.Task[None] | None = None
        self._in_flight: list[bytes] = []  # lines from `_durable` on that a commit is writing
        self._pending: list[bytes] = []  # the lines after those
        self._durable = self._next = 1  # sequences: first not on disk, first not taken
        self._firsts = array("Q")  # first sequence of each row
        self._latest: dict[int, tuple[int, int]] = {}  # key -> its newest sequence and version, if updated
        self._keys = {kind: array("Q") for kind in TYPES}
        self._identified: defaultdict[tuple[str, str], dict[str, tuple[int, ...]]] = defaultdict(dict)
        self._postings: defaultdict[Token, array[int]] = defaultdict(lambda: array("Q"))
        self._row = lru_cache(_CACHED_ROWS)(self._read_row)
        self._load()

    @property
    def next_key(self) -> int:
        """The key of the resource that is created next."""
        return self._next

    def append(self, line: bytes, resource: Resource, tokens: Tokens) -> None:
        """Take one version, serialised as `line`. A resource whose id is not `next_key` is an update."""
        self._pending.append(line)
        self._index(resource, tokens)

    async def settle(self) -> None:
        """Return when all that was appended is on disk; sqlite3.Error for ever once the disk has refused."""
        target = self._next
        while self._durable < target:
            if self._commit is None:
                self._commit = asyncio.create_task(self._commit_pending())
            # Shielded: a request that is cancelled takes nobody else's commit with it.
            await asyncio.shield(self._commit)

    def has(self, kind: str, key: int) -> bool:
        keys = self._keys[kind]
        at = bisect_right(keys, key)
        return at > 0 and keys[at - 1] == key

    def version(self, key: int) -> int:
        return self._latest.get(key, (key, 1))[1]

    def lines(self, keys: Iterable[int]) -> list[bytes]:
        """The latest version of each, as JSON."""
        return [self._line(self._sequence(key)) for key in keys]

    def of_type(self, kind: str) -> array[int]:
        return self._keys[kind]

    def posted(self, kind: str, parameter: str, value: str) -> array[int]:
        """Keys by `patient` (Patient/7), `code` (system|code; |code: any system) or `_profile` (URL)."""
        if not value.startswith("|"):
            return self._postings.get((kind, parameter, value), array("Q"))
        names = [name for name in self._postings if name[:2] == (kind, parameter) and name[2].endswith(value)]
        return array("Q", sorted({key for name in names for key in self._postings[name]}))

    def identified(self, kind: str, system: str, value: str) -> tuple[int, ...]:
        """Keys of the resources that carry this identifier; a system "" is any system."""
        if system:
            held = self._identified.get((kind, system))
            return held.get(value, ()) if held else ()
        each = [held for (owner, _), held in self._identified.items() if owner == kind]
        return tuple(sorted({key for held in each for key in held.get(value, ())}))

    def by_update(self, keys: Iterable[int]) -> list[int]:
        """The same keys, least recently updated first."""
        return sorted(keys, key=self._sequence)

    def close(self) -> None:
        self._thread.shutdown()
        self._writer.close()
        self._reader.close()

    async def _commit_pending(self) -> None:
        upto, self._in_flight, self._pending = self._next, self._pending, []
        loop = asyncio.get_running_loop()
        # When this raises, the failed task stays in `_commit` and every later `settle` raises it again: the
        # indexes know resources that the disk does not, so nothing said from here on would be true.
        await loop.run_in_executor(self._thread, self._write_row, self._durable, self._in_flight)
        self._firsts.append(self._durable)
        self._durable, self._in_flight, self._commit = upto, [], None

    def _write_row(self, first: int, lines: list[bytes]) -> None:
        # Level 1 takes a twelfth of the space and less time than writing the rest of it would.
        self._writer.execute("insert into log values (?, ?)", (first, zlib.compress(b"\n".join(lines), 1)))

    def _read_row(self, first: int) -> list[bytes]:
        (packed,) = self._reader.execute("select lines from log where first = ?", (first,)).fetchone()
        return zlib.decompress(packed).split(b"\n")

    def _sequence(self, key: int) -> int:
        return self._latest.get(key, (key, 1))[0]

    def _line(self, sequence: int) -> bytes:
        waiting = sequence - self._durable
        if waiting < 0:
            first = self._firsts[bisect_right(self._firsts, sequence) - 1]
            return self._row(first)[sequence - first]
        if waiting < len(self._in_flight):
            return self._in_flight[waiting]
        return self._pending[waiting - len(self._in_flight)]

    def _load(self) -> None:
        for (first,) in self._reader.execute("select first from log order by first").fetchall():
            lines = self._row(first)
            self._firsts.append(first)
            self._durable = first + len(lines)
            for line in lines:
                resource = orjson.loads(line)
                self._index(resource, Tokens.of(resource))

    def _index(self, resource: Resource, tokens: Tokens) -> None:
        sequence, key = self._next, int(resource["id"])
        put: Callable[[array[int], int], None] = array.append
        if key == sequence:
            self._keys[resource["resourceType"]].append(key)
        else:
            self._unindex(Tokens.of(orjson.loads(self._line(self._sequence(key)))), key)
            self._latest[key] = sequence, int(resource["meta"]["versionId"])
            put = insort
        for kind, system, value in tokens.identifiers:
            held = self._identified[kind, system]
            held[value] = (*held.get(value, ()), key)
        for posting in tokens.postings:
            put(self._postings[posting], key)
        self._next = sequence + 1

    def _unindex(self, tokens: Tokens, key: int) -> None:
        for kind, system, value in tokens.identifiers:
            held = self._identified[kind, system]
            held[value] = tuple(other for other in held[value] if other != key)
        for posting in tokens.postings:
            self._postings[posting].remove(key)


def identifiers_of(resource: Resource) -> tuple[Token, ...]:
    """(type, system, value) of each complete business identifier, each once."""
    kind = resource["resourceType"]
    # Keys of a dict: each once, and hashed here, so that indexing cannot fail half-way.
    found: dict[Token, None] = {}
    for one in resource.get("identifier", ()):
        if "system" in one and "value" in one:
            found[kind, one["system"], one["value"]] = None
    return tuple(found)


def postings_of(resource: Resource) -> tuple[Token, ...]:
    """(type, search parameter, value) of all else that a resource is found by, each once."""
    kind = resource["resourceType"]
    found: dict[Token, None] = {}
    if subject := resource.get("subject", {}).get("reference"):
        found[kind, "patient", subject] = None
    for coding in resource.get("code", {}).get("coding", ()):
        found[kind, "code", f"{coding.get('system', '')}|{coding.get('code', '')}"] = None
    for url in claims(resource):
        found[kind, "_profile", url] = None
    return tuple(found)


def _connect(path: Path | str) -> sqlite3.Connection:
    # Autocommit: one insert is one transaction. FULL syncs the WAL at each; NORMAL does not.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")
    connection.execute(_SCHEMA)
    return connection
