"""`cloister data merge` and `withdraw`: what several clients of one data set do with it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli import options
from cloister.cli.console import note, out
from cloister.data.dataset import EncryptedDataset
from cloister.data.id_spans import IdSpans
from cloister.data.info import PartInfo
from cloister.data.merging import merge as merge_files
from cloister.errors import InputError
from cloister.training.data_owner import absence, check_origin


@dataclass(frozen=True)
class ChosenSamples:
    """Samples of a data set, by their parts or one by one."""

    part: Annotated[
        list[str] | None,
        typer.Option("--part", metavar="ID", help="A part, or the start of its name; repeatable."),
    ] = None
    ids: Annotated[
        str | None,
        typer.Option("--ids", metavar="3,7,10-19", help="Sample numbers of the data set."),
    ] = None

    def spans(self, parts: Sequence[PartInfo]) -> IdSpans:
        """Their numbers.

        Raises   InputError naming the option
        """
        found = [] if self.ids is None else _spans(self.ids)
        for name in self.part or ():
            named = [one for one in parts if one.part.startswith(name)] if name else []
            if len(named) != 1:
                count = f"{len(named)} parts begin" if named else "no part begins"
                raise InputError(f"--part {name}: {count} with it; `cloister data show` lists them")
            found.append((named[0].first, named[0].last))
        if not found:
            raise InputError("give --part ID or --ids 3,7,10-19")
        return IdSpans.of(found)


def _spans(text: str) -> list[tuple[int, int]]:
    found = []
    for one in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", one)
        if match is None:
            raise InputError(f"--ids {text}: give sample numbers such as 3,7,10-19")
        found.append((int(match[1]), int(match[2] or match[1]) + 1))
    return found


@options.grouped
def merge(
    files: Annotated[
        list[Path], typer.Argument(metavar="DATA.cloister...", help="Files of one data set.")
    ],
    access: options.OptionalAuthority,
    out_file: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The merged file, which is new.")
    ],
) -> None:
    """Merge files of one data set, to which clients appended apart. Needs no key.

    A part that several files hold is taken once. Given an authority, parts that are not registered
    are refused; without one, `cloister train` refuses them.
    """
    opened = [EncryptedDataset.open(path, verify=False) for path in files]
    service = access.connect()
    if service is not None:
        with service:
            for one in opened:
                check_origin(one, service)
            merge_files(opened, out_file)
            absent = check_origin(EncryptedDataset.open(out_file, verify=False), service)
        if absent:
            note(absence(out_file, absent))
    else:
        merge_files(opened, out_file)
    merged = EncryptedDataset.open(out_file, verify=False)
    out().print(
        f"{merged.samples:,} samples in {len(merged.parts)} parts of data set {merged.name} "
        f"merged into {out_file}"
    )


@options.grouped
def withdraw(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The data set's name.")],
    access: options.AuthorityAccess,
    chosen: ChosenSamples,
) -> None:
    """Withdraw samples that were registered with this token: no key is issued for them any more.

    Servers keep the values that they were given, and the ledger keeps their count. The next run of
    `cloister train` leaves the samples out.
    """
    with access.connect() as service:
        fresh = service.withdraw(dataset, chosen.spans(service.parts(dataset)))
        left = service.describe(dataset).samples - service.withdrawn(dataset).count
    show_withdrawn(dataset, fresh, left)


def show_withdrawn(dataset: str, fresh: int, left: int) -> None:
    """Say what a withdrawal came to."""
    out().print(f"{fresh:,} samples of data set {dataset} withdrawn, {left:,} are left")
    note(
        "servers keep the values and models that they have: have them train anew, with a new "
        "--checkpoint"
    )


def withdrawn_samples(
    dataset: EncryptedDataset, access: options.OptionalAuthority
) -> IdSpans | None:
    """What an authority says of a file's samples; None: no authority is named.

    Raises   EncryptionError when the file is not as this authority has registered it
    """
    service = access.connect()
    if service is None:
        return None
    with service:
        absent = check_origin(dataset, service)
        if absent:
            note(absence(dataset.path, absent))
        return service.withdrawn(dataset.name)
