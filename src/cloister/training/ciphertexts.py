"""The ciphertext server: the side that holds the ciphertexts and computes on them.

    forward   A P mod 2^32                          (P = X + M: the blinded samples)
    gradient  sum over i, p of delta[i, p] P[i, p]  mod 2^32

It has no key and no unblinding term, so all its data and answers are uniform over Z_2^32. The
training process either is this server (`unblind_to="server"`) or asks it (`"trusted"`). Then it is
*sent* weights, which are not uniform (`sent`), and its answers are not checked. So it is asked for
products alone: ciphertexts and labels come from the asking side's own file, which is authenticated,
and no answer can make a sample larger than its encoding allows.

A request is one of `cloister.authority.requests`: the authority is asked the same.
"""

import hashlib
from typing import Protocol

import numpy as np
from jaxtyping import Float32, Int64, UInt32

from cloister.authority.request_log import Recorder, asked
from cloister.authority.requests import Evaluation, Forward, Gradient, Kind, Labels, Request
from cloister.errors import InputError, UnknownDatasetError
from cloister.ring.bounds import Described


class Ciphertexts(Described, Protocol):
    """The parts of an encrypted data set that a server reads."""

    def data(self, ids: Int64[np.ndarray, " n"]) -> UInt32[np.ndarray, "n h w c"]:
        """Blinded samples."""
        ...

    def labels(self, ids: Int64[np.ndarray, " n"]) -> UInt32[np.ndarray, "n classes"]:
        """Blinded one-hot labels."""
        ...


class CiphertextServer(Protocol):
    """What training asks about ciphertexts: products with blinded samples, and blinded labels."""

    def ask(self, request: Request) -> UInt32[np.ndarray, "..."]:
        """A P or the sum of delta P modulo 2^32, which the caller may write into; or labels."""
        ...


class LocalCiphertextServer:
    """Serves data sets from this machine's disk.

    The batch of the last forward product is kept for its gradient, which follows directly.
    """

    def __init__(self, *datasets: Ciphertexts, threads: int = 1) -> None:
        if threads < 1:
            raise InputError(f"threads must be at least 1, got {threads}")
        self._datasets = {dataset.name: dataset for dataset in datasets}
        self._threads = threads
        self._last: tuple[str, bytes, UInt32[np.ndarray, "n h w c"]] | None = None

    def ask(self, request: Request) -> UInt32[np.ndarray, "..."]:
        """See CiphertextServer."""
        if isinstance(request, Labels):
            return self.dataset(request.dataset).labels(request.ids)
        if isinstance(request, Evaluation):
            return request.image(self.dataset(request.dataset).labels(request.ids))
        blinded = self.data(request.dataset, request.ids)
        return request.image([(slice(None), blinded)], threads=self._threads)

    def data(self, dataset: str, ids: Int64[np.ndarray, " n"]) -> UInt32[np.ndarray, "n h w c"]:
        """The blinded samples themselves; not the caller's to write into."""
        key, last = ids.tobytes(), self._last
        if last is None or last[:2] != (dataset, key):
            # Other threads may ask at the same time: an answer is never read back from the cache.
            last = (dataset, key, self.dataset(dataset).data(ids))
            self._last = last
        return last[2]

    def dataset(self, name: str) -> Ciphertexts:
        """The data set of this name.

        Raises   UnknownDatasetError when it is not here
        """
        if name not in self._datasets:
            raise UnknownDatasetError(
                f"data set {name!r} is not here; start the server with its file"
            )
        return self._datasets[name]


class HostedServer:
    """Forward products by a host, labels and gradients from one's own file.

    gradients   the host makes these too, and is sent each sample's output gradient
    """

    def __init__(self, host: CiphertextServer, own: CiphertextServer, *, gradients: bool) -> None:
        self._own = own
        self._of: dict[Kind, CiphertextServer] = {"forward": host}
        if gradients:
            self._of["gradient"] = host

    def ask(self, request: Request) -> UInt32[np.ndarray, "..."]:
        """See CiphertextServer."""
        return self._of.get(request.kind, self._own).ask(request)


class RecordingServer:
    """Another server, and a record of the products it was asked for, for `cloister audit`."""

    def __init__(self, server: CiphertextServer, log: Recorder) -> None:
        self._server, self._log = server, log

    def ask(self, request: Request) -> UInt32[np.ndarray, "..."]:
        """See CiphertextServer."""
        if isinstance(request, Forward | Gradient):
            self._log.append(asked(request))
        return self._server.ask(request)


class WitnessedServer:
    """Another ciphertext server, and a digest of what it has answered in a step."""

    def __init__(self, server: CiphertextServer) -> None:
        self._server = server
        self._seen = hashlib.sha256()

    def begin(self, labels: Int64[np.ndarray, " n"] | Float32[np.ndarray, "n classes"]) -> None:
        """A new step, on samples whose labels it has answered before."""
        self._seen = hashlib.sha256(np.ascontiguousarray(labels).data)

    def digest(self) -> bytes:
        """SHA-256 of the labels and of the step's answers so far."""
        return self._seen.digest()

    def ask(self, request: Request) -> UInt32[np.ndarray, "..."]:
        """See CiphertextServer."""
        answer = self._server.ask(request)
        # Its place is fixed by the step, so lengths need no separators.
        self._seen.update(np.ascontiguousarray(answer).data)
        return answer
