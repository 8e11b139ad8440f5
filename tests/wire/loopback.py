"""A small linear map with its slow evaluation, and one link of every kind to an honest worker."""

from contextlib import contextmanager

import numpy as np

from cloister.base.rng import keystream
from cloister.ring.linear import Geometry, LinearMap
from cloister.ring.pad_block import BlockKeys
from cloister.ring.pads import nonce
from cloister.wire.grpc.grpc_link import RpcLink
from cloister.wire.inprocess import InProcessLink
from cloister.wire.messages import MakePads, TensorSpec
from cloister.wire.shm.shm_link import start_local_worker
from cloister.worker.engine import Engine
from cloister.worker.linear_target import map_memory
from cloister.worker.serve import start_server

GEOMETRY = Geometry((5, 7), 3, (5, 7), 4, kernel=(3, 3), pad=(1, 1))
KINDS = ("in-process", "shm", "rpc")
U32 = np.dtype(np.uint32)


def linear(seed=0, geometry=GEOMETRY):
    rng = np.random.default_rng(seed)
    return LinearMap(geometry, rng.integers(-2000, 2000, geometry.weight_shape).astype(np.int16))


def slow(linear_map, x):
    """The map by its definition, in Python integers."""
    g = linear_map.geometry
    padded = np.zeros((len(x), *g.out_size, g.out_channels), dtype=object)
    per_group_in, per_group_out = g.in_channels // g.groups, g.out_channels // g.groups
    for index in np.ndindex(*padded.shape):
        n, oy, ox, o = index
        total = 0
        for ky, kx in np.ndindex(*g.kernel):
            y = oy * g.stride[0] + ky * g.dilation[0] - g.pad[0]
            z = ox * g.stride[1] + kx * g.dilation[1] - g.pad[1]
            if y % g.upsample[0] or z % g.upsample[1]:
                continue
            y, z = y // g.upsample[0], z // g.upsample[1]
            if not (0 <= y < g.in_size[0] and 0 <= z < g.in_size[1]):
                continue
            first = o // per_group_out * per_group_in
            for c in range(per_group_in):
                total += int(linear_map.weights[o, ky, kx, c]) * int(x[n, y, z, first + c])
        padded[index] = total % 2**32
    return padded.astype(np.uint32)


def blinded(batch=2, seed=1, geometry=GEOMETRY):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2**32, (batch, *geometry.in_shape), dtype=np.uint32)


def expected(batch=2, geometry=GEOMETRY):
    return (TensorSpec(U32, (batch, *geometry.out_shape)),)


@contextmanager
def honest(kind):
    """A link of one kind; worker and link are closed at the end."""
    if kind == "in-process":
        link = InProcessLink(Engine().handle)
        yield link
        link.close()
    elif kind == "shm":
        link = start_local_worker()
        yield link
        link.close()
    else:
        server = start_server("127.0.0.1:0")
        link = RpcLink(server.address)
        yield link
        link.close()
        server.close()


def map_bytes(batch=2, geometry=GEOMETRY):
    """What a worker counts for the map while it answers requests of this batch."""
    return map_memory(geometry, device="cpu", threads=1, batch=batch).total


def ask(link, request_id, x, *, target_id=1, timeout_s=30.0):
    """Send one request and wait; a copy of the answer."""
    link.submit(request_id, target_id, (x,), expected(len(x)))
    (reply,) = link.receive(request_id, timeout_s=timeout_s)
    answer = reply.expose_unchecked().copy()
    link.release(request_id)
    return answer


def block_of(targets, *, request_id=1, seed=bytes(range(32)), first_id=5, rows=3, gap=16):
    """A request for pads of these maps by target id, each node's terms `gap` words behind."""
    offsets, end = [], 0
    for target in sorted(targets):
        offsets.append(end)
        end += targets[target].geometry.out_elements + gap
    return MakePads(request_id, seed, first_id, rows, tuple(sorted(targets)), tuple(offsets), end)


def slow_terms(message, targets):
    """`A r + k` of a block by its definition: streams of OpenSSL, products in Python integers."""
    keys = BlockKeys.of(message.seed)
    terms = np.zeros((message.rows, message.words), np.uint32)
    for target, offset in zip(message.targets, message.offsets, strict=True):
        geometry = targets[target].geometry
        for row in range(message.rows):
            under = nonce(message.first_id + row, target)
            pad = keystream(keys.pad_key, under, geometry.in_elements)
            product = slow(targets[target], pad.reshape(1, *geometry.in_shape)).ravel()
            mask = keystream(keys.mask_key, under, geometry.out_elements)
            terms[row, offset : offset + geometry.out_elements] = product + mask
    return terms


def ask_block(link, message, *, timeout_s=30.0):
    """Ask for a block and wait; a copy of its terms."""
    link.make_pads(message)
    (reply,) = link.receive(message.request_id, timeout_s=timeout_s)
    terms = reply.expose_unchecked().copy()
    link.release(message.request_id)
    return terms
