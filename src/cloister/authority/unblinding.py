"""The unblinding term of a request, from the pad keys of a data set's parts; charges nothing."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int64, UInt32

from cloister.authority import noise
from cloister.authority.label_sums import sum_noise
from cloister.authority.records import DatasetRecord
from cloister.authority.requests import Evaluation, Labels, LinearRequest, Pieces, Request
from cloister.ring import pads

PADS_AT_ONCE = 1 << 22
"""Elements of pads that are expanded together, whatever the number of samples."""


def unblinding_term(
    found: DatasetRecord, request: Request, *, noisy: bool, threads: int
) -> UInt32[np.ndarray, "..."]:
    """What unblinds the answer of a ciphertext server to the same request.

    noisy    the receiver is the server: values keep the noise that the data set's terms say
    Secret   result
    """
    if isinstance(request, Labels):
        return _pads(found, request.ids, (found.info.classes,), pads.LABEL_DOMAIN)
    if isinstance(request, Evaluation):
        return _of_labels(found, request, noisy=noisy)
    term = request.image(_pieces(found, request), threads=threads)
    if noisy:
        _subtract_noise(found, request, term)
    return term


def _of_labels(
    found: DatasetRecord, request: Evaluation, *, noisy: bool
) -> UInt32[np.ndarray, " 1"]:
    """A server that may have the labels gets their sum exactly."""
    term = request.image(_pads(found, request.ids, (found.info.classes,), pads.LABEL_DOMAIN))
    if noisy and not found.terms.labels_to_server:
        keys = b"".join(key for *_, key in _by_part(found, request.ids))
        term -= sum_noise(found.info, request, keys)
    return term


def _pieces(found: DatasetRecord, request: LinearRequest) -> Pieces:
    """The pads of samples, as many at a time as stay in bounded memory."""
    step = max(1, PADS_AT_ONCE // found.info.dim)
    for start in range(0, len(request.ids), step):
        some = slice(start, start + step)
        shape = request.geometry.in_shape
        yield some, _pads(found, request.ids[some], shape, pads.DATA_DOMAIN)


def _pads(
    found: DatasetRecord, ids: Int64[np.ndarray, " n"], shape: tuple[int, ...], domain: int
) -> UInt32[np.ndarray, "n ..."]:
    out = np.empty((len(ids), *shape), np.uint32)
    for mine, local, key in _by_part(found, ids):
        out[mine] = pads.expand(key, local, shape, domain=domain)
    return out


def _subtract_noise(
    found: DatasetRecord, request: LinearRequest, term: UInt32[np.ndarray, "..."]
) -> None:
    """Subtract the noise, in place, that the unblinded values must keep."""
    bits = found.terms.limits(found.info).value_bits
    if bits == noise.EXACT_BITS:
        return
    shape = request.value_shape
    for function, places in request.functions():
        shift = noise.shift(found.info, function, bits)
        if shift == 0:
            continue
        for mine, local, key in _by_part(found, request.ids[places]):
            drawn = noise.noise(key, local, shape, digest=function.digest, shift=shift)
            request.subtract_noise(term, places[mine], drawn)


def _by_part(
    found: DatasetRecord, ids: Int64[np.ndarray, " n"]
) -> Iterator[tuple[Bool[np.ndarray, " n"], Int64[np.ndarray, " m"], bytes]]:
    """Which ids are of a part, their numbers in it, and its key; for every part concerned."""
    owner = np.searchsorted(found.firsts, ids, side="right") - 1
    for index in np.unique(owner).tolist():
        mine = owner == index
        yield mine, ids[mine] - found.parts[index].first, found.keys[index]
