"""What a trusted runtime was started with: attested before a caller sends or a broker releases.

    canonical JSON: keys sorted, no spaces, ASCII

A measurement says which code a machine started; the manifest says with which arguments and for
which bundle. Its digest enters the handshake, so evidence of one start is none of another. The
environment of the process has to be empty: a variable can have code loaded that no measurement
shows.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cloister.base.reading import parsing
from cloister.base.typed_json import from_json
from cloister.errors import AttestationError, InputError
from cloister.wire.process import start_over

MAX_MANIFEST_BYTES = 16384
ISOLATED = ("-I", "-X", "utf8", "-m", "cloister")
"""How the interpreter is started: no variable, no folder of the user and no current folder says
what it imports."""
_ENVIRONMENT_FILE = Path("/proc/self/environ")
MAX_ENVIRONMENT_BYTES = 1 << 22


@dataclass(frozen=True)
class RuntimeManifest:
    """The start of one runtime.

    version       of Cloister
    arguments     of the interpreter, as the kernel was given them
    environment   as the kernel was given it
    bundle        the id of the bundle it runs, in hexadecimal digits; empty: plans of its clients
    vendor        the public key whose bundles and tickets it accepts; empty without a bundle
    license       of its ticket; empty without one
    """

    version: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    bundle: str = ""
    vendor: str = ""
    license: str = ""

    @staticmethod
    def of_this_process(version: str, **more: str) -> "RuntimeManifest":
        """The manifest of the process that asks.

        more   bundle, vendor, license

        Raises   AttestationError when it has an environment
        """
        made = RuntimeManifest(version, tuple(sys.orig_argv), first_environment(), **more)
        made.require_empty_environment()
        return made

    def to_bytes(self) -> bytes:
        """The canonical bytes.

        Raises   InputError when they are too long to be sent
        """
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()
        if len(text) > MAX_MANIFEST_BYTES:
            raise InputError(
                f"manifest: the command line has {len(text)} B, of {MAX_MANIFEST_BYTES}; shorten it"
            )
        return text

    @classmethod
    def from_bytes(cls, data: bytes) -> "RuntimeManifest":
        """Inverse of `to_bytes`.

        Raises   AttestationError, also for a runtime that has an environment
        """
        if len(data) > MAX_MANIFEST_BYTES:
            raise AttestationError(f"manifest: has more than {MAX_MANIFEST_BYTES} B")
        with parsing("manifest: cannot be read", kind=AttestationError):
            try:
                found = from_json(cls, json.loads(data), where="manifest")
            except InputError as error:
                raise AttestationError(str(error)) from None
            if found.to_bytes() != data:
                raise AttestationError("manifest: is not in its canonical form")
        found.require_empty_environment()
        return found

    @property
    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes: what a policy lists under `[runtime]`."""
        return hashlib.sha256(self.to_bytes()).digest()

    def require_empty_environment(self) -> None:
        """Refuse a runtime that was started with a variable.

        Raises   AttestationError naming the first
        """
        if self.environment:
            raise AttestationError(
                f"manifest: environment: expected none, found {min(self.environment)}; start the "
                "runtime by `cloister trusted serve`, which empties it"
            )


def first_environment() -> dict[str, str]:
    """The environment that this process was started with; what it has set itself is not there.

    Raises   AttestationError where the kernel does not tell
    """
    with parsing(f"{_ENVIRONMENT_FILE}: cannot be read", kind=AttestationError, quoted=False):
        with _ENVIRONMENT_FILE.open("rb") as file:
            data = file.read(MAX_ENVIRONMENT_BYTES)
        entries = (entry.partition(b"=") for entry in data.split(b"\0") if entry)
        return {os.fsdecode(name): os.fsdecode(value) for name, _, value in entries}


def restart_isolated(arguments: Sequence[str]) -> None:
    """Go on in an isolated process with an empty environment: start this program anew if needed.

    arguments   of the command line, for `python -m cloister`

    Raises   OSError
    """
    if tuple(sys.orig_argv[1 : 1 + len(ISOLATED)]) != ISOLATED:
        start_over(*ISOLATED, *arguments)
