"""The files of keys: what is made, what is kept, and what is refused without a word of a secret."""

import stat

import pytest

from cloister.base.rng import InsecureSeededRandom, SystemRandom
from cloister.bundle.bundle_keys import (
    CONTENT_KEY,
    VENDOR_KEY,
    VENDOR_PUBLIC,
    create_keys,
    load_content_key,
    load_signer,
    load_vendor,
)
from cloister.errors import InputError

NAMES = (VENDOR_KEY, VENDOR_PUBLIC, CONTENT_KEY)


@pytest.fixture
def folder(tmp_path):
    create_keys(tmp_path / "keys", rng=InsecureSeededRandom(1))
    return tmp_path / "keys"


def test_keys_come_back(folder):
    signer, vendor = load_signer(folder / VENDOR_KEY), load_vendor(folder / VENDOR_PUBLIC)
    vendor.verify(signer.sign(b"text"), b"text")
    assert load_content_key(folder / CONTENT_KEY) == (folder / CONTENT_KEY).read_bytes()


def test_secret_keys_are_their_owners(folder):
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in (VENDOR_KEY, CONTENT_KEY):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    for name, load in ((VENDOR_KEY, load_signer), (CONTENT_KEY, load_content_key)):
        (folder / name).chmod(0o640)
        with pytest.raises(InputError, match="chmod 600"):
            load(folder / name)


def test_only_missing_keys_are_made(folder):
    before = {name: (folder / name).read_bytes() for name in NAMES}
    assert create_keys(folder, rng=SystemRandom()) == ()
    assert {name: (folder / name).read_bytes() for name in NAMES} == before
    for name in (VENDOR_PUBLIC, CONTENT_KEY):
        (folder / name).unlink()
    assert create_keys(folder, rng=SystemRandom()) == (folder / VENDOR_PUBLIC, folder / CONTENT_KEY)
    assert (folder / VENDOR_PUBLIC).read_bytes() == before[VENDOR_PUBLIC]
    assert (folder / CONTENT_KEY).read_bytes() != before[CONTENT_KEY]


def test_a_lost_private_key_is_not_replaced(folder):
    (folder / VENDOR_KEY).unlink()
    with pytest.raises(InputError, match="private key is missing"):
        create_keys(folder, rng=SystemRandom())


def test_keys_of_two_pairs_are_refused(folder, tmp_path):
    create_keys(tmp_path / "other", rng=InsecureSeededRandom(2))
    (tmp_path / "other" / VENDOR_PUBLIC).rename(folder / VENDOR_PUBLIC)
    with pytest.raises(InputError, match="is not the public key of"):
        create_keys(folder, rng=SystemRandom())


@pytest.mark.parametrize("load", [load_signer, load_vendor, load_content_key])
def test_any_other_file_is_refused_and_not_quoted(folder, tmp_path, load):
    own = {load_signer: VENDOR_KEY, load_vendor: VENDOR_PUBLIC, load_content_key: CONTENT_KEY}
    secret = b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEI-secret-\n"
    contents = [(folder / name).read_bytes() for name in NAMES if name != own[load]]
    contents += [b"", b"x" * 31, b"x" * 33, secret, b"-----BEGIN" * 1000]
    for content in contents:
        path = tmp_path / "odd"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(InputError) as caught:
            load(path)
        error: BaseException | None = caught.value
        assert str(error).startswith(str(path))
        assert "secret" not in str(error)
    for name in ("none", "."):
        with pytest.raises(InputError):
            load(tmp_path / name)
