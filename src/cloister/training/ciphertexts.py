"""The ciphertext server: the side that holds the ciphertexts and computes on them.

    forward   A P mod 2^32                          (P = X + M: the masked samples)
    gradient  sum over i, p of delta[i, p] P[i, p]  mod 2^32

It has no key and no unmasking term, so everything it holds and answers is uniform over Z_2^32.
The training process either is this server (`unmask_to="server"`) or asks it (`"trusted"`). Then it
is *sent* weights, which are not uniform (`sent`), and its answers are not checked. So it is asked
for products alone: ciphertexts and labels come from the asking side's own file, which is
authenticated, and no answer can make a sample larger than its encoding allows.
"""

import hashlib
from typing import Protocol

import numpy as np
from jaxtyping import Int16, Int64, UInt32

from cloister.errors import EncryptionError, InputError
from cloister.ring import pads
from cloister.ring.bounds import Described
from cloister.ring.linear import Geometry, LinearMap
from cloister.wire.request_log import Recorder, asked


class Ciphertexts(Described, Protocol):
    """What a server reads of an encrypted data set."""

    def data(self, ids: Int64[np.ndarray, " n"]) -> UInt32[np.ndarray, "n h w c"]:
        """Masked samples."""
        ...

    def labels(self, ids: Int64[np.ndarray, " n"]) -> UInt32[np.ndarray, "n classes"]:
        """Masked one-hot labels."""
        ...


class CiphertextHost(Protocol):
    """Products with masked samples, by another machine; `dataset` is a data set's name.

    The products are the caller's, who may write into them.
    """

    def forward(
        self, dataset: str, ids: Int64[np.ndarray, " n"], linear: LinearMap
    ) -> UInt32[np.ndarray, "n oh ow oc"]:
        """A P modulo 2^32."""
        ...

    def gradient(
        self,
        dataset: str,
        ids: Int64[np.ndarray, " n"],
        geometry: Geometry,
        delta: Int16[np.ndarray, "n oh ow oc"],
    ) -> UInt32[np.ndarray, "oc kh kw c"]:
        """Weight gradient of the masked samples modulo 2^32."""
        ...


class CiphertextServer(CiphertextHost, Protocol):
    """The whole of what training asks about ciphertexts."""

    def labels(self, dataset: str, ids: Int64[np.ndarray, " n"]) -> UInt32[np.ndarray, "n classes"]:
        """The masked labels themselves; not the caller's to write into."""
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

    def forward(
        self, dataset: str, ids: Int64[np.ndarray, " n"], linear: LinearMap
    ) -> UInt32[np.ndarray, "n oh ow oc"]:
        """See CiphertextHost."""
        return pads.forward(linear, self.data(dataset, ids), threads=self._threads)

    def gradient(
        self,
        dataset: str,
        ids: Int64[np.ndarray, " n"],
        geometry: Geometry,
        delta: Int16[np.ndarray, "n oh ow oc"],
    ) -> UInt32[np.ndarray, "oc kh kw c"]:
        """See CiphertextHost."""
        return pads.gradient(geometry, delta, self.data(dataset, ids), threads=self._threads)

    def data(self, dataset: str, ids: Int64[np.ndarray, " n"]) -> UInt32[np.ndarray, "n h w c"]:
        """The masked samples themselves; not the caller's to write into."""
        key, last = ids.tobytes(), self._last
        if last is None or last[:2] != (dataset, key):
            # Others may ask at the same time: what is answered is never read back from the cache.
            last = (dataset, key, self.dataset(dataset).data(ids))
            self._last = last
        return last[2]

    def labels(self, dataset: str, ids: Int64[np.ndarray, " n"]) -> UInt32[np.ndarray, "n classes"]:
        """See CiphertextServer."""
        return self.dataset(dataset).labels(ids)

    def dataset(self, name: str) -> Ciphertexts:
        """The data set of this name.

        Raises   EncryptionError when it is not here
        """
        if name not in self._datasets:
            raise EncryptionError(f"data set {name!r} is not here; start the server with its file")
        return self._datasets[name]


class HostedServer:
    """Forward products by a host, labels and gradients from one's own file.

    gradients   the host makes these too, and is sent each sample's output gradient
    """

    def __init__(
        self, host: CiphertextHost, own: LocalCiphertextServer, *, gradients: bool
    ) -> None:
        self._host, self._own = host, own
        self._gradients: CiphertextHost = host if gradients else own

    def forward(
        self, dataset: str, ids: Int64[np.ndarray, " n"], linear: LinearMap
    ) -> UInt32[np.ndarray, "n oh ow oc"]:
        """See CiphertextHost."""
        return self._host.forward(dataset, ids, linear)

    def gradient(
        self,
        dataset: str,
        ids: Int64[np.ndarray, " n"],
        geometry: Geometry,
        delta: Int16[np.ndarray, "n oh ow oc"],
    ) -> UInt32[np.ndarray, "oc kh kw c"]:
        """See CiphertextHost."""
        return self._gradients.gradient(dataset, ids, geometry, delta)

    def labels(self, dataset: str, ids: Int64[np.ndarray, " n"]) -> UInt32[np.ndarray, "n classes"]:
        """See CiphertextServer."""
        return self._own.labels(dataset, ids)


class RecordingHost:
    """Another host, and a record of all that it was asked: what `cloister audit` attacks."""

    def __init__(self, host: CiphertextHost, log: Recorder) -> None:
        self._host, self._log = host, log

    def forward(
        self, dataset: str, ids: Int64[np.ndarray, " n"], linear: LinearMap
    ) -> UInt32[np.ndarray, "n oh ow oc"]:
        """See CiphertextHost."""
        self._log.append(asked("forward request", ids, linear.geometry, linear.weights))
        return self._host.forward(dataset, ids, linear)

    def gradient(
        self,
        dataset: str,
        ids: Int64[np.ndarray, " n"],
        geometry: Geometry,
        delta: Int16[np.ndarray, "n oh ow oc"],
    ) -> UInt32[np.ndarray, "oc kh kw c"]:
        """See CiphertextHost."""
        self._log.append(asked("gradient request", ids, geometry, delta))
        return self._host.gradient(dataset, ids, geometry, delta)


class WitnessedServer:
    """Another ciphertext server, and a digest of what it has answered in a step."""

    def __init__(self, server: CiphertextServer) -> None:
        self._server = server
        self._seen = hashlib.sha256()

    def begin(self, labels: Int64[np.ndarray, " n"]) -> None:
        """A new step, on samples whose labels it has answered before."""
        self._seen = hashlib.sha256(np.ascontiguousarray(labels).data)

    def digest(self) -> bytes:
        """SHA-256 of the labels and of the step's answers so far."""
        return self._seen.digest()

    def forward(
        self, dataset: str, ids: Int64[np.ndarray, " n"], linear: LinearMap
    ) -> UInt32[np.ndarray, "n oh ow oc"]:
        """See CiphertextHost."""
        return self._witness(self._server.forward(dataset, ids, linear))

    def gradient(
        self,
        dataset: str,
        ids: Int64[np.ndarray, " n"],
        geometry: Geometry,
        delta: Int16[np.ndarray, "n oh ow oc"],
    ) -> UInt32[np.ndarray, "oc kh kw c"]:
        """See CiphertextHost."""
        return self._witness(self._server.gradient(dataset, ids, geometry, delta))

    def labels(self, dataset: str, ids: Int64[np.ndarray, " n"]) -> UInt32[np.ndarray, "n classes"]:
        """See CiphertextServer."""
        return self._witness(self._server.labels(dataset, ids))

    def _witness(self, answer: UInt32[np.ndarray, "..."]) -> UInt32[np.ndarray, "..."]:
        # Their place is fixed by the step, so lengths need no separators.
        self._seen.update(np.ascontiguousarray(answer).data)
        return answer
