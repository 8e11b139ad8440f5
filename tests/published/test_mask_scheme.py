import numpy as np
import pytest

from cloister.base.rng import InsecureSeededRandom
from cloister.errors import EncryptionError, FunctionError, ShapeError
from cloister.published import mask

RNG = InsecureSeededRandom(3)


def test_a_key_without_samples_does_not_exist():
    keys = mask.setup(2, x_bound=9, y_bound=9, rng=RNG)
    with pytest.raises(FunctionError, match="ciphertexts_ids"):
        mask.keygen(keys.master, np.ones((1, 2), np.int64))


def test_a_key_opens_only_its_samples():
    keys = mask.setup(2, x_bound=9, y_bound=9, rng=RNG)
    one = mask.encrypt(keys.encryption, np.ones((2, 2), np.int64), rng=RNG)
    two = mask.encrypt(keys.encryption, np.ones((2, 2), np.int64), rng=RNG)
    assert not set(one.ids.tolist()) & set(two.ids.tolist())
    key = mask.keygen(keys.master, np.ones((1, 2), np.int64), ciphertexts_ids=one.ids)
    with pytest.raises(EncryptionError, match="other samples"):
        mask.decrypt(keys.public, key, two)
    # Relabelled, it yields the difference of two pads.
    relabelled = mask.MaskCiphertexts(two.values, one.ids)
    assert np.abs(mask.decrypt(keys.public, key, relabelled)).min() > 1000


def test_vectors_and_elements_have_different_pads():
    keys = mask.setup(2, x_bound=9, y_bound=9, rng=RNG)
    ids = np.array([5])
    pads = {mask.expand(keys.master.key, ids, (4,), domain=domain).tobytes() for domain in range(4)}
    assert len(pads) == 4


def test_elements_are_bound_to_their_rows_and_shape():
    keys = mask.setup(2, x_bound=9, y_bound=9, rng=RNG)
    one = mask.encrypt_elements(keys.encryption, np.ones((2, 3), np.int64), rng=RNG)
    two = mask.encrypt_elements(keys.encryption, np.ones((2, 3), np.int64), rng=RNG)
    y = np.ones((2, 3), np.int64)
    key = mask.keygen_elements(keys.master, "+", y, commitments=one.commitments)
    with pytest.raises(EncryptionError, match="other samples"):
        mask.decrypt_elements(keys.public, key, two)
    narrow = mask.keygen_elements(keys.master, "+", y[:, :2], commitments=one.commitments)
    with pytest.raises(ShapeError):
        mask.decrypt_elements(keys.public, narrow, one)
    with pytest.raises(ShapeError, match="rows"):
        mask.keygen_elements(keys.master, "+", y[:1], commitments=one.commitments)


@pytest.mark.parametrize("k", [1, 9])
@pytest.mark.parametrize("top", [2**15 - 1, 2**15, 2**20])
def test_kernel_and_numpy_products_agree_with_the_definition(k, top):
    draw = np.random.default_rng(9)
    values = draw.integers(0, 2**32, (60, 40), dtype=np.uint32)
    y = draw.integers(-top, top + 1, (k, 40))
    y[0, 0] = -top
    want = (values.astype(object) @ y.T.astype(object)) % 2**32
    assert (mask._products(values, y).astype(object) == want).all()


def test_what_the_server_sees_before_any_key_is_uniform():
    """Chi-squared over the bytes of the ciphertexts of constant samples."""
    keys = mask.setup(1024, x_bound=9, y_bound=9, rng=RNG)
    seen = mask.encrypt(keys.encryption, np.full((64, 1024), 9), rng=RNG).values
    counts = np.bincount(seen.view(np.uint8).reshape(-1), minlength=256)
    expected = seen.nbytes / 256
    # 255 degrees of freedom: mean 255, deviation 22.6; six deviations.
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 6 * 22.6


def test_secrets_are_not_in_the_representation():
    keys = mask.setup(2, x_bound=9, y_bound=9, rng=RNG)
    for holder in (keys.master, keys.encryption):
        assert repr(keys.master.key) not in repr(holder)
        assert keys.master.key.hex() not in repr(holder)
