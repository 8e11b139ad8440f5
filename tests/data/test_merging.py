import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from cloister.base import files
from cloister.data import dataset as datasets
from cloister.data import merging
from cloister.data.dataset import EncryptedDataset, Header
from cloister.data.encoding import Encoding
from cloister.data.info import PartInfo
from cloister.data.merging import merge
from cloister.data.writer import check_registered, write_part, write_slot
from cloister.errors import EncryptionError, InputError
from data.test_dataset import HEADER, SHAPE, Authority, append, samples


def merged(out, *paths):
    merge([EncryptedDataset.open(path, verify=False) for path in paths], out)
    return EncryptedDataset.open(out)


@pytest.fixture
def clinics(tmp_path):
    """Three files of one data set; the second and the third begin with the same part."""
    authority = Authority()
    north, south, both = (tmp_path / f"{name}.cloister" for name in ("north", "south", "both"))
    append(north, authority, samples(5))
    append(south, authority, samples(4, seed=1))
    shutil.copy(south, both)
    append(both, authority, samples(3, seed=2))
    append(north, authority, samples(2, seed=3))
    return authority, (north, south, both)


def test_a_merged_file_holds_every_part_once_and_as_it_was(clinics, tmp_path):
    authority, paths = clinics
    for number, order in enumerate((paths, paths[::-1], (*paths, *paths))):
        out = merged(tmp_path / f"{number}.cloister", *order)
        assert out.parts == tuple(authority.parts)
        assert check_registered(out, authority.parts) == []
        assert (out.header, out.samples) == (HEADER, 14)
        for path in paths:
            one = EncryptedDataset.open(path)
            np.testing.assert_array_equal(out.data(one.ids), one.data(one.ids))
            np.testing.assert_array_equal(out.labels(one.ids), one.labels(one.ids))
            assert set(one.test_ids.tolist()) <= set(out.test_ids.tolist())
    contents = {(tmp_path / f"{number}.cloister").read_bytes() for number in range(3)}
    assert len(contents) == 1
    # Another client appends to it.
    append(tmp_path / "0.cloister", authority, samples(6))
    assert EncryptedDataset.open(tmp_path / "0.cloister").samples == 20


def test_one_file_and_files_without_parts_are_merged(clinics, tmp_path):
    _, (north, *_) = clinics
    empty = tmp_path / "empty.cloister"
    empty.write_bytes(datasets.encode_block(HEADER))
    assert merged(tmp_path / "out.cloister", empty, north).samples == 7
    with pytest.raises(InputError, match="no parts to merge"):
        merged(tmp_path / "none.cloister", empty)
    assert not (tmp_path / "none.cloister").exists()


def test_a_file_that_exists_is_not_overwritten(clinics, tmp_path):
    _, (north, south, _) = clinics
    before = north.read_bytes()
    with pytest.raises(InputError, match="exists; choose another file"):
        merged(north, north, south)
    with pytest.raises(InputError, match="cannot be written"):
        merged(tmp_path / "none" / "out.cloister", north, south)
    assert north.read_bytes() == before


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (Header("set", SHAPE, 3, HEADER.encoding, "e" * 64), "belongs to authority"),
        (Header("other", SHAPE, 3, HEADER.encoding, "f" * 64), "is data set other, not set"),
        (Header("set", (4, 3, 2), 3, HEADER.encoding, "f" * 64), "holds samples"),
        (Header("set", SHAPE, 3, Encoding(2.0, 0.0, 8), "f" * 64), "another encoding"),
    ],
)
def test_files_of_other_data_sets_are_refused(clinics, tmp_path, header, message):
    _, (north, *_) = clinics
    other, out = tmp_path / "other.cloister", tmp_path / "out.cloister"
    append(other, Authority(), samples(2, shape=header.shape), header=header)
    with pytest.raises(EncryptionError, match=rf"other\.cloister: .*{message}.*north\.cloister"):
        merged(out, north, other)
    assert not out.exists()


def forged(path, info, content):
    """A file with one part, as an attacker writes it."""
    with path.open("w+b") as file:
        file.write(datasets.encode_block(HEADER))
        before = datasets.Commit(1, datasets.BLOCK_BYTES, 0)
        write_slot(file, write_part(file, before, info, [content]))
    return path


def test_forged_parts_are_refused_or_left_to_the_authority(clinics, tmp_path):
    authority, (north, *_) = clinics
    true = EncryptedDataset.open(north).parts[0]
    content = bytes(5 * HEADER.sample_bytes)
    digest = hashlib.sha256(content).hexdigest()
    forgeries = {
        "is a replay of part": PartInfo(true.part, 90, 5, digest),
        "is a replay of ": PartInfo("0" * 32, 90, 5, true.sha256),
        "holds ids of": PartInfo("0" * 32, true.first + 2, 5, digest),
        "was altered": PartInfo("0" * 32, 90, 5, "1" * 64),
    }
    for number, (message, info) in enumerate(forgeries.items()):
        bad = forged(tmp_path / f"bad{number}.cloister", info, content)
        for order in ((north, bad), (bad, north)):
            with pytest.raises(EncryptionError, match=message):
                merged(tmp_path / "out.cloister", *order)
    # The same part with other contents under its registered digest.
    bad = forged(tmp_path / "same.cloister", true, content)
    with pytest.raises(EncryptionError, match=r"same\.cloister: part .* was altered"):
        merged(tmp_path / "out.cloister", bad, north)
    assert not (tmp_path / "out.cloister").exists()
    # A part that was never registered, under free ids: every trainer compares the parts.
    bad = forged(tmp_path / "free.cloister", PartInfo("0" * 32, 90, 5, digest), content)
    opened = merged(tmp_path / "out.cloister", north, bad)
    with pytest.raises(EncryptionError, match=f"part {'0' * 32} is not registered as it stands"):
        check_registered(opened, authority.parts)


def test_too_many_parts_are_refused(clinics, tmp_path, monkeypatch):
    _, paths = clinics
    monkeypatch.setattr(merging, "MAX_PARTS", 3)
    with pytest.raises(InputError, match="hold 4 parts, at most 3"):
        merged(tmp_path / "out.cloister", *paths)


MERGING = """
import sys
from pathlib import Path
from cloister.data.dataset import EncryptedDataset
from cloister.data.merging import merge

opened = [EncryptedDataset.open(path) for path in sys.argv[2:]]
print("ready", flush=True)
while True:
    merge(opened, Path(sys.argv[1]))
    Path(sys.argv[1]).unlink()
"""


def test_kill_9_at_any_moment_leaves_a_whole_file_or_none(clinics, tmp_path):
    authority, paths = clinics
    north = paths[0]
    append(north, authority, samples(20_000, seed=5))
    folder, drawn = tmp_path / "out", random.Random(os.urandom(8))
    folder.mkdir()
    out = folder / "out.cloister"
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", MERGING, *map(str, (out, *paths))],
            stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        process.stdout.readline()
        time.sleep(drawn.uniform(0, 0.1))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        if out.exists():
            assert EncryptedDataset.open(out).parts == tuple(authority.parts)
            out.unlink()
        files.remove_leftovers(folder)
        assert list(folder.iterdir()) == []
    assert merged(out, *paths).parts == tuple(authority.parts)
