"""A curious server against a real authority in this process: it sees P and what keys release."""

import numpy as np

from cloister.authority.agreement import Agreement
from cloister.authority.authority import Authority
from cloister.authority.enrolment import enrol
from cloister.authority.local import LocalClient
from cloister.authority.records import Terms
from cloister.authority.request_log import Release
from cloister.authority.requests import Forward, Gradient
from cloister.base.rng import InsecureSeededRandom
from cloister.data.encoding import Encoding
from cloister.data.info import DatasetInfo
from cloister.ring import pads
from cloister.ring.linear import LinearMap

NAME = "victims"
ANY = {"one_function": False, "value_bits": 32, "max_bits": 2**40}
"""Terms under which rank alone counts: what the other limits are there for."""


class Rogue:
    """The server's view of one data set of encoded integers `x`; labels are all one."""

    def __init__(self, folder, x, *, budget=None, terms=None, mode="budgeted", bits=8, parts=1):
        self.authority = Authority.create(folder, rng=InsecureSeededRandom(1))
        self.shape = tuple(int(size) for size in x.shape[1:])
        dim = int(np.prod(self.shape))
        self.info = DatasetInfo(
            name=NAME, shape=self.shape, classes=2, encoding=Encoding(1.0, 0.0, bits), samples=0,
            budget_rank=dim // 4 if budget is None else budget, mode=mode,
        )  # fmt: skip
        terms = terms or Terms(**ANY)
        self.agreed = Agreement(self.info, terms)
        self.p = np.empty(x.shape, np.uint32)
        for part, ids in enumerate(np.array_split(np.arange(len(x)), parts)):
            self.p[ids] = self.register(part, x[ids])

    def register(self, part, x):
        """A client's part: its ciphertexts."""
        key, name, sha256 = bytes([part + 1]) * 32, f"{part:032x}", f"{part:064x}"
        enrolment = enrol(LocalClient(self.authority), self.agreed, rng=InsecureSeededRandom(2))
        enrolment.register(name, len(x), sha256, key)
        return pads.blind(key, x.astype(np.int64), np.arange(len(x)), domain=pads.DATA_DOMAIN)

    def forward(self, ids, geometry, weights, *, step=0):
        ids = np.asarray(ids, np.int64)
        linear = LinearMap(geometry, weights.astype(np.int16).reshape(geometry.weight_shape))
        request = Forward(NAME, ids, linear)
        term = self.authority.ask(request, receiver="server")
        p = self.p[ids].reshape(len(ids), *geometry.in_shape)
        values = pads.unblind(pads.forward(linear, p), term)
        return Release(request, step, values, self.shape)

    def gradient(self, ids, geometry, delta, *, step=0):
        ids = np.asarray(ids, np.int64)
        delta = delta.astype(np.int16).reshape(len(ids), *geometry.out_shape)
        request = Gradient(NAME, ids, geometry, delta)
        term = self.authority.ask(request, receiver="server")
        p = np.ascontiguousarray(self.p[ids].reshape(len(ids), *geometry.in_shape))
        values = pads.unblind(pads.gradient(geometry, delta, p), term)
        return Release(request, step, values, self.shape)

    def close(self):
        self.authority.close()
