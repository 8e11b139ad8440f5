"""The authority as clients, servers and trusted runtimes reach it: HTTPS with a pinned key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt32

from cloister.authority.agreement import Agreement, Known
from cloister.authority.key_service import Receiver
from cloister.authority.records import Summary, read_terms
from cloister.authority.registration import NewPart, Registration
from cloister.authority.requests import Request
from cloister.authority.tokens import is_token
from cloister.base import files
from cloister.base.identity import PublicIdentity
from cloister.base.rng import KEY_BYTES
from cloister.data.id_spans import IdSpans
from cloister.data.info import DatasetInfo, PartInfo
from cloister.errors import AuthorityUnavailable, InputError, ProtocolError
from cloister.wire.https.https_client import ANSWER_TIMEOUT_S, RETRY_FOR_S, HttpsClient

MAX_TOKEN_BYTES = 4096

_Record = TypeVar("_Record", PartInfo, Summary)


class AuthorityClient:
    """A `KeyService` over HTTPS, and what clients of a data set need besides.

    Every call may be repeated without harm, and is when the connection is lost.
    """

    def __init__(
        self,
        url: str,
        *,
        public: Path | str | PublicIdentity,
        token: str,
        timeout_s: float = ANSWER_TIMEOUT_S,
        retry_for_s: float = RETRY_FOR_S,
    ) -> None:
        """Prepare to call; nothing is sent yet.

        Raises   InputError, EncryptionError when the public file cannot be used
        """
        self.public = public if isinstance(public, PublicIdentity) else PublicIdentity.load(public)
        self._https = HttpsClient(
            url,
            certificate=self.public.certificate,
            token=token,
            timeout_s=timeout_s,
            retry_for_s=retry_for_s,
            unavailable=AuthorityUnavailable,
        )

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the authority that answers."""
        return self.public.fingerprint

    def close(self) -> None:
        """Close the connection."""
        self._https.close()

    def __enter__(self) -> "AuthorityClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def describe(self, dataset: str) -> DatasetInfo:
        """See `KeyService.describe`."""
        answer = self._https.call("describe", {"dataset": dataset})
        return DatasetInfo.from_json(answer.text("info").encode())

    def ask(self, request: Request, receiver: Receiver) -> UInt32[np.ndarray, "..."]:
        """See `KeyService.ask`."""
        fields = request.fields | {"receiver": receiver}
        return request.answer(self._https.call(request.kind, fields, request.tensors))

    def summary(self, dataset: str) -> Summary:
        """The budget of a data set in figures."""
        answer = self._https.call("summary", {"dataset": dataset})
        return _made(Summary, answer.mapping("summary"))

    def parts(self, dataset: str) -> tuple[PartInfo, ...]:
        """The registered parts of a data set."""
        listed = self._https.call("parts", {"dataset": dataset}).mapping("parts")
        return tuple(_made(PartInfo, fields) for fields in listed.values())

    def answer_key(self, dataset: str) -> bytes:
        """The public key to which predictions are sealed for the clients of a data set."""
        return self._https.call("answer_key", {"dataset": dataset}).array(0, np.uint8, 1).tobytes()

    def withdrawn(self, dataset: str) -> IdSpans:
        """The samples for which the authority issues no key."""
        return IdSpans(self._https.call("withdrawn", {"dataset": dataset}).array(0, np.int64, 1))

    def withdraw(self, dataset: str, ids: IdSpans) -> int:
        """Have no key issued for these samples; gives how many were not withdrawn before.

        Raises   FunctionError where another token registered one of them
        """
        answer = self._https.call("withdraw", {"dataset": dataset}, (ids.bounds,))
        return answer.number("fresh")

    def find(self, dataset: str) -> Known | None:
        """A data set as its clients may know it; None: the authority has none of this name.

        Secret   result
        """
        answer = self._https.call("find", {"dataset": dataset})
        if not answer.fields:
            return None
        info = DatasetInfo.from_json(answer.text("info").encode())
        label_key = answer.array(0, np.uint8, 1).tobytes()
        if info.name != dataset or len(label_key) != KEY_BYTES:
            raise ProtocolError(f"the authority's answer about data set {dataset} is of another")
        return Known(Agreement(info, read_terms(answer.mapping("terms"))), label_key)

    def register(self, agreed: Agreement, new: NewPart) -> int:
        """Hand over a part's keys; gives the id of its first sample.

        For `enrolment.enrol`, which compares what is agreed to with what was accepted.

        Secret   the part's keys, sealed here
        Raises   EncryptionError for a replay, and when the data set is another by now
        """
        offered = Registration.of(new, agreed, to=self.public)
        answer = self._https.call("register", offered.fields, offered.tensors)
        return answer.number("first")


def connect(
    url: str, *, pin: Path | str, token: Path | str, retry_for_s: float = RETRY_FOR_S
) -> AuthorityClient:
    """A client of the authority at `url`; nothing is sent yet.

    pin      the authority's public file
    token    a bearer token, or the `Path` of a file that holds one and that only its owner can read
    Raises   InputError, EncryptionError when a file cannot be used
    """
    if isinstance(token, str) and not is_token(token):
        raise InputError("token= takes a token, or Path(...) of the file that holds one")
    bearer = read_token(token) if isinstance(token, Path) else token
    return AuthorityClient(url, public=pin, token=bearer, retry_for_s=retry_for_s)


def read_token(path: Path) -> str:
    """The token in a file.

    Raises   InputError, also when others can read the file
    """
    try:
        return files.read_private(path, most=MAX_TOKEN_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: holds no token that can be read ({error})") from None


def _made(kind: type[_Record], fields: Mapping[str, Any]) -> _Record:
    try:
        return kind(**fields)
    except TypeError:
        raise ProtocolError(f"the authority's {kind.__name__} is not understood") from None
