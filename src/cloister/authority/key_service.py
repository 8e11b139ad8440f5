"""The key authority as a training server or a trusted runtime sees it: it answers requests.

The authority holds the pad keys K of the clients. It answers with *unblinding terms*: for a linear
map A and samples i, the term A M_i turns A P_i into A x_i (see `cloister.ring.pads`). The receiver
of the term is the whole difference between functional encryption (the server) and Slalom (a trusted
runtime).
"""

from typing import Literal, Protocol

import numpy as np
from jaxtyping import UInt32

from cloister.authority.requests import Request
from cloister.data.info import DatasetInfo

Receiver = Literal["server", "trusted"]
"""Who gets the unblinding term. At a real authority the presented token decides it: a server's
token that asks as "trusted" is refused."""


class KeyService(Protocol):
    """The authority as the server sees it: in process, or over HTTPS.

    Sample ids are global in a data set. The answer is released only after the ledger has recorded
    its cost on stable storage; the same request again is free.
    """

    def describe(self, dataset: str) -> DatasetInfo:
        """The public description of a data set.

        Raises   UnknownDatasetError, AuthorityUnavailable
        """
        ...

    def ask(self, request: Request, receiver: Receiver) -> UInt32[np.ndarray, "..."]:
        """The unblinding term: A M_i for each sample, the sum of delta_i M_i, or labels' pads or
        their sum with weights.

        Raises   BudgetError, FunctionError, EncryptionError (unknown id), AuthorityUnavailable
        """
        ...
