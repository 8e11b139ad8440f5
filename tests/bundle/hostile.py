"""What a host, and a holder of the vendor's key, may do to a bundle before it is opened."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bundle.bundles import (
    FOREIGN_KEY,
    FOREIGN_SIGNER,
    KEY,
    SIGNER,
    VENDOR,
    File,
    module,
    plan_of,
    sealed,
)
from cloister.base.aead import open_sealed, seal
from cloister.base.rng import InsecureSeededRandom
from cloister.bundle.bundle_header import KIND, MAX_CHUNK_BYTES, MAX_PART_BYTES, BundleHeader
from cloister.bundle.sealed_bundle import _LENGTHS, SealedBundle, _aad, _chunk_key, named_module
from cloister.errors import BundleError, CloisterError
from cloister.plan.plan import Plan
from fuzz.mutate import mutated_bytes, mutated_document, mutated_json

MODULE, OTHER = module(), module(1)


@dataclasses.dataclass(frozen=True)
class Good:
    """Bundles of one vendor and one content key."""

    file: File
    older: File
    other: File

    @classmethod
    def made(cls, folder: Path) -> "Good":
        def file(made, version, seed):
            rng = InsecureSeededRandom(seed)
            return File.read(sealed(folder / "g.bundle", made, version=version, rng=rng))

        return cls(file(MODULE, 2, 1), file(MODULE, 1, 2), file(OTHER, 2, 3))

    def genuine(self) -> list["Call"]:
        """What is opened."""
        return [Call(one.data()) for one in (self.file, self.older, self.other)]


@dataclasses.dataclass(frozen=True)
class Call:
    """A file, and how it is opened."""

    data: bytes
    key: bytes = KEY
    vendor: Ed25519PublicKey | None = None
    at_least: int = 1

    def open(self, path: Path) -> tuple[Plan, object]:
        """The plan and the module, of a file of these bytes."""
        path.write_bytes(self.data)
        vendor = self.vendor or VENDOR
        return SealedBundle.open(path, self.key, vendor=vendor, at_least=self.at_least)


Attack = Callable[[Good, np.random.Generator], Call]


def _chunks(good: Good, rng: np.random.Generator) -> list[bytes]:
    """Chunks in another order, twice, missing, of an older version, or of another module."""
    chunks = list(good.file.chunks)
    one, two = rng.choice(len(chunks) - 1, 2, replace=False)
    match int(rng.integers(0, 5)):
        case 0:
            chunks[one], chunks[two] = chunks[two], chunks[one]
        case 1:
            chunks[one] = chunks[two]
        case 2:
            del chunks[one]
        case 3:
            chunks[one] = good.older.chunks[one]
        case _:
            chunks[one] = good.other.chunks[one]
    return chunks


def bytes_changed(good, rng):
    return Call(mutated_bytes(good.file.data(), rng))


def one_bit(good, rng):
    data = bytearray(good.file.data())
    data[rng.integers(0, len(data))] ^= 1 << int(rng.integers(0, 8))
    return Call(bytes(data))


def cut(good, rng):
    data = good.file.data()
    return Call(data[: rng.integers(0, len(data))])


def longer(good, rng):
    return Call(good.file.data() + rng.bytes(int(rng.integers(1, 5000))))


def chunks_changed(good, rng):
    return Call(dataclasses.replace(good.file, chunks=_chunks(good, rng)).data())


def part_of_another_bundle(good, rng):
    source = (good.older, good.other)[int(rng.integers(0, 2))]
    names = ("head", "signature", "plan", "chunks")
    picked = [name for name in names if rng.integers(0, 2)] or ["chunks"]
    if len(picked) == len(names):
        picked.remove("chunks")
    return Call(dataclasses.replace(good.file, **{n: getattr(source, n) for n in picked}).data())


def stale(good, rng):
    return Call(good.older.data(), at_least=int(rng.integers(2, 9)))


def foreign_key(good, rng):
    keys = (FOREIGN_KEY, bytes(32), KEY[:-1], KEY + b"\0", b"", rng.bytes(32))
    return Call(good.file.data(), key=keys[int(rng.integers(0, len(keys)))])


def foreign_vendor(good, rng):
    if rng.integers(0, 2):
        return Call(good.file.data(), vendor=FOREIGN_SIGNER.public_key())
    return Call(good.file.resigned(FOREIGN_SIGNER).data())


def header_changed(good, rng):
    head = mutated_document(good.file.head, rng)
    return Call(dataclasses.replace(good.file, head=head).data())


def header_changed_and_signed(good, rng):
    head = mutated_document(good.file.head, rng)
    with contextlib.suppress(BundleError):
        found = BundleHeader.from_bytes(head)
        # Another version is what the vendor may well sign.
        if dataclasses.replace(found, version=good.file.header.version) == good.file.header:
            head = good.file.head
    signature = SIGNER.sign(KIND.context + head)
    return Call(dataclasses.replace(good.file, head=head, signature=signature).data())


def sizes_changed_and_signed(good, rng):
    header = good.file.header
    name = ("plan_bytes", "hidden_bytes", "chunk_bytes")[int(rng.integers(0, 3))]
    most = MAX_CHUNK_BYTES if name == "chunk_bytes" else MAX_PART_BYTES
    now = getattr(header, name)
    sizes = [size for size in (1, now - 1, now + 1, now // 2, 2 * now, most) if size != now]
    return Call(good.file.resigned(**{name: int(rng.choice(sizes))}).data())


def chunks_changed_and_signed(good, rng):
    changed = dataclasses.replace(good.file, chunks=_chunks(good, rng))
    return Call(changed.resigned().data())


def chunk_bits_and_signed(good, rng):
    chunks = [bytearray(chunk) for chunk in good.file.chunks]
    chunk = chunks[int(rng.integers(0, len(chunks)))]
    chunk[rng.integers(0, len(chunk))] ^= 1 << int(rng.integers(0, 8))
    return Call(dataclasses.replace(good.file, chunks=list(map(bytes, chunks))).resigned().data())


def plan_changed_and_signed(good, rng):
    if rng.integers(0, 2):
        plan = good.other.plan
    else:
        plan = mutated_document(good.file.plan, rng)
        with contextlib.suppress(CloisterError):
            # Another plan of this module is what the vendor may well sign.
            if named_module(Plan.from_bytes(plan)) == good.file.header.module_digest:
                plan = good.other.plan
    return Call(dataclasses.replace(good.file, plan=plan).resigned().data())


def another_module_and_signed(good, _):
    """Plan and header name a module, and the hidden part is another."""
    digest = OTHER.manifest.digest
    changed = dataclasses.replace(good.file, plan=good.other.plan)
    return Call(changed.resigned(module_digest=digest).data())


def hidden_part_changed_and_signed(good, rng):
    """As only a holder of both keys could; what is consistent all the same is opened."""
    header, file = good.file.header, good.file
    key = _chunk_key(KEY, header)
    hidden = b"".join(
        open_sealed(key, chunk, aad=_aad(header, i)) for i, chunk in enumerate(file.chunks)
    )
    size, _ = _LENGTHS.unpack_from(hidden)
    manifest, rest = hidden[_LENGTHS.size : _LENGTHS.size + size], hidden[_LENGTHS.size + size :]
    manifest = mutated_json(manifest, rng) if rng.integers(0, 2) else mutated_bytes(manifest, rng)
    lengths = _LENGTHS.pack(len(manifest), int(rng.integers(0, 40)))
    if rng.integers(0, 4) == 0:
        lengths = mutated_bytes(lengths, rng)[: _LENGTHS.size].ljust(_LENGTHS.size, b"\xff")
    hidden = (lengths + manifest + mutated_bytes(rest, rng))[: len(hidden)]
    hidden = hidden.ljust(header.hidden_bytes, b"\0")
    pieces = [hidden[i : i + header.chunk_bytes] for i in range(0, len(hidden), header.chunk_bytes)]
    draw = InsecureSeededRandom(int(rng.integers(0, 2**32)))
    chunks = [seal(key, one, aad=_aad(header, i), rng=draw) for i, one in enumerate(pieces)]
    digest = hashlib.sha256(manifest).digest()
    named = SimpleNamespace(manifest=SimpleNamespace(digest=digest))
    plan = bytes(plan_of(named).to_bytes())
    changed = dataclasses.replace(file, chunks=chunks, plan=plan)
    return Call(changed.resigned(module_digest=digest).data())


ATTACKS: list[Attack] = [
    bytes_changed, one_bit, cut, longer, chunks_changed, part_of_another_bundle, stale, foreign_key,
    foreign_vendor, header_changed, header_changed_and_signed, sizes_changed_and_signed,
    chunks_changed_and_signed, chunk_bits_and_signed, plan_changed_and_signed,
    another_module_and_signed,
]  # fmt: skip
