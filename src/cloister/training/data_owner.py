"""A data owner's side: samples become a part of an encrypted data set, on terms that they accept.

Nothing plain leaves this process. The part's pad key is sealed to the authority; the file holds
blinded samples and labels only.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import UInt64

from cloister.authority.agreement import Agreement
from cloister.authority.enrolment import ClientService, Enrolment, enrol
from cloister.base.rng import SystemRandom
from cloister.data.csv_source import TableSource
from cloister.data.dataset import EncryptedDataset
from cloister.data.encoder import Encoder, chunks, random_order
from cloister.data.feature_noise import GaussianNoise
from cloister.data.id_spans import NO_IDS
from cloister.data.info import DatasetInfo, PartInfo
from cloister.data.owner import (
    NewDataset,
    Notes,
    OrderFile,
    Privacy,
    add_noise,
    noise_statement,
)
from cloister.data.sample_digests import SampleDigests, default_folder
from cloister.data.sources import ArraySource, Source, open_source
from cloister.data.writer import PATIENCE_S, Chunk, EncryptedDatasetWriter, check_registered
from cloister.errors import EncryptionError, InputError, UnknownDatasetError
from cloister.training.proposal import accept, propose

_log = logging.getLogger("cloister.training")
Note = Callable[[str], None]
"""Receives a remark for its user, one sentence."""
Update = Callable[[str, int, int], None]
"""Receives the name of the present task, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class EncryptedPart:
    """A part that was added to a data set.

    agreement     the data set's description before the part was added, and its terms
    fingerprint   of its authority
    clipped       values that were brought to the ends of the range
    noise         what the accountant says about the noise, if any was added
    remarks       what the owner should know, a sentence each
    """

    agreement: Agreement
    fingerprint: str
    part: PartInfo
    clipped: int
    noise: str | None
    remarks: tuple[str, ...]


def encrypt(
    source: Source | Path | str,
    out: Path | str,
    *,
    authority: ClientService,
    privacy: Privacy | str = "strict",
    new: NewDataset | None = None,
    name: str | None = None,
    test_fraction: float = 0.0,
    unlabelled: bool = False,
    noise: float | None = None,
    clip: bool = False,
    order: Path | str | None = None,
    digests: Path | str | None = None,
    again: bool = False,
    patience_s: float = PATIENCE_S,
    note: Note = lambda text: None,
    update: Update = lambda what, done, total: None,
) -> EncryptedPart:
    """Encrypt an owner's samples and add them to a data set.

    The first owner makes the data set, with its samples, and decides its encoding and terms. Others
    join it if it gives away no more than their own `privacy` and `new` would allow.

    source          samples, or a path for `open_source`
    out             the data set's file, which is added to if it exists
    name            the data set's id; default: the file's name
    test_fraction   the random part that is kept for testing
    unlabelled      the samples have no labels, and wait for predictions
    noise           deviation of Gaussian noise on every value, in multiples of the range
    clip            bring values outside the range to its ends instead of refusing them
    order           a new file .npz that keeps which sample is which: secret, it holds the samples
    digests         a private folder that keeps digests of your samples, to notice the same ones
                    again; default: with the state of this user's programs
    again           add samples all the same that were added before
    patience_s      how long to wait for other clients that are adding to the same file
    note, update    are called with each remark as it arises, and with the progress of the work

    Raises   InputError, RangeError, ShapeError, EncryptionError; then nothing was added, unless the
             error says so
    """
    out, remarks = Path(out), _Remarks(note)
    samples = source
    if isinstance(source, str | Path):
        samples = open_source(source, unlabelled=unlabelled)
    if not isinstance(samples, Source):
        raise InputError(
            f"source: a {type(samples).__name__} is none; give a path, or ArraySource(x, y)"
        )
    if isinstance(samples, ArraySource) and new is not None and new.classes is not None:
        samples = samples.named(new.classes)
    privacy = Privacy(privacy) if isinstance(privacy, str) else privacy
    added = None if noise is None else GaussianNoise(noise, "ciphertexts")
    if not 0 <= test_fraction <= 1:
        raise InputError(f"test_fraction must be 0 to 1, got {test_fraction}")
    _check_unlabelled(samples, unlabelled, test_fraction)
    rows = random_order(samples.samples, rng=SystemRandom())
    own = samples.row_numbers[rows] if isinstance(samples, TableSource) else rows
    kept = None if order is None else OrderFile(order, own, targets=samples.targets)
    accepted = _accepted(
        authority, name or out.stem, out, samples, new or NewDataset(), privacy, remarks
    )
    enrolment = enrol(authority, accepted, rng=SystemRandom())
    agreed, info = enrolment.agreement, enrolment.info
    notes = Notes.read(agreed.terms.notes, info)
    statement = None if added is None else noise_statement(added, info)
    encoder = Encoder(samples, info.encoding, columns=notes.columns, clip=clip)
    made: Iterator[Chunk] = chunks(
        samples,
        encoder,
        targets=notes.target_encoder(samples, info),
        test_fraction=test_fraction,
        order=rows,
    )
    seen = SampleDigests(
        default_folder() if digests is None else Path(digests),
        fingerprint=enrolment.fingerprint, dataset=info.name, key=enrolment.digest_key, rows=own,
    )  # fmt: skip
    made = seen.watch(made, known=_known(seen, authority, info), again=again)
    if kept is not None:
        made = kept.watch(made)
    if added is not None:
        made = add_noise(made, added, encoding=info.encoding, rng=SystemRandom())
    writer = EncryptedDatasetWriter(out, enrolment, patience_s=patience_s)
    remarks.absent(out, _absent(authority, out, enrolment))
    try:
        part = writer.append(_watched(made, len(rows), update), rng=SystemRandom())
    except EncryptionError:
        if info.samples or authority.find(info.name) is None:
            raise
        part = None
    if part is None:
        # Another client has made the data set meanwhile: join that one, if its terms are accepted.
        return encrypt(
            samples, out, authority=authority, privacy=privacy, new=new, name=name,
            test_fraction=test_fraction, unlabelled=unlabelled, noise=noise, clip=clip, order=order,
            digests=digests, again=again, patience_s=patience_s, note=note, update=update,
        )  # fmt: skip
    _log.info(
        "data set %s: part %s with %d samples is in %s", info.name, part.part, part.samples, out
    )
    with _added(out):
        seen.keep(part)
        if kept is not None:
            kept.write(part, clients=enrolment.clients)
    if seen.repeated is not None:
        remarks(seen.repeated)
    remarks.after(agreed, samples, encoder, order)
    return EncryptedPart(
        agreed, enrolment.fingerprint, part, encoder.clipped, statement, tuple(remarks.given)
    )


class _Remarks:
    """Remarks for the owner, as they arise."""

    def __init__(self, note: Note) -> None:
        self._note = note
        self.given: list[str] = []

    def __call__(self, text: str) -> None:
        self.given.append(text)
        self._note(text)

    def absent(self, path: Path, parts: list[PartInfo]) -> None:
        if parts:
            self(absence(path, parts))

    def after(
        self, agreed: Agreement, samples: Source, encoder: Encoder, order: Path | str | None
    ) -> None:
        info = agreed.info
        if info.mode == "budgeted" and info.budget_rank == 0:
            self(
                "a budget of 0 gives a training server nothing: only `cloister train --unblind-to "
                "trusted` trains on this data set; a new one may have a --privacy budget=N"
            )
        if info.mode == "budgeted" and info.budget_rank == info.dim:
            self(
                f"a budget of {info.budget_rank} is a whole sample: a training server may get "
                f"values that determine all of its {info.dim} elements, up to their noise; a new "
                "data set with a smaller --privacy budget=N gives less away"
            )
        for remark in samples.remarks:
            self(remark)
        if encoder.clipped:
            self(f"{encoder.clipped:,} values outside the range were brought to its ends")
        if info.samples:
            self(
                f"data set {info.name} had {info.samples:,} samples; these are added as its "
                "first client encoded them and on its terms, which give away no more than yours. "
                "Samples that another client has added already get a second budget"
            )
        if order is not None:
            self(f"{order} holds your samples in plain; keep it to yourself")


class PartsService(Protocol):
    """The authority as a holder of a data set file sees it."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the authority."""
        ...

    def parts(self, dataset: str) -> tuple[PartInfo, ...]:
        """The registered parts of a data set."""
        ...


def check_origin(dataset: EncryptedDataset, authority: PartsService) -> list[PartInfo]:
    """Refuse a file of another authority, or with parts that this one has not registered so.

    Gives the parts on record that the file does not hold.

    Raises   EncryptionError naming file and part
    """
    if dataset.authority_fingerprint != authority.fingerprint:
        raise EncryptionError(
            f"{dataset.path}: belongs to authority {dataset.authority_fingerprint[:16]}, not "
            f"{authority.fingerprint[:16]}; give that one's --authority and --pin"
        )
    return check_registered(dataset, authority.parts(dataset.name))


def _check_unlabelled(samples: Source, unlabelled: bool, test_fraction: float) -> None:
    """Labels are neither missed nor thrown away unasked.

    Raises   InputError
    """
    if samples.labels is None and not unlabelled:
        raise InputError(
            "source: its samples have no labels to learn from; to have predictions for them, give "
            "unlabelled=True (--unlabelled)"
        )
    if samples.labels is not None and unlabelled:
        raise InputError(
            "source: its samples have labels, and unlabelled ones were to be encrypted; leave "
            "either out"
        )
    if unlabelled and test_fraction:
        raise InputError("unlabelled samples cannot test: leave out test_fraction")


def absence(path: Path, absent: list[PartInfo]) -> str:
    """What to say of parts on record that a file does not hold."""
    count, names = sum(part.samples for part in absent), ", ".join(p.part[:8] for p in absent)
    return (
        f"{count:,} registered samples are not in {path} (part {names}): their client was "
        "interrupted and may encrypt them again, or is not done, or they are in another copy"
    )


def _accepted(
    authority: ClientService,
    name: str,
    out: Path,
    samples: Source,
    new: NewDataset,
    privacy: Privacy,
    note: Note,
) -> Agreement:
    """The agreement that this owner accepts for the data set, which it makes if there is none.

    Raises   InputError, RangeError, UnknownDatasetError
    """
    known = authority.find(name)
    if known is not None:
        return accept(known.agreement, samples, new, privacy)
    if out.exists() and EncryptedDataset.open(out, verify=False).parts:
        raise UnknownDatasetError(
            f"{out}: exists, but data set {name} is not known to this authority; "
            "choose another file, or its --name"
        )
    return propose(name, samples, new, privacy, note=note)


def _absent(authority: ClientService, out: Path, enrolment: Enrolment) -> list[PartInfo]:
    absent = list(authority.parts(enrolment.info.name)) if enrolment.info.samples else []
    if not out.exists():
        return absent
    return check_registered(EncryptedDataset.open(out, verify=False), absent)


def _watched(made: Iterator[Chunk], total: int, update: Update) -> Iterator[Chunk]:
    done = 0
    for chunk in made:
        yield chunk
        done += len(chunk.x)
        update("encrypting", done, total)


def _known(
    seen: SampleDigests, authority: ClientService, info: DatasetInfo
) -> UInt64[np.ndarray, " n"]:
    """The digests of samples that this owner has added before and not withdrawn."""
    if not info.samples:
        return seen.known((), NO_IDS)
    return seen.known(authority.parts(info.name), authority.withdrawn(info.name))


@contextmanager
def _added(out: Path) -> Iterator[None]:
    """Say of what fails that the samples are in the data set."""
    try:
        yield
    except InputError as error:
        raise InputError(
            f"{error}; the samples are in {out} all the same, do not encrypt them again"
        ) from None
