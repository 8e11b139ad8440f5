"""2,000 hostile bundles and calls: each gives one error of one line, no secret, and no module.

The attacks of a host change the file, the versions, the keys. Those of a holder of the vendor's
key sign what they changed: they reach the parsers behind the signature.
"""

import contextlib
import dataclasses
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from bundle.bundles import (
    FOREIGN_KEY,
    FOREIGN_SIGNER,
    KEY,
    SIGNER,
    VENDOR,
    File,
    module,
    sealed,
)
from cloister.base.rng import InsecureSeededRandom
from cloister.bundle.bundle_header import KIND, MAX_CHUNK_BYTES, MAX_PART_BYTES, BundleHeader
from cloister.bundle.sealed_bundle import SealedBundle, named_module
from cloister.errors import BundleError, CloisterError, InputError
from cloister.plan.plan import Plan
from fuzz.mutate import mutated_bytes, mutated_document

CALLS = 2000
MEMORY_BYTES = 2**20
"""Of one call; a bundle here has 4 kB."""
MODULE, OTHER = module(), module(1)


@dataclasses.dataclass(frozen=True)
class Good:
    """Bundles of one vendor and one content key."""

    file: File
    older: File
    other: File


@dataclasses.dataclass(frozen=True)
class Call:
    """A file, and how it is opened."""

    data: bytes
    key: bytes = KEY
    vendor: Ed25519PublicKey | None = None
    at_least: int = 1


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


ATTACKS: list[Attack] = [
    bytes_changed, one_bit, cut, longer, chunks_changed, part_of_another_bundle, stale, foreign_key,
    foreign_vendor, header_changed, header_changed_and_signed, sizes_changed_and_signed,
    chunks_changed_and_signed, chunk_bits_and_signed, plan_changed_and_signed,
    another_module_and_signed,
]  # fmt: skip


@pytest.fixture
def good(tmp_path) -> Good:
    def file(made, version, seed):
        rng = InsecureSeededRandom(seed)
        return File.read(sealed(tmp_path / "g.bundle", made, version=version, rng=rng))

    return Good(file(MODULE, 2, 1), file(MODULE, 1, 2), file(OTHER, 2, 3))


def secrets(good: Good) -> list[str]:
    """What no error may say, as texts: keys, hidden names, and hidden bytes."""
    key = SIGNER.private_bytes_raw()
    return [KEY.hex(), repr(KEY)[2:-1], key.hex(), "HiddenOperator", "int secret",
            MODULE.weights[:8].hex(), MODULE.manifest.salt]  # fmt: skip


def chain(error: BaseException | None):
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def refusal(path: Path, call: Call) -> CloisterError:
    """The error of a call, which nothing else may come out of."""
    path.write_bytes(call.data)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        found = SealedBundle.open(
            path, call.key, vendor=call.vendor or VENDOR, at_least=call.at_least
        )
    except CloisterError as error:
        assert tracemalloc.get_traced_memory()[1] - before < MEMORY_BYTES
        return error
    pytest.fail(f"opened: {found[0].digest.hex()}")


def test_hostile_calls_get_nothing(tmp_path, good):
    hidden, original = secrets(good), good.file.data()
    genuine = [Call(one.data()) for one in (good.file, good.older, good.other)]
    counts: Counter[str] = Counter()
    rng = np.random.default_rng(13)
    path = tmp_path / "hostile.bundle"
    tracemalloc.start()
    try:
        while sum(counts.values()) < CALLS:
            attack = ATTACKS[int(rng.integers(0, len(ATTACKS)))]
            call = attack(good, rng)
            if call in genuine:
                continue  # a bundle of the vendor's after all
            error = refusal(path, call)
            assert isinstance(error, BundleError | InputError), attack
            text = str(error)
            assert text and "\n" not in text and len(text) < 1000, attack
            for link in chain(error):
                assert not any(secret in f"{link} {link!r}" for secret in hidden), attack
            counts[attack.__name__] += 1
    finally:
        tracemalloc.stop()
    assert set(counts) == {attack.__name__ for attack in ATTACKS}
    assert min(counts.values()) > 50
    # The same reader opens what was not changed.
    path.write_bytes(original)
    _, found = SealedBundle.open(path, KEY, vendor=VENDOR, at_least=2)
    assert found.weights == MODULE.weights
