"""Digests of the samples that a client has encrypted, by which it notices the same data twice.

A sample that is encrypted again has a second ciphertext with a budget of its own. So the client
keeps a digest of every sample that it added to a data set, of the encoded values before any noise,
in a private file for each part. The digests are keyed by the data set's label key: a party without
it cannot test guesses. No digest leaves the client.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt64

from cloister.base import files
from cloister.data.id_spans import IdSpans
from cloister.data.info import PartInfo
from cloister.data.writer import Chunk
from cloister.errors import InputError

DIGEST_BYTES = 8
"""A repeat by accident, at most n^2 / 2^65, only asks for consent."""
SUFFIX = ".digests"
LISTED = 10


def default_folder() -> Path:
    """Where a user's digests are kept: with the state of programs, and not beside the data set.

    Raises   InputError for a user without a home
    """
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError:
        raise InputError("--digests FOLDER: give one, this user has no home folder") from None
    return Path(state) / "cloister" / "samples"


class SampleDigests:
    """The digests of this client's samples in one data set.

    Secret   all of it: a party that has the data set's label key can test guesses
    """

    def __init__(
        self, folder: Path, *, fingerprint: str, dataset: str, key: bytes,
        rows: Int64[np.ndarray, " n"],
    ) -> None:  # fmt: skip
        """Prepare the folder.

        rows     number in the owner's data of each sample, in the order of `watch`
        Secret   key
        Raises   InputError when the folder cannot be made
        """
        self._folder, self._key, self._rows = folder / fingerprint / dataset, key, rows
        self._dataset = dataset
        self._made = bytearray()
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise self._unusable(error) from None

    def watch(
        self, chunks: Iterator[Chunk], *, known: UInt64[np.ndarray, " m"], again: bool
    ) -> Iterator[Chunk]:
        """The same chunks; behind the last one, samples are refused that are known already.

        again    take them all the same
        Raises   InputError naming the samples
        """
        for chunk in chunks:
            for x in chunk.x:
                made = hashlib.blake2b(x.tobytes(), key=self._key, digest_size=DIGEST_BYTES)
                self._made += made.digest()
            yield chunk
        found = np.sort(self._rows[np.isin(self._digests, known)])
        if len(found) and not again:
            raise InputError(
                f"data set {self._dataset}: you have added {len(found):,} of these "
                f"{len(self._rows):,} samples before (samples {_listed(found)}), and each would "
                "get a second budget; leave them out, or add them all the same with --again"
            )

    def known(self, parts: Iterable[PartInfo], withdrawn: IdSpans) -> UInt64[np.ndarray, " m"]:
        """The digests of the samples that this client added, without those it has withdrawn.

        Raises   InputError naming a file that cannot be used
        """
        found = [np.empty(0, np.uint64)]
        by_name = {part.part: part for part in parts}
        # The names are those of the folder: what an authority says is no path.
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            part = by_name.get(path.stem)
            if part is None:
                continue  # of a data set that was deleted
            try:
                content = files.read_private(path, most=DIGEST_BYTES * part.samples + 1)
            except OSError as error:
                raise self._unusable(error) from None
            if len(content) != DIGEST_BYTES * part.samples:
                raise InputError(f"{path}: is damaged; remove it")
            ids = np.arange(part.first, part.last, dtype=np.int64)
            found.append(np.frombuffer(content, "<u8")[~withdrawn.holds(ids)])
        return np.concatenate(found).astype(np.uint64)

    def keep(self, part: PartInfo) -> None:
        """Write the digests of a part that is in the data set now.

        Raises   InputError
        """
        try:
            files.create(self._folder / f"{part.part}{SUFFIX}", bytes(self._made), private=True)
        except OSError as error:
            raise self._unusable(error) from None

    @property
    def repeated(self) -> str | None:
        """Which samples occur several times among these, in words; None: all differ."""
        order = np.argsort(self._rows)
        _, first = np.unique(self._digests[order], return_index=True)
        found = np.delete(self._rows[order], first)
        if not len(found):
            return None
        return f"{len(found):,} samples repeat others of the same source (samples {_listed(found)})"

    @property
    def _digests(self) -> UInt64[np.ndarray, " n"]:
        return np.frombuffer(bytes(self._made), "<u8").astype(np.uint64)

    def _unusable(self, error: OSError) -> InputError:
        return InputError(
            f"{self._folder}: cannot be used ({error.strerror or error}); give another place with "
            "--digests FOLDER"
        )


def _listed(rows: Int64[np.ndarray, " n"]) -> str:
    named = ", ".join(map(str, rows[:LISTED].tolist()))
    return named if len(rows) <= LISTED else f"{named} and {len(rows) - LISTED:,} more"
