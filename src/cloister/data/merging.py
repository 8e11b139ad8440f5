"""Merging files of one data set, to each of which some clients have appended their parts.

No key is needed: parts are copied as they are. A merged file holds what its sources held; whether a
part is registered is the authority's to say, and trainers ask it.
"""

from collections.abc import Sequence
from pathlib import Path

from cloister.base import files
from cloister.data.dataset import (
    BLOCK_BYTES,
    Commit,
    EncryptedDataset,
    check_apart,
    encode_block,
)
from cloister.data.info import PartInfo
from cloister.data.writer import header_difference, write_part, write_slot
from cloister.errors import EncryptionError, InputError
from cloister.ring.bounds import MAX_PARTS


def merge(sources: Sequence[EncryptedDataset], out: Path) -> None:
    """Write the parts of files of one data set into a new file, by first id.

    A part that several of them hold is written once. The new file is there whole, or not at all.

    Raises   EncryptionError for files of different data sets, and for parts that were altered or
             contradict each other; InputError when there is no part, or the file cannot be written
    """
    parts = _parts(sources)
    try:
        with files.creating(out, private=False) as file:
            file.write(encode_block(sources[0].header))
            commit = Commit(1, BLOCK_BYTES, 0)
            for part, source in parts:
                commit = write_part(file, commit, part, source.contents(part))
            write_slot(file, commit)
    except FileExistsError:
        raise InputError(f"{out}: exists; choose another file") from None
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error}); make room, then merge again"
        ) from None


def _parts(sources: Sequence[EncryptedDataset]) -> list[tuple[PartInfo, EncryptedDataset]]:
    """Every part once, by first id, with a file that holds it."""
    found: dict[PartInfo, EncryptedDataset] = {}
    for source in sources:
        if source.header != sources[0].header:
            difference = header_difference(source.header, sources[0].header)
            raise EncryptionError(f"{source.path}: {difference}, as {sources[0].path}")
        for part in source.parts:
            if part not in found:
                check_apart(part, found, f"{source.path}: a part")
                found[part] = source
    if not found:
        raise InputError("there are no parts to merge")
    if len(found) > MAX_PARTS:
        raise InputError(f"the files hold {len(found)} parts, at most {MAX_PARTS} are possible")
    return sorted(found.items(), key=lambda item: item[0].first)
