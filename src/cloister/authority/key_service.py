"""What the training server may ask of the key authority.

The authority holds the mask keys K of the clients. It answers with *unmasking terms*: for a linear
map A and samples i, the term A M_i turns A P_i into A x_i (see `cloister.published.mask`). Who
receives the term is the whole difference between functional encryption (the server) and Slalom (a
trusted runtime).
"""

from typing import Literal, Protocol

import numpy as np
from jaxtyping import Int16, Int64, UInt32

from cloister.data.info import DatasetInfo
from cloister.ring.linear import Geometry, LinearMap

Receiver = Literal["server", "trusted"]
"""Who gets the unmasking term. At a real authority the presented token decides it: a server's
token that asks as "trusted" is refused."""


class KeyService(Protocol):
    """The authority as the server sees it: in process, or over HTTPS.

    Sample ids are global in a data set. The answer is released only after the ledger has recorded
    its cost on stable storage; the same request again is free.
    """

    def describe(self, dataset: str) -> DatasetInfo:
        """The public description of a data set.

        Raises EncryptionError when the authority does not know it, AuthorityUnavailable.
        """
        ...

    def forward_key(
        self,
        dataset: str,
        ids: Int64[np.ndarray, " n"],
        linear: LinearMap,
        *,
        receiver: Receiver,
    ) -> UInt32[np.ndarray, "n oh ow oc"]:
        """A M_i for each sample: the unmasking term of A P_i.

        Raises BudgetError, FunctionError, EncryptionError (unknown id), AuthorityUnavailable.
        """
        ...

    def gradient_key(
        self,
        dataset: str,
        ids: Int64[np.ndarray, " n"],
        geometry: Geometry,
        delta: Int16[np.ndarray, "n oh ow oc"],
        *,
        receiver: Receiver,
    ) -> UInt32[np.ndarray, "o kh kw cg"]:
        """The unmasking term of the weight gradient, summed over the batch.

        Raises BudgetError, FunctionError, EncryptionError (unknown id), AuthorityUnavailable.
        """
        ...

    def label_key(
        self, dataset: str, ids: Int64[np.ndarray, " n"], *, receiver: Receiver
    ) -> UInt32[np.ndarray, "n classes"]:
        """The masks of the encrypted labels: unmasks the difference of prediction and label.

        Raises BudgetError, EncryptionError (unknown id), AuthorityUnavailable.
        """
        ...
