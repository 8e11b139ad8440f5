"""The keys of bundles: the vendor's key pair signs them, a content key opens them.

    vendor.key    Ed25519, private: the vendor's alone
    vendor.pub    its public key, which customers pin
    content.key   32 random bytes: for the vendor and the machine that runs the module

Any holder of a content key opens every bundle that was sealed under it. A `BundleKey`, which is
derived from it, opens one bundle.
"""

from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from cloister.base import files
from cloister.base.hkdf import derive
from cloister.base.reading import open_regular
from cloister.base.rng import Csprng
from cloister.errors import InputError

VENDOR_KEY, VENDOR_PUBLIC, CONTENT_KEY = "vendor.key", "vendor.pub", "content.key"
CONTENT_KEY_BYTES = 32
MAX_FILE_BYTES = 4096
_PURPOSE = b"cloister bundle v1"


@dataclass(frozen=True, repr=False)
class BundleKey:
    """The key of one bundle's chunks; it opens no other bundle.

    Secret   key
    """

    bundle_id: bytes
    key: bytes

    @staticmethod
    def derive(content_key: bytes, *, bundle_id: bytes) -> "BundleKey":
        """The key of a bundle that was sealed under a content key.

        Raises   InputError for a content key of another size
        """
        if len(content_key) != CONTENT_KEY_BYTES:
            raise InputError(f"a content key has {CONTENT_KEY_BYTES} bytes, not {len(content_key)}")
        return BundleKey(bundle_id, derive(content_key, info=_PURPOSE + bundle_id))


def create_keys(folder: Path, *, rng: Csprng) -> tuple[Path, ...]:
    """Make the keys that a folder does not have yet; none is ever replaced. Gives the new files.

    Raises   InputError for files that are not keys or not of one pair, OSError
    """
    key, public, content = (folder / name for name in (VENDOR_KEY, VENDOR_PUBLIC, CONTENT_KEY))
    if public.exists() and not key.exists():
        raise InputError(f"{public}: its private key is missing; restore {key} from a backup")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = tuple(path for path in (key, public, content) if not path.exists())
    if key in made:
        fresh = Ed25519PrivateKey.from_private_bytes(rng.random_bytes(32))
        pem = fresh.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        files.create(key, pem, private=True)
    vendor = load_signer(key).public_key()
    if public in made:
        pem = vendor.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        files.create(public, pem, private=False)
    if load_vendor(public) != vendor:
        raise InputError(f"{public}: is not the public key of {key}; delete it and run again")
    if content in made:
        files.create(content, rng.random_bytes(CONTENT_KEY_BYTES), private=True)
    load_content_key(content)
    return made


def load_signer(path: Path) -> Ed25519PrivateKey:
    """The vendor's private key.

    Raises   InputError, also when others can read it; its text has nothing of the file
    """
    try:
        key = load_pem_private_key(_read_secret(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path}: is not a vendor's private key; {VENDOR_KEY} is one")
    return key


def load_vendor(path: Path) -> Ed25519PublicKey:
    """The vendor's public key.

    Raises   InputError
    """
    try:
        with open_regular(path) as file:
            key = load_pem_public_key(file.read(MAX_FILE_BYTES))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path}: is not a vendor's public key; {VENDOR_PUBLIC} is one")
    return key


def load_content_key(path: Path) -> bytes:
    """The key that opens bundles.

    Raises   InputError, also when others can read it
    """
    key = _read_secret(path)
    if len(key) != CONTENT_KEY_BYTES:
        raise InputError(f"{path}: is not a content key, which has {CONTENT_KEY_BYTES} bytes")
    return key


def _read_secret(path: Path) -> bytes:
    try:
        return files.read_private(path, most=MAX_FILE_BYTES)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
