"""ECDSA signatures as devices write them: two numbers in a row, without ASN.1."""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cloister.errors import AttestationError


def verify_ecdsa(
    key: ec.EllipticCurvePublicKey,
    signature: bytes,
    data: bytes,
    *,
    digest: hashes.HashAlgorithm,
    wrong: str,
) -> None:
    """Check a signature whose r and s are the halves of `signature`, highest byte first.

    Raises   AttestationError with the text `wrong`
    """
    half = len(signature) // 2
    r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
    try:
        key.verify(encode_dss_signature(r, s), data, ec.ECDSA(digest))
    except InvalidSignature:
        raise AttestationError(wrong) from None
