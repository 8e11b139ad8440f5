"""Bearer tokens: who may ask for what. Only their hashes are kept."""

import contextlib
import hashlib
import hmac
import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from cloister.authority.database import Database, connect
from cloister.crypto.csprng import Csprng
from cloister.errors import InputError

Role = Literal["server", "trusted", "client"]
ROLES: tuple[Role, ...] = get_args(Role)
ID_BYTES = 8
SECRET_BYTES = 32
_PATTERN = re.compile(r"clo_(server|trusted|client)_([0-9a-f]{16})_([0-9a-f]{64})")


@dataclass(frozen=True)
class Caller:
    """Who presented a token."""

    role: Role
    name: str


def issue(path: Path, role: str, *, name: str, rng: Csprng) -> str:
    """Make a token and record its hash; it is told once, here.

    Secret   result
    Raises   InputError
    """
    if role not in ROLES:
        raise InputError(f"--role {role}: one of {', '.join(ROLES)}")
    if not name.isprintable() or len(name) > 100:
        raise InputError("--name: up to 100 printable characters")
    token_id, secret = rng.random_bytes(ID_BYTES).hex(), rng.random_bytes(SECRET_BYTES).hex()
    token = f"clo_{role}_{token_id}_{secret}"
    with contextlib.closing(connect(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "INSERT INTO tokens VALUES (?, ?, ?, ?)", (token_id, role, name, _hash(token))
        )
        connection.execute("COMMIT")
    return token


def identify(database: Database, token: str | None) -> Caller:
    """Who presents this token.

    Time     the comparison of hashes is constant; the id is public
    Raises   InputError when nobody does
    """
    match = _PATTERN.fullmatch(token or "")
    if match is not None:
        with database.reading() as connection:
            row = _row(connection, match[2])
        if row is not None and hmac.compare_digest(row[2], _hash(match[0])):
            return Caller(cast(Role, row[0]), row[1])
    raise InputError("the token is missing or unknown; make one with `cloister authority token`")


def _row(connection: sqlite3.Connection, token_id: str) -> tuple[str, str, bytes] | None:
    found: tuple[str, str, bytes] | None = connection.execute(
        "SELECT role, name, hash FROM tokens WHERE token_id = ?", (token_id,)
    ).fetchone()
    return found


def _hash(token: str) -> bytes:
    # A token has 256 random bits, so that a plain hash cannot be searched.
    return hashlib.sha256(token.encode()).digest()
