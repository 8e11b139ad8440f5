"""Releases as an honest authority and server would produce them, in plain integers."""

import numpy as np

from cloister.authority.request_log import Release
from cloister.authority.requests import Forward, Gradient, Labels
from cloister.ring.linear import Geometry, LinearMap
from cloister.ring.reference import linear_map


def centred(words):
    """Ring elements as signed integers."""
    return words.view(np.int32).astype(np.int64)


def as_ring(x):
    return x.astype(np.int64).astype(np.uint32)


def dense(shape, outputs):
    return Geometry(shape[:2], shape[2], (1, 1), outputs, shape[:2])


def forward(x, ids, geometry, weights, *, step=0):
    """A x for the samples of a batch."""
    linear = LinearMap(geometry, weights.astype(np.int16).reshape(geometry.weight_shape))
    values = centred(linear_map(linear, as_ring(x[ids])))
    return Release(Forward("set", np.asarray(ids, np.int64), linear), step, values, x.shape[1:])


def gradient(x, ids, geometry, delta, *, step=0):
    """sum over samples i and positions p of delta[i, p, o] x[i, p * stride + k - pad, c]."""
    delta = delta.astype(np.int16).reshape(len(ids), *geometry.out_shape)
    (kh, kw), (sh, sw), (ph, pw) = geometry.kernel, geometry.stride, geometry.pad
    oh, ow = geometry.out_size
    wide = np.zeros(
        (len(ids), oh * sh + kh + ph, ow * sw + kw + pw, geometry.in_channels), np.int64
    )
    h, w = geometry.in_size
    wide[:, ph : ph + h, pw : pw + w] = x[ids]
    values = np.zeros(geometry.weight_shape, np.int64)
    for i in range(kh):
        for j in range(kw):
            seen = wide[:, i : i + oh * sh : sh, j : j + ow * sw : sw]
            values[:, i, j] = np.einsum("npqo,npqc->oc", delta.astype(np.int64), seen)
    assert np.abs(values).max() < 2**31
    request = Gradient("set", np.asarray(ids, np.int64), geometry, delta)
    return Release(request, step, values, x.shape[1:])


def labels(y, ids, classes, *, shape, scale=256, predictions=None, step=0):
    """P - Y in fixed point; Y alone without predictions."""
    one_hot = np.eye(classes, dtype=np.int64)[y[ids]] * scale
    values = one_hot
    if predictions is not None:
        values = np.rint(predictions * scale).astype(np.int64) - one_hot
    return Release(Labels("set", np.asarray(ids, np.int64)), step, values, shape)
