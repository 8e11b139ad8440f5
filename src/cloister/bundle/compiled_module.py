"""A compiled module: its manifest, its builds, its packed weights and its C source.

In a folder, as the vendor keeps it:

    manifest.json   the manifest's canonical bytes
    module.c        the source of the native and wasm builds
    weights.bin     the packed weights
    NAME.bin        one file for each build

Nothing in the folder is encrypted; a bundle (`sealed_bundle`) is what leaves the vendor.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cloister.base import files
from cloister.base.reading import open_regular, parsing
from cloister.bundle.manifest import BUILDS, MAX_BYTES, Manifest
from cloister.errors import InputError

MANIFEST, SOURCE, WEIGHTS = "manifest.json", "module.c", "weights.bin"


@dataclass(frozen=True, eq=False)
class CompiledModule:
    """A module that an engine can run.

    builds    binaries by their names in the manifest
    weights   packed, as the builds read them
    source    the C text; empty where it did not travel

    Raises   InputError for a part that is not the manifest's
    """

    manifest: Manifest
    builds: Mapping[str, bytes] = field(repr=False)
    weights: bytes = field(repr=False)
    source: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        name = self.manifest.name
        if set(self.builds) != set(self.manifest.builds):
            raise InputError(f"module {name!r}: its builds are not those of its manifest")
        for build, binary in self.builds.items():
            if _sha256(binary) != self.manifest.builds[build].sha256:
                raise InputError(f"module {name!r}: build {build} is not the manifest's")
        if _sha256(self.weights) != self.manifest.weights_sha256:
            raise InputError(f"module {name!r}: its weights are not the manifest's")
        if self.source and _sha256(self.source.encode()) != self.manifest.source_sha256:
            raise InputError(f"module {name!r}: its source is not the manifest's")

    def save(self, folder: Path) -> None:
        """Write the folder, which is for its owner alone; builds of a module before are deleted.

        Raises   OSError
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        parts = {SOURCE: self.source.encode(), WEIGHTS: self.weights}
        parts |= {f"{build}.bin": binary for build, binary in self.builds.items()}
        for name, content in parts.items():
            files.replace(folder / name, content, private=True)
        # Last: a folder with a manifest is complete.
        files.replace(folder / MANIFEST, self.manifest.to_bytes(), private=True)
        for build in set(BUILDS) - set(self.builds):
            (folder / f"{build}.bin").unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path) -> "CompiledModule":
        """The module in a folder.

        Raises   InputError
        """
        with parsing(f"{folder}: not a compiled module that can be read"):
            manifest = Manifest.from_bytes(_read(folder / MANIFEST))
            builds = {name: _read(folder / f"{name}.bin") for name in manifest.builds}
            source = _read(folder / SOURCE).decode()
            return cls(manifest, builds, _read(folder / WEIGHTS), source)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(path: Path) -> bytes:
    with open_regular(path) as file:
        # A read of at most so many bytes would allocate all of them.
        if os.fstat(file.fileno()).st_size > MAX_BYTES:
            raise InputError(f"{path}: is larger than any module")
        return file.read()
