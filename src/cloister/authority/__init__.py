"""The key authority: holds pad keys, issues unblinding terms, counts their leakage.

`connect` gives a client of an authority that is served over HTTPS; `Authority` is one in process.
Names are loaded when they are first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloister.authority.authority import Authority
    from cloister.authority.client import AuthorityClient, connect

__all__ = ["Authority", "AuthorityClient", "connect"]

_HOMES = {"Authority": "authority", "AuthorityClient": "client", "connect": "client"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"cloister.authority.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
