"""Secure matrix computation: the layers of CryptoNN over any back end.

Each function plays all three parts one after the other, marked (client), (authority), (server),
as in the paper's algorithms 1 to 3; it is the readable definition that the training code is
tested against, not the training code. Matrices are integers; `Encoding` makes them.

Source   Xu, Joshi, Li, "CryptoNN" (arXiv:1904.07303), sections III and IV
"""

from typing import Any

import numpy as np
from jaxtyping import Int64

from cloister.base.rng import Csprng
from cloister.errors import ShapeError, UnsupportedError
from cloister.published.scheme import (
    CiphertextsT,
    ElementsT,
    ElementWise,
    EncryptionT,
    InnerProduct,
    KeySet,
    KeyT,
    MasterT,
    Op,
    PublicT,
)
from cloister.ring.linear import Geometry, LinearMap


def dot(
    scheme: InnerProduct[MasterT, EncryptionT, PublicT, CiphertextsT, KeyT],
    keys: KeySet[MasterT, EncryptionT, PublicT],
    *,
    x: Int64[np.ndarray, "n dim"],
    y: Int64[np.ndarray, "dim k"],
    rng: Csprng,
) -> Int64[np.ndarray, "n k"]:
    """X Y with X encrypted row by row and a key for each column of Y.

    Raises ShapeError, RangeError, and what the back end refuses.
    """
    encrypted = scheme.encrypt(keys.encryption, np.ascontiguousarray(x), rng=rng)  # (client)
    return evaluate(scheme, keys, encrypted, y=y)


def evaluate(
    scheme: InnerProduct[MasterT, EncryptionT, PublicT, CiphertextsT, KeyT],
    keys: KeySet[MasterT, EncryptionT, PublicT],
    encrypted: CiphertextsT,
    *,
    y: Int64[np.ndarray, "dim k"],
) -> Int64[np.ndarray, "n k"]:
    """X Y with an X that was encrypted before.

    Raises as `dot`.
    """
    functions = np.ascontiguousarray(y.T)
    # (authority) It receives the samples' numbers when the back end binds keys to them.
    key = scheme.keygen(keys.master, functions, ciphertexts_ids=_ids(encrypted))
    return scheme.decrypt(keys.public, key, encrypted)  # (server)


def elementwise(
    scheme: ElementWise[MasterT, EncryptionT, PublicT, ElementsT, KeyT],
    keys: KeySet[MasterT, EncryptionT, PublicT],
    op: Op,
    *,
    x: Int64[np.ndarray, "a b"],
    y: Int64[np.ndarray, "a b"],
    rng: Csprng,
) -> Int64[np.ndarray, "a b"]:
    """X op Y entry by entry, with X encrypted and Y known: the server can recover X.

    Raises ShapeError, RangeError, and what the back end refuses.
    """
    if x.shape != y.shape:
        raise ShapeError(f"element-wise: x is {x.shape} and y {y.shape}")
    encrypted = scheme.encrypt_elements(keys.encryption, x, rng=rng)  # (client)
    return evaluate_elements(scheme, keys, op, encrypted, y=y)


def evaluate_elements(
    scheme: ElementWise[MasterT, EncryptionT, PublicT, ElementsT, KeyT],
    keys: KeySet[MasterT, EncryptionT, PublicT],
    op: Op,
    encrypted: ElementsT,
    *,
    y: Int64[np.ndarray, "a b"],
) -> Int64[np.ndarray, "a b"]:
    """X op Y with an X that was encrypted before.

    Raises what the back end refuses.
    """
    # (authority)
    key = scheme.keygen_elements(keys.master, op, y, commitments=encrypted.commitments)
    return scheme.decrypt_elements(keys.public, key, encrypted)  # (server)


def weight_gradient(
    scheme: InnerProduct[MasterT, EncryptionT, PublicT, CiphertextsT, KeyT],
    keys: KeySet[MasterT, EncryptionT, PublicT],
    *,
    x: Int64[np.ndarray, "n dim"],
    delta: Int64[np.ndarray, "n hidden"],
    rng: Csprng,
) -> Int64[np.ndarray, "dim hidden"]:
    """X^T delta: the batch is encrypted once more, feature by feature, under keys of dimension n.

    A hidden width of n or more gives away the batch, whatever the back end.

    Raises as `dot`.
    """
    return dot(scheme, keys, x=x.T, y=delta, rng=rng)


def label_errors(
    scheme: ElementWise[MasterT, EncryptionT, PublicT, ElementsT, KeyT],
    keys: KeySet[MasterT, EncryptionT, PublicT],
    labels: ElementsT,
    *,
    outputs: Int64[np.ndarray, "n classes"],
) -> Int64[np.ndarray, "n classes"]:
    """P - Y with encrypted labels Y and known outputs P: the derivative of squared errors.

    The server knows P, so that it learns every label, whatever the back end.

    Raises as `evaluate_elements`.
    """
    return -evaluate_elements(scheme, keys, "-", labels, y=outputs)


def losses(
    scheme: InnerProduct[MasterT, EncryptionT, PublicT, CiphertextsT, KeyT],
    keys: KeySet[MasterT, EncryptionT, PublicT],
    *,
    labels: Int64[np.ndarray, "n classes"],
    costs: Int64[np.ndarray, "n classes"],
    rng: Csprng,
) -> Int64[np.ndarray, " n"]:
    """Cross-entropy on encrypted one-hot labels: the product of label i and costs[i] = -log p[i].

    One key for each sample; where costs differ between classes, the answer names the class.

    Raises as `dot`.
    """
    if labels.shape != costs.shape:
        raise ShapeError(f"losses: labels are {labels.shape} and costs {costs.shape}")
    found = np.empty(labels.shape[0], np.int64)
    for i in range(labels.shape[0]):
        row = slice(i, i + 1)
        found[i] = dot(scheme, keys, x=labels[row], y=costs[row].T, rng=rng)[0, 0]
    return found


def convolve(
    scheme: InnerProduct[MasterT, EncryptionT, PublicT, CiphertextsT, KeyT],
    keys: KeySet[MasterT, EncryptionT, PublicT],
    linear: LinearMap,
    *,
    x: Int64[np.ndarray, "n h w c"],
    rng: Csprng,
) -> Int64[np.ndarray, "n oh ow oc"]:
    """CryptoCNN: the client encrypts every window, a key belongs to every kernel.

    Raises as `windows` and `dot`.
    """
    geometry = linear.geometry
    kernels = linear.weights.reshape(geometry.out_channels, -1).astype(np.int64)
    answers = dot(scheme, keys, x=windows(geometry, x), y=kernels.T, rng=rng)
    return answers.reshape(x.shape[0], *geometry.out_shape)


def windows(
    geometry: Geometry, x: Int64[np.ndarray, "n h w c"]
) -> Int64[np.ndarray, "windows elements"]:
    """Every window of a plain convolution as a row, zero outside the image.

    Raises ShapeError, UnsupportedError (groups or transposed convolution).
    """
    if geometry.groups != 1 or geometry.upsample != (1, 1):
        raise UnsupportedError(
            "secure convolution: groups and transposed convolutions are not supported; "
            "use ring.pads.forward"
        )
    if x.ndim != 4 or x.shape[1:] != geometry.in_shape:
        raise ShapeError(f"secure convolution: x must be (n, *{geometry.in_shape}), got {x.shape}")
    taken = np.zeros((x.shape[0], *geometry.out_size, *geometry.kernel, x.shape[3]), np.int64)
    for ky, kx in np.ndindex(*geometry.kernel):
        rows, inside_y = _positions(geometry, 0, ky)
        columns, inside_x = _positions(geometry, 1, kx)
        place = np.ix_(np.arange(x.shape[0]), inside_y, inside_x)
        taken[:, :, :, ky, kx][place] = x[:, rows][:, :, columns]
    return taken.reshape(-1, geometry.kernel[0] * geometry.kernel[1] * x.shape[3])


def _positions(
    geometry: Geometry, axis: int, k: int
) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """Input positions that tap `k` meets along one axis, and the output positions they serve."""
    outputs = np.arange(geometry.out_size[axis])
    inputs = outputs * geometry.stride[axis] + k * geometry.dilation[axis] - geometry.pad[axis]
    inside = (inputs >= 0) & (inputs < geometry.in_size[axis])
    return inputs[inside], outputs[inside]


def _ids(ciphertexts: object) -> Any:  # noqa: ANN401  (None where keys are not bound to samples)
    return getattr(ciphertexts, "ids", None)
