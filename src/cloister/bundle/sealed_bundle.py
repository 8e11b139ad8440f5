"""A bundle: the plan of a model and its hidden module in one file, which leaves the vendor.

    header      sizes and digests, signed by the vendor (`bundle_header`)
    plan        the outer plan's canonical bytes, in the clear
    chunks      of the hidden part: nonce (12), AES-256-GCM of chunk_bytes of it, tag (16)

The hidden part is

    lengths     of manifest and source, u64 each
    manifest    whose SHA-256 is the module's digest, which the header and the plan state
    builds      in the order of their names, packed weights, source
    zeros       up to the size that the header states

Each chunk's seal covers the bundle's id, the chunk's index and the number of chunks, under a key of
this bundle alone. The signature covers the digest of all chunks, so the file can be verified
without a content key. Without the content key a reader learns the sizes and the plan.

A reader authenticates, then bounds, then parses; the steps are numbered in `_verified` and
`_unsealed`. Nothing hidden is returned before all of it was compared with the signed digests.
"""

import hashlib
import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cloister.base import files
from cloister.base.aead import NONCE_BYTES, TAG_BYTES, open_sealed, seal
from cloister.base.reading import open_regular
from cloister.base.rng import Csprng
from cloister.bundle.bundle_header import (
    CHUNK_BYTES,
    DIGEST_BYTES,
    ID_BYTES,
    MAX_PART_BYTES,
    MAX_VERSION,
    BundleHeader,
    authenticate,
    read_head,
)
from cloister.bundle.bundle_keys import BundleKey
from cloister.bundle.compiled_module import CompiledModule
from cloister.bundle.manifest import Manifest
from cloister.errors import BundleError, CloisterError, InputError, VerificationError
from cloister.plan.plan import Plan

_LENGTHS = struct.Struct("<QQ")
_PURPOSE = b"cloister bundle v1"
_PIECE_BYTES = 2**20


@dataclass(frozen=True, eq=False)
class SealedBundle:
    """A bundle of which the vendor's signature over every byte was verified; it is not opened."""

    header: BundleHeader
    plan: Plan

    @classmethod
    def verify(cls, path: Path, *, vendor: Ed25519PublicKey, at_least: int = 1) -> "SealedBundle":
        """Verify all that can be verified without the content key.

        at_least   the oldest version that is accepted

        Raises   BundleError, InputError for a file that cannot be read
        """
        with _reading(path) as file:
            return _verified(file, vendor=vendor, at_least=at_least)

    @staticmethod
    def open(
        path: Path, key: bytes | BundleKey, *, vendor: Ed25519PublicKey, at_least: int = 1
    ) -> tuple[Plan, CompiledModule]:
        """The plan and its module, after everything was verified.

        key      the content key, or that of this bundle alone

        Secret   key, the module
        Raises   as `verify`, BundleError for another key
        """
        bundle, module = SealedBundle.verify_and_open(path, key, vendor=vendor, at_least=at_least)
        return bundle.plan, module

    @staticmethod
    def verify_and_open(
        path: Path, key: bytes | BundleKey, *, vendor: Ed25519PublicKey, at_least: int = 1
    ) -> tuple["SealedBundle", CompiledModule]:
        """The bundle and its module, of one reading of the file; see `open`."""
        with _reading(path) as file:
            bundle = _verified(file, vendor=vendor, at_least=at_least)
            return bundle, _unsealed(file, bundle.header, key)

    @staticmethod
    def show(path: Path) -> BundleHeader:
        """What a bundle says of itself; whoever wrote the file may have made it up.

        Raises   BundleError, InputError for a file that cannot be read
        """
        with _reading(path) as file:
            head, _ = read_head(file)
            return BundleHeader.from_bytes(head)

    @staticmethod
    def seal(
        path: Path,
        plan: Plan,
        module: CompiledModule,
        *,
        content_key: bytes,
        signer: Ed25519PrivateKey,
        version: int,
        rng: Csprng,
        pad_to: int | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> BundleHeader:
        """Write a bundle; a process that is killed leaves the file that was there before, or none.

        pad_to   bytes of the hidden part as the host sees them

        Secret   content_key, signer, module
        Raises   BundleError for a plan of another module, InputError for sizes, OSError
        """
        if named_module(plan) != module.manifest.digest:
            raise BundleError("the plan names another module than the one to be sealed")
        if not 1 <= version <= MAX_VERSION:
            raise InputError(f"version {version}: is not between 1 and {MAX_VERSION}")
        plan_parts = plan.to_bytes()
        header = BundleHeader(
            bundle_id=rng.random_bytes(ID_BYTES),
            version=version,
            vendor=signer.public_key().public_bytes_raw(),
            plan_digest=hashlib.sha256(plan_parts).digest(),
            plan_bytes=len(plan_parts),
            module_digest=module.manifest.digest,
            hidden_bytes=_padded(hidden_bytes(module), pad_to),
            chunk_bytes=chunk_bytes,
            sealed_digest=bytes(DIGEST_BYTES),
        )
        files.remove_leftovers(path.parent, name=path.name)
        with files.replacing(path, private=False) as file:
            # The digest of the chunks is known once they are written; it does not change the
            # header's length.
            file.write(header.signed_by(signer))
            file.write(plan_parts)
            digest = _write_chunks(file, header, module, content_key, rng)
            header = replace(header, sealed_digest=digest)
            file.seek(0)
            file.write(header.signed_by(signer))
        return header


def named_module(plan: Plan) -> bytes:
    """The digest of the one module that a plan names.

    Raises   BundleError for a plan of none or several
    """
    if len(plan.modules) != 1:
        raise BundleError(f"a bundle is of a plan with one hidden part, not {len(plan.modules)}")
    return plan.modules[0].digest


def hidden_bytes(module: CompiledModule) -> int:
    """Bytes of a module's hidden part without padding."""
    return sum(len(part) for part in _parts(module))


# ---- reading


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """An open bundle; errors are of this file."""
    try:
        with open_regular(path) as file:
            yield file
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def _verified(file: BinaryIO, *, vendor: Ed25519PublicKey, at_least: int) -> SealedBundle:
    # (1) The head is bounded, and (2) parsed once its signature was verified.
    head, signature = read_head(file)
    header = authenticate(head, signature, vendor=vendor)
    # (3) The vendor's key is the one that the header names.
    if header.vendor != vendor.public_bytes_raw():
        raise BundleError("its header names another vendor than the one who signed it")
    # (4) It is new enough.
    if header.version < at_least:
        raise BundleError(
            f"is stale: it has version {header.version}, and at least {at_least} is wanted"
        )
    # (5) The file has the signed size, which bounds all memory from here on.
    found = os.fstat(file.fileno()).st_size
    wanted = len(head) + len(signature) + header.plan_bytes + header.sealed_bytes
    if found != wanted:
        raise BundleError(f"has {found} B, and its vendor signed {wanted} B; get it again")
    # (6) Plan and chunks are the signed ones.
    data = file.read(header.plan_bytes)
    if hashlib.sha256(data).digest() != header.plan_digest:
        raise BundleError("its plan is not the one that its vendor signed")
    if _digest(file, header.sealed_bytes) != header.sealed_digest:
        raise BundleError("its sealed part is not the one that its vendor signed")
    # (7) The plan is one, and names the module.
    try:
        plan = Plan.from_bytes(data)
    except CloisterError as error:
        raise BundleError(f"its plan is refused: {error}") from None
    if named_module(plan) != header.module_digest:
        raise BundleError("its plan names another module than its header")
    file.seek(-header.sealed_bytes, os.SEEK_CUR)
    return SealedBundle(header, plan)


def _unsealed(file: BinaryIO, header: BundleHeader, key: bytes | BundleKey) -> CompiledModule:
    """The module; the file stands at its first chunk."""
    hidden = _HiddenPart(_opened_chunks(file, header, _chunk_key(key, header)), header.hidden_bytes)
    try:
        # (8) The manifest is the signed one, and bounds all that follows.
        manifest_bytes, source_bytes = _LENGTHS.unpack(hidden.take(_LENGTHS.size))
        found = hidden.take(manifest_bytes)
        if hashlib.sha256(found).digest() != header.module_digest:
            raise BundleError("its sealed manifest is not that of the module that its plan names")
        manifest = Manifest.from_bytes(found)
        # (9) CompiledModule compares each part with the manifest's digest of it.
        module = CompiledModule(
            manifest=manifest,
            builds={name: hidden.take(manifest.builds[name].nbytes) for name in _ordered(manifest)},
            weights=hidden.take(manifest.weights_bytes),
            source=hidden.take(source_bytes).decode(),
        )
        # (10) Every chunk is opened to the end: the rest is padding.
        hidden.finish()
    except BundleError:
        raise
    except (CloisterError, ValueError):
        # Without the cause, whose text may name what is hidden.
        raise BundleError(
            "its hidden part contradicts itself, or is of another version of Cloister; ask its "
            "vendor for another bundle"
        ) from None
    return module


class _HiddenPart:
    """The hidden part from its first byte to its last, chunk by chunk."""

    def __init__(self, chunks: Iterator[bytes], size: int) -> None:
        self._chunks, self._left = chunks, size
        self._chunk = memoryview(b"")

    def take(self, count: int) -> bytes:
        """The next bytes, of which the caller has the only copy.

        Raises   BundleError when there are not so many
        """
        if count > self._left:
            raise BundleError("its hidden part is shorter than it says")
        self._left -= count
        taken = io.BytesIO()
        while count:
            piece = self._next(count)
            taken.write(piece)
            count -= len(piece)
        return taken.getvalue()

    def finish(self) -> None:
        """Make sure that only zeros are left.

        Raises   BundleError
        """
        while self._left:
            piece = self._next(self._left)
            self._left -= len(piece)
            if any(piece):
                raise BundleError("its hidden part goes on behind its end")

    def _next(self, most: int) -> memoryview:
        if not self._chunk:
            self._chunk = memoryview(next(self._chunks))
        piece, self._chunk = self._chunk[:most], self._chunk[most:]
        return piece


def _opened_chunks(file: BinaryIO, header: BundleHeader, key: bytes) -> Iterator[bytes]:
    for index in range(header.chunks):
        sealed = file.read(header.chunk_size(index) + NONCE_BYTES + TAG_BYTES)
        try:
            yield open_sealed(key, sealed, aad=_aad(header, index))
        except VerificationError:
            raise BundleError(
                f"chunk {index} does not open: the content key is another bundle's, or the chunk "
                "is not the one that was sealed here"
            ) from None


def _digest(file: BinaryIO, count: int) -> bytes:
    digest = hashlib.sha256()
    while count:
        piece = file.read(min(count, _PIECE_BYTES))
        if not piece:
            raise BundleError("is cut off")
        digest.update(piece)
        count -= len(piece)
    return digest.digest()


# ---- writing


def _write_chunks(
    file: BinaryIO, header: BundleHeader, module: CompiledModule, content_key: bytes, rng: Csprng
) -> bytes:
    """Seal and write the hidden part; the SHA-256 of all that was written."""
    key, digest = _chunk_key(content_key, header), hashlib.sha256()
    for index, chunk in enumerate(_plain_chunks(header, module)):
        sealed = seal(key, chunk, aad=_aad(header, index), rng=rng)
        digest.update(sealed)
        file.write(sealed)
    return digest.digest()


def _plain_chunks(header: BundleHeader, module: CompiledModule) -> Iterator[bytes]:
    chunk = bytearray()
    padding = header.hidden_bytes - hidden_bytes(module)
    for part in (*_parts(module), *_zeros(padding)):
        rest = memoryview(part)
        while rest:
            piece = rest[: header.chunk_bytes - len(chunk)]
            chunk += piece
            rest = rest[len(piece) :]
            if len(chunk) == header.chunk_bytes:
                yield bytes(chunk)
                chunk.clear()
    if chunk:
        yield bytes(chunk)


def _zeros(count: int) -> Iterator[bytes]:
    piece = bytes(min(count, _PIECE_BYTES))
    for start in range(0, count, _PIECE_BYTES):
        yield piece[: count - start]


def _padded(size: int, pad_to: int | None) -> int:
    if pad_to is None:
        return size
    if not size <= pad_to <= MAX_PART_BYTES:
        raise InputError(f"padding to {pad_to} B: the hidden part has {size} B")
    return pad_to


def _parts(module: CompiledModule) -> list[bytes]:
    manifest, source = module.manifest.to_bytes(), module.source.encode()
    builds = [module.builds[name] for name in _ordered(module.manifest)]
    lengths = _LENGTHS.pack(len(manifest), len(source))
    return [lengths, manifest, *builds, module.weights, source]


def _ordered(manifest: Manifest) -> list[str]:
    return sorted(manifest.builds)


def _chunk_key(key: bytes | BundleKey, header: BundleHeader) -> bytes:
    if isinstance(key, bytes):
        key = BundleKey.derive(key, bundle_id=header.bundle_id)
    if key.bundle_id != header.bundle_id:
        raise BundleError(
            f"has id {header.bundle_id.hex()}, and the key that was released is for "
            f"{key.bundle_id.hex()}; get the bundle of that id"
        )
    return key.key


def _aad(header: BundleHeader, index: int) -> bytes:
    numbers = (number.to_bytes(8, "big") for number in (index, header.chunks))
    return _PURPOSE + header.bundle_id + b"".join(numbers)
