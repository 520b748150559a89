import asyncio
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sync_service import store as module
from sync_service.store import Store, StoreError, StoreUnavailable, connect, count


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store.open(tmp_path / "store.sqlite") as opened:
        yield opened


def counted(db: sqlite3.Connection, name: str = "n") -> int:
    row = db.execute("select n from counter where name = ?", (name,)).fetchone()
    return int(row[0]) if row else 0


async def test_what_write_has_returned_another_connection_can_read(store: Store) -> None:
    await store.write(lambda db: count(db, "", "n"))
    other = sqlite3.connect(store.path)
    assert counted(other) == 1
    other.close()


async def test_functions_queued_during_a_commit_share_the_next_one(store: Store) -> None:
    statements: list[str] = []
    go_on = threading.Event()

    def hold(db: sqlite3.Connection) -> None:
        db.set_trace_callback(statements.append)
        go_on.wait()

    writes = [asyncio.ensure_future(store.write(hold))]
    writes += [asyncio.ensure_future(store.write(lambda db: count(db, "", "n"))) for _ in range(50)]
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(*writes)
    await store.write(lambda db: db.set_trace_callback(None))
    # The first may have begun alone, the other fifty are one transaction at most, and the last is its own.
    assert statements.count("commit") <= 2
    assert await store.read(counted) == 50


async def test_a_function_that_fails_undoes_nothing_of_the_others(store: Store) -> None:
    def fail(db: sqlite3.Connection) -> None:
        count(db, "", "n", 100)
        raise KeyError("ours")

    go_on = threading.Event()
    first = asyncio.ensure_future(store.write(lambda db: go_on.wait()))
    works = [lambda db: count(db, "", "n"), fail, lambda db: count(db, "", "n")]
    writes = [asyncio.ensure_future(store.write(work)) for work in works]
    await asyncio.sleep(0)
    go_on.set()
    await first
    ended = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(one) for one in ended] == [type(None), KeyError, type(None)]
    assert await store.read(counted) == 2


async def test_a_wrong_statement_is_not_the_world(store: Store) -> None:
    with pytest.raises(sqlite3.OperationalError):
        await store.write(lambda db: db.execute("selec"))
    assert store.trouble is None


async def test_a_lock_held_elsewhere_fails_the_write_and_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUSY_TIMEOUT_MS", 20)
    async with Store.open(tmp_path / "store.sqlite") as store:
        other = sqlite3.connect(store.path, isolation_level=None)
        other.execute("begin immediate")
        with pytest.raises(StoreUnavailable):
            await store.write(lambda db: count(db, "", "n"))
        assert store.trouble == "database is locked"
        other.execute("rollback")
        other.close()
        await store.write(lambda db: count(db, "", "n"))
        assert store.trouble is None
        assert await store.read(counted) == 1


async def test_a_full_disk_fails_the_whole_group_and_keeps_nothing_of_it(store: Store) -> None:
    def fill(db: sqlite3.Connection) -> None:
        for i in range(1000):
            count(db, "", f"{i:01000}")

    await store.write(lambda db: db.execute("pragma max_page_count = 40").fetchone())
    go_on = threading.Event()
    first = asyncio.ensure_future(store.write(lambda db: go_on.wait()))
    writes = [asyncio.ensure_future(store.write(work)) for work in (lambda db: count(db, "", "n"), fill)]
    await asyncio.sleep(0)
    go_on.set()
    ended = await asyncio.gather(*writes, return_exceptions=True)
    await asyncio.gather(first, return_exceptions=True)
    assert isinstance(ended[1], StoreUnavailable)
    assert store.trouble == "database or disk is full"
    # The first shared its transaction, or had one before it: either it said so and is there, or neither.
    assert await store.read(counted) == (0 if isinstance(ended[0], StoreUnavailable) else 1)
    await store.write(lambda db: db.execute("pragma max_page_count = 1000000").fetchone())
    await store.write(fill)
    assert store.trouble is None


async def test_a_broken_page_is_store_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    async with Store.open(path) as store:
        query = "select rootpage from sqlite_master where name = 'counter'"
        (page,) = await store.read(lambda db: db.execute(query).fetchone())
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xa5" * 4096)
    async with Store.open(path) as store:
        with pytest.raises(StoreUnavailable):
            await store.write(lambda db: count(db, "", "n"))
        assert store.trouble


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreUnavailable, match=r"store\.sqlite"):
        Store.open(tmp_path / "store.sqlite")
    with pytest.raises(StoreUnavailable):
        Store.open(tmp_path / "no folder/store.sqlite")


def test_a_store_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    db = connect(tmp_path / "store.sqlite")
    db.execute("pragma user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="version 99"):
        Store.open(tmp_path / "store.sqlite")


def test_nobody_else_may_read_the_file(tmp_path: Path) -> None:
    connect(tmp_path / "store.sqlite").close()
    assert (tmp_path / "store.sqlite").stat().st_mode & 0o077 == 0


async def test_a_read_can_not_write(store: Store) -> None:
    with pytest.raises(StoreUnavailable):
        await store.read(lambda db: count(db, "", "n"))


async def test_a_read_sees_one_moment(store: Store) -> None:
    await store.write(lambda db: count(db, "", "n"))
    read_once, go_on = threading.Event(), threading.Event()

    def twice(db: sqlite3.Connection) -> tuple[int, int]:
        before = counted(db)
        read_once.set()
        go_on.wait()
        return before, counted(db)

    reading = asyncio.ensure_future(store.read(twice))
    await asyncio.to_thread(read_once.wait)
    await store.write(lambda db: count(db, "", "n"))
    go_on.set()
    assert await reading == (1, 1)
    assert await store.read(counted) == 2


async def test_close_finishes_what_is_queued(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store.sqlite")
    writes = [asyncio.ensure_future(store.write(lambda db: count(db, "", "n"))) for _ in range(20)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*writes)
    with pytest.raises(StoreUnavailable):
        await store.write(lambda db: count(db, "", "n"))
    db = connect(tmp_path / "store.sqlite")
    assert counted(db) == 20
    db.close()


WRITES_FOR_EVER = """
import asyncio, sys
from pathlib import Path
from sync_service.store import Store, count

async def main():
    store = Store.open(Path(sys.argv[1]))
    n = 0
    while True:
        await asyncio.gather(*(store.write(lambda db: count(db, "", "n")) for _ in range(7)))
        n += 7
        print(n, flush=True)

asyncio.run(main())
"""


def test_kill_9_loses_nothing_that_write_has_returned(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    process = subprocess.Popen([sys.executable, "-c", WRITES_FOR_EVER, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(30)]
    process.kill()
    lines += process.stdout.readlines()
    process.wait()
    process.stdout.close()
    db = connect(path)
    assert counted(db) >= int(lines[-1]) > 0
    db.close()


COUNTS_ONCE = """
import sys
from pathlib import Path
from sync_service.store import connect, count

db = connect(Path(sys.argv[1]))
count(db, "", "n")
db.close()
"""


async def test_what_another_process_has_written_and_closed_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    connect(path).close()  # the file is there when the service opens it twice, to write and to read
    async with Store.open(path) as store:
        for n in (1, 2):
            other = await asyncio.create_subprocess_exec(sys.executable, "-c", COUNTS_ONCE, str(path))
            assert await other.wait() == 0
            assert await store.write(counted) == n
            assert await store.read(counted) == n
