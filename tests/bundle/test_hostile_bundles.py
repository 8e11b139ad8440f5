"""2,000 hostile bundles and calls: each gives one error of one line, no secret, and no module.

The attacks of a host change the file, the versions, the keys. Those of a holder of the vendor's
key sign what they changed: they reach the parsers behind the signature.
"""

import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bundle.bundles import KEY, SIGNER, VENDOR
from bundle.hostile import ATTACKS, MODULE, Call, Good
from cloister.bundle.sealed_bundle import SealedBundle
from cloister.errors import BundleError, CloisterError, InputError

CALLS = 2000
MEMORY_BYTES = 2**20
"""Of one call; a bundle here has 4 kB."""


@pytest.fixture
def good(tmp_path) -> Good:
    return Good.made(tmp_path)


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
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        found = call.open(path)
    except CloisterError as error:
        assert tracemalloc.get_traced_memory()[1] - before < MEMORY_BYTES
        return error
    pytest.fail(f"opened: {found[0].digest.hex()}")


def test_hostile_calls_get_nothing(tmp_path, good):
    hidden, original = secrets(good), good.file.data()
    genuine = good.genuine()
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
