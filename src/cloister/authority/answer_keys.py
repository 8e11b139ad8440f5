"""The key pair of a data set's clients, to which a server seals its predictions.

It follows from the label key, which every client has and the server never learns. The authority
tells the public half to everyone.
"""

from cloister.base import hkdf, sealing
from cloister.base.sealing import KeyPair


def answer_keys(label_key: bytes) -> KeyPair:
    """The key pair of all clients of a data set.

    Secret   label_key, and the private half
    """
    return KeyPair(hkdf.derive(label_key, info=b"cloister answers", length=sealing.SEED_BYTES))
