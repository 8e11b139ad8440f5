"""Bearer tokens: the role of each caller. Only their hashes are kept.

A token is for one data set, or for all of them. A revoked token opens nothing any more, also at an
authority that is serving, because the authority looks up the token of every request.
"""

import hashlib
import hmac
import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from cloister.authority.database import Database, changing
from cloister.base.rng import Csprng
from cloister.data.info import NAME
from cloister.errors import FunctionError, InputError

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
    dataset: str | None = None
    token_id: str = ""

    def check(self, dataset: str) -> None:
        """Refuse a data set that the token is not for.

        Raises   FunctionError
        """
        if self.dataset is not None and dataset != self.dataset:
            raise FunctionError(
                f"this token is for data set {self.dataset}, not {dataset}; ask for another token"
            )


def issue(path: Path, role: str, *, name: str, rng: Csprng, dataset: str | None = None) -> str:
    """Make a token and record its hash; only this function returns the token.

    dataset   the only one it is for, which may be made later; None: all
    Secret   result
    Raises   InputError
    """
    if role not in ROLES:
        raise InputError(f"--role {role}: one of {', '.join(ROLES)}")
    if not name.isprintable() or len(name) > 100:
        raise InputError("--name: up to 100 printable characters")
    if dataset is not None and not NAME.fullmatch(dataset):
        raise InputError(f"--dataset {dataset}: is no name of a data set")
    token_id, secret = rng.random_bytes(ID_BYTES).hex(), rng.random_bytes(SECRET_BYTES).hex()
    token = f"clo_{role}_{token_id}_{secret}"
    with changing(path) as connection:
        connection.execute(
            "INSERT INTO tokens VALUES (?, ?, ?, ?, ?)",
            (token_id, role, name, _hash(token), dataset),
        )
    return token


def revoke(path: Path, name: str) -> int:
    """Forget all tokens that were made under a name; gives how many.

    Raises   InputError when there are none
    """
    count = 0
    # Tokens without a name are not revoked together.
    if name:
        with changing(path) as connection:
            count = connection.execute("DELETE FROM tokens WHERE name = ?", (name,)).rowcount
    if not count:
        raise InputError(f"--revoke {name}: no token has this name")
    return int(count)


def is_token(text: str) -> bool:
    """Whether a text has the form of a token."""
    return _PATTERN.fullmatch(text) is not None


def identify(database: Database, token: str | None) -> Caller:
    """Who presents this token.

    Time     the comparison of hashes is constant; the id is public
    Raises   InputError when no caller has it
    """
    match = _PATTERN.fullmatch(token or "")
    if match is not None:
        with database.asking() as connection:
            row = _row(connection, match[2])
        if row is not None and hmac.compare_digest(row[2], _hash(match[0])):
            return Caller(cast(Role, row[0]), row[1], row[3], match[2])
    raise InputError("the token is missing or unknown; make one with `cloister authority token`")


_Row = tuple[str, str, bytes, str | None]


def _row(connection: sqlite3.Connection, token_id: str) -> _Row | None:
    found: _Row | None = connection.execute(
        "SELECT role, name, hash, dataset FROM tokens WHERE token_id = ?", (token_id,)
    ).fetchone()
    return found


def _hash(token: str) -> bytes:
    # A token has 256 random bits, so that a plain hash cannot be searched.
    return hashlib.sha256(token.encode()).digest()
