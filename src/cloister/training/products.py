"""Products of the first layer, unblinded: a server's product minus the authority's unblinding term.

    A x = A P - A M,      sum delta x = sum delta P - sum delta M      (mod 2^32, centred)

Only this module brings a ciphertext product and a function key together. `receiver` says where the
difference is taken: at the server, which then learns these values, or at a trusted runtime, which
may leave the first term to a host (`server.HostedServer`). What either is sent, and the authority,
is in `sent`.
"""

import logging
import time
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int16, Int64, UInt32

from cloister.authority.key_service import KeyService, Receiver
from cloister.authority.request_log import Recorder, Release, asked
from cloister.authority.requests import Evaluation, Forward, Gradient, Labels, Request
from cloister.data.info import DatasetInfo
from cloister.data.target_encoding import NUMBER_BOUND, are_targets
from cloister.errors import AuthorityUnavailable, EncryptionError, InputError
from cloister.ring import pads
from cloister.ring.linear import Geometry, LinearMap
from cloister.training.ciphertexts import CiphertextServer
from cloister.training.difference import Difference

_log = logging.getLogger("cloister.training")
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0


@dataclass
class ProductCounters:
    """Requests made, and seconds spent on either side of the subtraction."""

    requests: int = 0
    server_s: float = 0.0
    authority_s: float = 0.0


class Products:
    """Forward products, weight gradients and labels of one data set.

    recorder   keeps what the server receives, where it is the receiver
    requests   keeps what the authority is asked

    Raises   AuthorityUnavailable when the authority stays away for longer than `patience_s`;
             BudgetError, FunctionError and EncryptionError pass through
    """

    def __init__(
        self,
        info: DatasetInfo,
        server: CiphertextServer,
        *,
        keys: KeyService,
        receiver: Receiver = "server",
        recorder: Recorder | None = None,
        requests: Recorder | None = None,
        patience_s: float = 60.0,
    ) -> None:
        if patience_s < 0:
            raise InputError(f"patience must not be negative, got {patience_s} s")
        self.info = info
        self.receiver: Receiver = receiver
        self.step = 0
        self.counters = ProductCounters()
        self._server = server
        self._keys = keys
        self._recorder = recorder if receiver == "server" else None
        self._requests = requests
        self._patience_s = patience_s

    @property
    def x_bound(self) -> int:
        """Largest absolute value of an encoded sample."""
        return self.info.encoding.bound

    def forward(self, ids: Int64[np.ndarray, " n"], linear: LinearMap) -> Difference:
        """A x of every sample, exact.

        Domain   |A x| < 2^31, which the caller's scale has to guarantee
        """
        return Difference(*self._ask(Forward(self.info.name, ids, linear)))

    def gradient(
        self,
        ids: Int64[np.ndarray, " n"],
        geometry: Geometry,
        delta: Int16[np.ndarray, "n oh ow oc"],
    ) -> Difference:
        """Weight gradient summed over the batch, exact.

        Domain   as `forward`
        """
        return Difference(*self._ask(Gradient(self.info.name, ids, geometry, delta)))

    def labels(
        self, ids: Int64[np.ndarray, " n"]
    ) -> Int64[np.ndarray, " n"] | Float32[np.ndarray, "n classes"]:
        """What every sample has to learn: its (permuted) class (n,), its (permuted) labels 0 and 1,
        or its numbers from -1 to 1, as parts of their half ranges.

        The loss needs P - Y and <log P, Y>; both, with P known, are Y. So Y is asked for once.

        Raises   EncryptionError when a decrypted target is none of the data set's kind
        """
        values = pads.unblind(*self._ask(Labels(self.info.name, ids)))
        possible = are_targets(values, self.info.targets)
        if not possible.all():
            sample = int(ids[int(np.argmin(possible))])
            raise EncryptionError(
                f"data set {self.info.name!r}: the label of sample {sample} does not decrypt; "
                "the file and the authority's keys do not belong together"
            )
        if self.info.targets == "classes":
            return np.asarray(values.argmax(axis=1), np.int64)
        unit = NUMBER_BOUND if self.info.targets == "numbers" else 1
        return np.asarray(values / unit, np.float32)

    def evaluation(
        self, ids: Int64[np.ndarray, " n"], weights: Int16[np.ndarray, "n classes"]
    ) -> int:
        """The sum over samples of <w_i, y_i>, with the noise of a server that may have no labels.

        Domain   |sum| < 2^31, which the caller's scale has to guarantee
        """
        return int(pads.unblind(*self._ask(Evaluation(self.info.name, ids, weights)))[0])

    def _ask(self, request: Request) -> tuple[UInt32[np.ndarray, "..."], UInt32[np.ndarray, "..."]]:
        """The blinded answer of the ciphertext server, and the authority's unblinding term."""
        started = time.perf_counter()
        try:
            blinded = self._server.ask(request)
        finally:
            self.counters.server_s += time.perf_counter() - started
        if self._requests is not None and isinstance(request, Forward | Gradient):
            self._requests.append(asked(request, step=self.step))
        key = self._term(request)
        if self._recorder is not None:
            values = pads.unblind(blinded, key)
            self._recorder.append(Release(request, self.step, values, self.info.shape))
        return blinded, key

    def _term(self, request: Request) -> UInt32[np.ndarray, "..."]:
        """One request to the authority, repeated while it is away and patience lasts."""
        started = time.perf_counter()
        wait = FIRST_WAIT_S
        self.counters.requests += 1
        try:
            while True:
                try:
                    return self._keys.ask(request, self.receiver)
                except AuthorityUnavailable:
                    # Asking again is free: the ledger does not charge a repeated function.
                    if time.perf_counter() - started + wait > self._patience_s:
                        raise
                _log.info("the authority is away; asking again in %.1f s", wait)
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT_S)
        finally:
            self.counters.authority_s += time.perf_counter() - started
