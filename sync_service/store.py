"""The Store: SQLite with one writer, group commit, and readers that see one moment.

The one rule: what `write` has returned is on disk (P3). Functions that arrive while a commit runs share the
next transaction, each inside a savepoint of its own: one that fails undoes nothing of the others. When the
disk is full, the file locked or broken, the whole transaction fails with StoreUnavailable.

StoreError                what a Store can't do
+-- StoreUnavailable      not now: nothing was written, try again
"""

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

SCHEMA_VERSION = 4
MIGRATIONS = {
    1: (  # a Kit's life at the bench, and whom an entry of the audit log concerns; kinds of delivery
        "alter table kit add column life text not null default 'provisioned'",
        "alter table kit add column life_ms integer",
        "alter table kit add column labelled_ms integer",
        "alter table kit add column wiped_ms integer",
        "alter table audit add column kit text",
        "update kit set life = 'revoked' where state = 'revoked'",
        """update kit set life = 'shipped' where state = 'active' and exists (
            select 1 from assignment where assignment.kit = kit.kit and end_ms is null)""",
        """update audit set kit = (
            select kit.kit from kit where audit.detail = kit.kit or audit.detail like kit.kit || ' %')""",
        "alter table outbox add column kind text not null default 'create'",
        "drop index if exists reading_content",
    ),
    2: (),  # not_emptied is new altogether
    3: (),  # accepted_bond too
}
"""What turns a Store of this version into one of the next, before the schema adds what is new altogether."""
BUSY_TIMEOUT_MS = 5_000
"""Another process (the command line) holds the write lock for milliseconds: after 5 s something is wrong."""
MAX_GROUP = 256
"""Functions per transaction: bounds how long the first of a group waits for the last."""
CHECKPOINT_PAGES = 4_000
"""16 MB of WAL between checkpoints instead of 4: each syncs twice, and recovery stays below a second."""

_WORLD = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOTADB,
}
"""Primary result codes that say something about the disk and not about the statement."""


class StoreError(Exception):
    """The Store can't be opened, or can't do what was asked; the sentence is for the operator."""


class StoreUnavailable(StoreError):
    """Nothing was written; it may work later."""


class _Write(NamedTuple):
    work: Work[Any]
    done: asyncio.Future[Any]


class _Ended(NamedTuple):
    """How one function ended."""

    done: asyncio.Future[Any]
    result: Any
    error: BaseException | None


class Store:
    """One open Store; make it with `Store.open`. Use as an async context manager, or `await close()`."""

    def __init__(self, path: Path, writer: sqlite3.Connection, reader: sqlite3.Connection) -> None:
        self.path = path
        self.trouble: str | None = None  # why the last commit failed; None: it went well
        self._writer, self._reader = writer, reader
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._closed = False
        self._reads = ThreadPoolExecutor(1, thread_name_prefix="store-reader")
        self._thread = threading.Thread(target=self._write_groups, name="store-writer", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the Store, made when it is not there. Raises StoreError, StoreUnavailable."""
        writer = connect(path)
        try:
            reader = connect(path)
        except StoreError:
            writer.close()
            raise
        reader.execute("pragma query_only = on")
        return cls(path, writer, reader)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Finish what is queued, then close. What comes after fails with StoreUnavailable."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            await asyncio.to_thread(self._join)

    async def write(self, work: Work[T]) -> T:
        """Run `work` in a transaction; return its result after the commit.

        Raises what `work` raises, or StoreUnavailable; then nothing of it is kept. `work` runs in another
        thread. A caller that is cancelled does not know whether its work was committed.
        """
        if self._closed:
            raise StoreUnavailable("the Store is closed")
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put(_Write(work, done))
        return await done

    async def read(self, work: Work[T]) -> T:
        """Run `work` on a connection that sees one moment and can't write. Raises StoreUnavailable."""
        if self._closed:
            raise StoreUnavailable("the Store is closed")
        return await asyncio.get_running_loop().run_in_executor(self._reads, partial(self._read, work))

    def _read(self, work: Work[T]) -> T:
        try:
            self._reader.execute("begin")
            try:
                return work(self._reader)
            finally:
                with suppress(sqlite3.Error):
                    self._reader.rollback()
        except sqlite3.Error as error:
            raise _unavailable(error) or error from None

    def _join(self) -> None:
        self._thread.join()
        self._reads.shutdown()
        self._reader.close()

    # --- The writer thread ----------------------------------------------------------------------------------

    def _write_groups(self) -> None:
        open_for_work = True
        while open_for_work:
            group = []
            for write in self._next_group():
                if write is None:
                    open_for_work = False
                else:
                    group.append(write)
            if group:
                _resolve(self._commit(group))
        self._writer.close()

    def _next_group(self) -> list[_Write | None]:
        """Wait for one function, then take all that have come by now."""
        group = [self._queue.get()]
        with suppress(queue.Empty):
            while len(group) < MAX_GROUP:
                group.append(self._queue.get_nowait())
        return group

    def _commit(self, group: list[_Write]) -> list[_Ended]:
        try:
            self._writer.execute("begin immediate")
            ended = [self._run(write) for write in group]
            self._writer.execute("commit")
        except sqlite3.Error as error:
            unavailable = _unavailable(error) or StoreUnavailable(str(error))
            self.trouble = str(unavailable)
            with suppress(sqlite3.Error):
                self._writer.rollback()
            return [_Ended(write.done, None, unavailable) for write in group]
        self.trouble = None
        return ended

    def _run(self, write: _Write) -> _Ended:
        """Run one function in its savepoint. Raises sqlite3.Error when the whole transaction is lost."""
        db = self._writer
        db.execute("savepoint work")
        try:
            result = write.work(db)
        except BaseException as error:
            if isinstance(error, sqlite3.Error) and _unavailable(error):
                raise
            db.execute("rollback to work")
            db.execute("release work")
            return _Ended(write.done, None, error)
        db.execute("release work")
        return _Ended(write.done, result, None)


def connect(path: Path) -> sqlite3.Connection:
    """A connection with the schema in place, for any thread. Raises StoreError, StoreUnavailable."""
    try:
        _create(path)
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=512)
    except (sqlite3.Error, OSError) as error:
        raise StoreUnavailable(f"{path}: {error}") from None
    try:
        _prepare(db)
    except sqlite3.Error as error:
        db.close()
        raise StoreUnavailable(f"{path}: {error}") from None
    except StoreError:
        db.close()
        raise
    return db


def copy(path: Path, to: Path) -> None:
    """Copy the Store to a new file, as it is at one moment. Raises StoreError, StoreUnavailable."""
    with closing(connect(path)) as db:
        _copy(db, to)


def restore(path: Path, backup: Path, suffix: str) -> Path | None:
    """Put a copy of a backup in the place of the Store; return where that is now, None: there was none.

    Nobody may have the Store open. Its WAL goes with it: SQLite would play it back upon the other file.
    Raises StoreError, StoreUnavailable; then the Store is where it was.
    """
    if not backup.is_file():
        raise StoreError(f"{backup} is not there")
    new, replaced = path.with_name(path.name + ".new"), path.with_name(path.name + suffix)
    new.unlink(missing_ok=True)
    # Immutable: the backup may lie where nobody can write, and stays as it is.
    try:
        with closing(sqlite3.connect(f"{backup.absolute().as_uri()}?immutable=1", uri=True)) as db:
            _copy(db, new)
        connect(new).close()  # of an earlier release, it is brought to this one's schema
    except StoreError as error:
        new.unlink(missing_ok=True)
        raise type(error)(f"{backup}: {error}") from None
    for end in ("-wal", "-shm", ""):
        if (part := path.with_name(path.name + end)).exists():
            part.rename(replaced.with_name(replaced.name + end))
    new.rename(path)
    return replaced if replaced.exists() else None


def _copy(db: sqlite3.Connection, to: Path) -> None:
    """Copy an open Store to a file that is made for it, for nobody else to read."""
    try:
        (version,) = db.execute("pragma user_version").fetchone()
        if not version:
            raise StoreError("this is no Store")
        os.close(os.open(to, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        raise StoreError(f"{to} is there already: name a new file") from None
    except (sqlite3.Error, OSError) as error:
        raise StoreUnavailable(f"{to}: {error}") from None
    try:
        with closing(sqlite3.connect(to)) as copied:
            db.backup(copied)
            (found,) = copied.execute("pragma quick_check(1)").fetchone()
            if found != "ok":
                raise StoreError(f"it is broken: {found}")
    except BaseException as error:
        to.unlink()
        if isinstance(error, sqlite3.Error):
            raise StoreUnavailable(f"{to}: {error}") from None
        raise


def _create(path: Path) -> None:
    """Make the file if it is not there, for nobody else to read; the WAL gets the mode of this file.

    A file that is there is never opened: closing it would drop the locks that SQLite holds on it in this
    process, and another process that closes the Store would then delete the WAL under us.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _prepare(db: sqlite3.Connection) -> None:
    db.execute(f"pragma busy_timeout = {BUSY_TIMEOUT_MS}")
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = full")
    db.execute("pragma foreign_keys = on")
    db.execute("pragma cache_size = -65536")
    db.execute(f"pragma wal_autocheckpoint = {CHECKPOINT_PAGES}")
    (version,) = db.execute("pragma user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise StoreError(f"the Store has version {version}, this release knows {SCHEMA_VERSION}: too old")
    if version < SCHEMA_VERSION:
        _migrate(db)


def _migrate(db: sqlite3.Connection) -> None:
    """Bring a Store of an earlier version, or a new one, to this release's: all of it or nothing."""
    db.execute("begin immediate")
    try:
        (version,) = db.execute("pragma user_version").fetchone()  # another process may have done it by now
        for number in range(version or SCHEMA_VERSION, SCHEMA_VERSION):
            for statement in MIGRATIONS[number]:
                db.execute(statement)
        for statement in _statements(resources.files("sync_service").joinpath("schema.sql").read_text()):
            db.execute(statement)
        db.execute(f"pragma user_version = {SCHEMA_VERSION}")
    except BaseException:
        db.rollback()
        raise
    db.commit()


def _statements(script: str) -> list[str]:
    """The statements of a script; `executescript` would end the transaction that they belong to."""
    found, rest = [], ""
    for piece in script.splitlines(keepends=True):
        rest += piece
        if sqlite3.complete_statement(rest):
            found.append(rest)
            rest = ""
    return found


def _unavailable(error: sqlite3.Error) -> StoreUnavailable | None:
    """The error as one of the world; None when the statement itself is at fault."""
    code = getattr(error, "sqlite_errorcode", None)
    return StoreUnavailable(str(error)) if code is not None and code & 0xFF in _WORLD else None


def _resolve(ended: list[_Ended]) -> None:
    with suppress(RuntimeError):  # the loop has been closed: nobody waits any more
        ended[0].done.get_loop().call_soon_threadsafe(_tell, ended)


def _tell(ended: list[_Ended]) -> None:
    for done, result, error in ended:
        if done.done():
            continue  # its caller was cancelled
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)


# --- What every part writes ---------------------------------------------------------------------------------

_COUNT = "insert into counter values (?, ?, ?) on conflict do update set n = n + excluded.n"
_AUDIT = "insert into audit (at_ms, who, action, detail, kit) values (?, ?, ?, ?, ?)"


def utc_ms(db: sqlite3.Connection) -> int:
    """What the database's own clock shows."""
    (days,) = db.execute("select julianday('now') - 2440587.5").fetchone()
    return int(days * 86_400_000)


def count(db: sqlite3.Connection, kit: str, name: str, n: int = 1) -> None:
    """Add to a counter of the Kit, or of the service itself (kit '')."""
    db.execute(_COUNT, (kit, name, n))


def audit(
    db: sqlite3.Connection, at_ms: int, who: str, action: str, detail: str, kit: str | None = None
) -> None:
    """Note who changed what, and of which Kit. No patient detail beyond the Hub's reference."""
    db.execute(_AUDIT, (at_ms, who, action, detail, kit))
