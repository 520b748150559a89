"""Technicians: who may use the Station's API. A token is shown once; the Store keeps its SHA-256 alone.

A token has 256 random bits, so a plain hash is enough: there is nothing to guess from. The look-up goes by
the hash, whose time tells nothing about the token.
"""

import hashlib
import re
import secrets
import sqlite3
from typing import Any

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_TOKEN_BYTES = 32


class TechnicianError(Exception):
    """What can't be done; the sentence is for the operator."""


def add(db: sqlite3.Connection, name: str, now_ms: int) -> str:
    """A new technician, or a new token for one whose token was revoked; return it. Raises TechnicianError."""
    if not _NAME.fullmatch(name):
        raise TechnicianError(
            f"a technician's name is 1 to 40 letters, digits, '.', '_' and '-', not {name!r}"
        )
    row = db.execute("select revoked_ms from technician where name = ?", (name,)).fetchone()
    if row and row[0] is None:
        raise TechnicianError(f"technician {name} has a token already: revoke it first")
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    db.execute(_PUT, (name, _digest(token), now_ms))
    return token


def revoke(db: sqlite3.Connection, name: str, now_ms: int) -> None:
    """Refuse the token from now on. Raises TechnicianError."""
    update = "update technician set revoked_ms = ? where name = ? and revoked_ms is null"
    if not db.execute(update, (now_ms, name)).rowcount:
        raise TechnicianError(f"technician {name} has no token")


def whose(db: sqlite3.Connection, token: str) -> str | None:
    """The name of the technician with this token; None: nobody's, or revoked."""
    query = "select name from technician where token = ? and revoked_ms is null"
    row: tuple[str] | None = db.execute(query, (_digest(token),)).fetchone()
    return row[0] if row else None


def everybody(db: sqlite3.Connection) -> list[dict[str, Any]]:
    """Everybody who has or had a token."""
    rows = db.execute("select name, created_ms, revoked_ms from technician order by name")
    return [dict(zip(("name", "created_ms", "revoked_ms"), row, strict=True)) for row in rows]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


_PUT = """
    insert into technician (name, token, created_ms) values (?, ?, ?)
    on conflict (name) do update set
        token = excluded.token, created_ms = excluded.created_ms, revoked_ms = null"""
