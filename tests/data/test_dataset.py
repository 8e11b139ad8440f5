import fcntl
import os
import threading
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from cloister.authority.agreement import Agreement
from cloister.authority.enrolment import Enrolment
from cloister.authority.records import Terms
from cloister.base.rng import InsecureSeededRandom, SystemRandom
from cloister.data import dataset as datasets
from cloister.data.dataset import EncryptedDataset, Header
from cloister.data.encoding import Encoding
from cloister.data.info import DatasetInfo, PartInfo
from cloister.data.target_encoding import one_hot
from cloister.data.writer import Chunk, EncryptedDatasetWriter, check_registered
from cloister.errors import (
    AuthorityUnavailable,
    EncryptionError,
    InputError,
    RangeError,
    ShapeError,
)
from cloister.ring import pads

SHAPE = (3, 4, 2)
HEADER = Header("set", SHAPE, 3, Encoding(1.0, 0.0, 8), "f" * 64)
PERMUTATION = np.array([2, 0, 1])


class Authority:
    """Numbers parts, and remembers what clients registered."""

    def __init__(self):
        self.parts, self.keys = [], []

    def __call__(self, part, samples, sha256, key):
        first = self.parts[-1].last if self.parts else 0
        self.parts.append(PartInfo(part, first, samples, sha256))
        self.keys.append(key)
        return first


def samples(n, *, seed=0, shape=SHAPE):
    generator = np.random.default_rng(seed)
    x = generator.integers(-127, 128, (n, *shape)).astype(np.int16)
    labels = one_hot(generator.integers(0, 3, n), 3)
    return Chunk(x, labels, (generator.random(n) < 0.3).astype(np.uint8))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "set.cloister"


@pytest.fixture
def authority():
    return Authority()


def enrolled(register, *, header=HEADER, permutation=PERMUTATION):
    """A client's place in the data set that a header describes."""
    info = DatasetInfo(header.name, header.shape, header.classes, header.encoding, 0, 1)
    agreed = Agreement(info, Terms())
    return Enrolment(
        agreed, header.authority_fingerprint, "c" * 64, permutation, bytes(32), register
    )


def append(path, register, *chunks, header=HEADER, patience_s=60):
    return append_all(path, register, chunks, header=header, patience_s=patience_s)


def append_all(path, register, chunks, *, header=HEADER, patience_s=60):
    enrolment = enrolled(register, header=header)
    writer = EncryptedDatasetWriter(path, enrolment, patience_s=patience_s)
    return writer.append(chunks, rng=SystemRandom())


def test_what_was_encrypted_comes_back_with_the_keys(path, authority):
    first, second, third = samples(5), samples(4, seed=1), samples(7, seed=2)
    append(path, authority, first, second)
    append(path, authority, third)
    opened = EncryptedDataset.open(path)
    assert (opened.name, opened.shape, opened.classes) == ("set", SHAPE, 3)
    assert opened.encoding == HEADER.encoding
    assert opened.samples == 16
    assert [part.samples for part in opened.parts] == [9, 7]
    plain = np.concatenate([c.x for c in (first, second, third)])
    labels = np.concatenate([c.labels for c in (first, second, third)])
    test = np.concatenate([c.flags for c in (first, second, third)]) == 1
    ids = np.array([15, 0, 8, 9, 0], np.int64)
    for part, key in zip(opened.parts, authority.keys, strict=True):
        mine = ids[(ids >= part.first) & (ids < part.last)]
        local = mine - part.first
        masks = pads.expand(key, local, SHAPE, domain=pads.DATA_DOMAIN)
        np.testing.assert_array_equal(pads.unblind(opened.data(mine), masks), plain[mine])
        masks = pads.expand(key, local, (3,), domain=pads.LABEL_DOMAIN)
        targets = pads.unblind(opened.labels(mine), masks)
        classes = labels[mine].argmax(axis=1)
        np.testing.assert_array_equal(targets, np.eye(3)[PERMUTATION[classes]])
    np.testing.assert_array_equal(opened.data(ids)[1], opened.data(ids)[4])
    np.testing.assert_array_equal(opened.test_ids, np.flatnonzero(test))
    np.testing.assert_array_equal(opened.train_ids, np.flatnonzero(~test))
    check_registered(opened, authority.parts)


def test_its_identity_is_of_the_authority_and_of_every_sample(path, authority):
    append(path, authority, samples(5))
    one = EncryptedDataset.open(path).identity
    assert EncryptedDataset.open(path, verify=False).identity == one
    append(path, authority, samples(4, seed=1))
    found = {one, EncryptedDataset.open(path).identity}
    for fingerprint, seed in (("e" * 64, 1), ("f" * 64, 2)):
        # As many samples in parts of the same names; their ciphertexts are others.
        again, header = Authority(), replace(HEADER, authority_fingerprint=fingerprint)
        other = path.with_name(f"{seed}.cloister")
        for chunk in (samples(5), samples(4, seed=seed)):
            append(other, again, chunk, header=header)
        found.add(EncryptedDataset.open(other).identity)
    moved = path.with_name("moved.cloister")
    moved.write_bytes(datasets.encode_block(replace(HEADER, authority_fingerprint="e" * 64)))
    content = path.read_bytes()
    whole = bytearray(content)
    header_bytes = slice(datasets.HEADER_OFFSET, datasets.BLOCK_BYTES)
    whole[header_bytes] = moved.read_bytes()[header_bytes]
    moved.write_bytes(whole)
    found.add(EncryptedDataset.open(moved).identity)
    assert len(found) == 5


def test_ciphertexts_look_uniform_and_repeat_nothing(path, authority):
    zeros = Chunk(
        np.zeros((500, *SHAPE), np.int16),
        one_hot(np.zeros(500, int), 3),
        np.zeros(500, np.uint8),
    )
    append(path, authority, zeros)
    append(path, authority, zeros)
    words = EncryptedDataset.open(path).data(np.arange(1000)).reshape(-1)
    assert len(np.unique(words)) > 0.999 * len(words)
    ones = np.unpackbits(words.view(np.uint8)).mean()
    # Beyond 7 deviations once in 10^11 runs: the keys are fresh.
    assert abs(ones - 0.5) < 7 * 0.5 / np.sqrt(32 * len(words))


def test_an_unknown_sample_is_named(path, authority):
    append(path, authority, samples(3))
    opened = EncryptedDataset.open(path)
    for bad in (-1, 3):
        with pytest.raises(EncryptionError, match=f"no sample {bad}"):
            opened.data(np.array([0, bad]))
    empty = path.with_name("empty.cloister")
    empty.write_bytes(datasets.encode_block(HEADER))
    with pytest.raises(EncryptionError, match="no sample 0"):
        EncryptedDataset.open(empty).data(np.array([0]))


def test_every_cut_of_the_file_is_noticed(path, authority):
    append(path, authority, samples(3))
    append(path, authority, samples(2, seed=1))
    whole = path.read_bytes()
    parts = EncryptedDataset.open(path).parts
    cut = path.with_name("cut.cloister")
    for size in (0, 7, 100, 4095, 4096, 4200, len(whole) // 2, len(whole) - 64, len(whole) - 70):
        cut.write_bytes(whole[:size])
        with pytest.raises(EncryptionError, match=r"cut\.cloister"):
            EncryptedDataset.open(cut)
    cut.write_bytes(whole[:-200])
    with pytest.raises(EncryptionError, match=f"part 2 of 2.*{parts[1].part}.*truncated"):
        EncryptedDataset.open(cut)


def test_every_altered_byte_is_noticed(path, authority):
    append(path, authority, samples(2))
    append(path, authority, samples(2, seed=1))
    whole = path.read_bytes()
    opened = EncryptedDataset.open(path)
    altered = path.with_name("altered.cloister")
    used = [*range(8), *range(192, 400), *range(4096, len(whole))]
    missed = []
    for position in used[:: 1 if len(used) < 500 else 3]:
        data = bytearray(whole)
        data[position] ^= 1
        altered.write_bytes(data)
        try:
            found = EncryptedDataset.open(altered)
        except EncryptionError:
            continue
        same = found.header == opened.header and found.parts == opened.parts
        ids = opened.ids
        same = same and np.array_equal(found.data(ids), opened.data(ids))
        if not same or not np.array_equal(found.labels(ids), opened.labels(ids)):
            missed.append(position)
    assert missed == []


def test_a_part_that_is_repeated_in_the_file_is_a_replay(path, authority):
    append(path, authority, samples(3))
    with path.open("r+b") as file:
        header, commit = datasets.read_block(path, file)
        file.seek(datasets.BLOCK_BYTES)
        part = file.read(commit.nbytes - datasets.BLOCK_BYTES)
        file.write(part)
        end = file.tell()
        following = datasets.Commit(commit.sequence + 1, end, 2)
        file.seek(datasets.SLOT_OFFSETS[following.sequence % 2])
        file.write(datasets.encode_slot(following))
    assert header == HEADER
    with pytest.raises(EncryptionError, match="replay"):
        EncryptedDataset.open(path)


def test_a_part_the_authority_does_not_know_is_refused(path, authority):
    append(path, authority, samples(3))
    append(path, authority, samples(3, seed=1))
    with pytest.raises(EncryptionError, match=authority.parts[1].part):
        check_registered(EncryptedDataset.open(path), authority.parts[:1])


def test_a_client_that_dies_leaves_the_file_as_it_was(path, authority, monkeypatch):
    append(path, authority, samples(3))
    whole = path.read_bytes()
    calls = []

    def dies(file):
        calls.append(file)
        raise KeyboardInterrupt

    monkeypatch.setattr("cloister.data.writer._sync", dies)
    with pytest.raises(KeyboardInterrupt):
        append(path, authority, samples(50, seed=1))
    monkeypatch.undo()
    assert len(path.read_bytes()) > len(whole)
    assert EncryptedDataset.open(path).samples == 3
    append(path, authority, samples(2, seed=2))
    opened = EncryptedDataset.open(path)
    assert opened.samples == 5
    # The part that died had been registered: its numbers stay unused.
    assert opened.parts[1].first == 53
    np.testing.assert_array_equal(opened.ids, [0, 1, 2, 53, 54])


def append_until_killed(path, delay):
    """In a child process: exits at the sync after `delay` of them."""
    real, count = os.fsync, 0

    def counted(descriptor):
        nonlocal count
        count += 1
        if count > delay % 3:
            os._exit(0)
        real(descriptor)

    os.fsync = counted
    try:
        first = 1000 * (delay + 1)
        append(path, lambda *_: first, samples(20, seed=delay))
    finally:
        os._exit(1)


def test_a_client_killed_at_any_write_leaves_whole_parts(path, authority):
    append(path, authority, samples(3))
    for delay in range(6):
        child = os.fork()
        if child == 0:
            append_until_killed(path, delay)
        os.waitpid(child, 0)
        assert EncryptedDataset.open(path).samples % 20 == 3
    # The first sync is that of the part, the second that of the slot: two of three times it is in.
    assert EncryptedDataset.open(path).samples == 83


def test_a_failing_authority_leaves_no_part(path, authority):
    append(path, authority, samples(3))

    def refuses(*_):
        raise EncryptionError("part is a replay")

    with pytest.raises(EncryptionError, match="replay"):
        append(path, refuses, samples(2))
    assert EncryptedDataset.open(path).samples == 3


def bad_samples():
    yield samples(2)
    raise RangeError("sample 2: class 3")


def refuses(*_):
    raise AuthorityUnavailable("nobody answers")


@pytest.mark.parametrize("fails", ["at once", "samples", "registration", "killed"])
def test_a_client_that_fails_before_its_part_is_in_leaves_no_file(path, authority, fails):
    """Whatever it was going to be a file of: the next client decides that anew."""
    before = replace(HEADER, classes=7, encoding=Encoding(9.0, 0.0, 8))
    if fails == "killed":
        path.write_bytes(datasets.encode_block(before))
    else:
        chunks = {"at once": [], "samples": bad_samples(), "registration": [samples(2)]}[fails]
        with pytest.raises((InputError, AuthorityUnavailable)):
            append_all(path, refuses, chunks, header=before)
        assert not path.exists()
    append(path, authority, samples(3))
    opened = EncryptedDataset.open(path)
    assert (opened.header, opened.samples) == (HEADER, 3)


def test_a_file_that_was_removed_while_waiting_for_it_is_not_written(path, authority, monkeypatch):
    """Its name may be another file's by then, and the part would be nowhere."""
    append(path, authority, samples(3))
    whole = path.read_bytes()
    lock = fcntl.flock

    def replaced(*arguments):
        lock(*arguments)
        path.unlink()
        path.write_bytes(whole)

    monkeypatch.setattr("fcntl.flock", replaced)
    with pytest.raises(EncryptionError, match="another client"):
        append(path, authority, samples(2), patience_s=0)
    assert (path.read_bytes(), len(authority.parts)) == (whole, 1)


def test_bad_samples_are_named(path, authority):
    good = samples(3)

    def refused(kind, text, x=good.x, labels=good.labels, flags=good.flags):
        with pytest.raises(kind, match=text):
            append(path, authority, good, Chunk(x, labels, flags))

    refused(ShapeError, "samples 3 to 6", x=good.x[:, :2])
    refused(ShapeError, "int64", x=good.x.astype(np.int64))
    refused(ShapeError, "one target of 3 integers", labels=good.labels[:2])
    refused(RangeError, "a flag is 0, 1 or 2", flags=good.flags.astype(np.int64))
    refused(RangeError, "a flag is 0, 1 or 2", flags=np.array([0, 3, 0], np.uint8))
    refused(RangeError, "sample 4: has a target", flags=np.array([0, 2, 0], np.uint8))
    for row, sample in (([0, 0, 0], 5), ([1, 1, 0], 4), ([0, 2, -1], 3), ([0, -1, 2], 4)):
        labels = good.labels.copy()
        labels[sample - 3] = row
        message = f"sample {sample}: its target is not one of 3 classes"
        refused(RangeError, message, labels=labels)
    high = good.x.copy()
    high[1, 0, 0, 0] = 128
    refused(RangeError, "sample 4", x=high)
    with pytest.raises(InputError, match="no samples"):
        append(path, authority)
    assert authority.parts == []
    assert not path.exists()


def test_parts_of_other_data_sets_are_not_added(path, authority):
    append(path, authority, samples(3))
    others = (
        ("belongs to authority", Header("set", SHAPE, 3, HEADER.encoding, "e" * 64)),
        ("is data set set, not other", Header("other", SHAPE, 3, HEADER.encoding, "f" * 64)),
        ("holds samples", Header("set", (4, 3, 2), 3, HEADER.encoding, "f" * 64)),
        ("another encoding", Header("set", SHAPE, 3, Encoding(2.0, 0.0, 8), "f" * 64)),
    )
    for text, header in others:
        with pytest.raises(EncryptionError, match=text):
            append(path, authority, samples(3), header=header)
    with pytest.raises(InputError, match="permutation"):
        EncryptedDatasetWriter(path, enrolled(authority, permutation=np.array([0, 0, 1])))


def test_files_that_are_no_data_sets(tmp_path):
    for name, data in (("a", b""), ("b", b"PK\3\4" * 3000), ("c", bytes(9000))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(EncryptionError, match="not an encrypted data set"):
            EncryptedDataset.open(tmp_path / name)
    with pytest.raises(InputError, match="No such file"):
        EncryptedDataset.open(tmp_path / "none")


def test_clients_encrypt_at_once_and_add_their_parts_in_turn(path, authority):
    """A client that encrypts holds nobody up; one that adds its part is waited for."""

    def chunks():
        yield samples(2)
        append(path, authority, samples(3))

    def registers(*part):
        with pytest.raises(EncryptionError, match="another client is appending; try again, or"):
            append(path, authority, samples(2), patience_s=0)
        waiting.start()
        return authority(*part)

    waiting = threading.Thread(target=append, args=(path, authority, samples(4)))
    append_all(path, authority, chunks())
    append_all(path, registers, [samples(5)])
    waiting.join()
    assert [part.samples for part in EncryptedDataset.open(path).parts] == [3, 2, 5, 4]


def test_parallel_clients_of_a_new_file_all_get_in(path, authority):
    lock = threading.Lock()

    def register(*part):
        with lock:
            return authority(*part)

    clients = [
        threading.Thread(target=append, args=(path, register, samples(2, seed=seed)))
        for seed in range(8)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    opened = EncryptedDataset.open(path)
    assert (opened.samples, len(opened.parts)) == (16, 8)
    assert check_registered(opened, authority.parts) == []


def test_a_part_that_is_not_added_in_time_is_not_registered(path, authority):
    def registers(*part):
        with pytest.raises(EncryptionError, match="another client"):
            append(path, never, samples(2), patience_s=0.2)
        return authority(*part)

    def never(*_):
        raise AssertionError

    append_all(path, registers, [samples(5)])
    assert EncryptedDataset.open(path).samples == 5


def test_more_samples_than_a_data_set_holds_are_not_written(path, authority, monkeypatch):
    monkeypatch.setattr("cloister.data.writer.MAX_SAMPLES", 8)
    with pytest.raises(InputError, match="at most 8 samples"):
        append(path, authority, samples(5), samples(4))
    assert authority.parts == []
    append(path, authority, samples(5), samples(3))


def test_ids_and_parts_are_those_that_an_authority_gives(path, authority, monkeypatch):
    append(path, authority, samples(5))
    append(path, authority, samples(4))
    for name, value, refusal in (
        ("MAX_SAMPLES", 8, "numbers are out of range"),
        ("MAX_PARTS", 1, "2 parts, at most 1"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(datasets, name, value)
            with pytest.raises(EncryptionError, match=refusal):
                EncryptedDataset.open(path)
    assert EncryptedDataset.open(path).samples == 9


def test_memory_stays_flat_while_writing_and_reading(path, authority):
    shape = (32, 32, 3)
    header = Header("set", shape, 3, HEADER.encoding, "f" * 64)
    limit = 16 << 20

    def chunks():
        for seed in range(60):
            yield samples(64, seed=seed, shape=shape)

    tracemalloc.start()
    try:
        writer = EncryptedDatasetWriter(path, enrolled(authority, header=header))
        writer.append(chunks(), rng=InsecureSeededRandom(1))
        opened = EncryptedDataset.open(path)
        for start in range(0, opened.samples, 64):
            opened.data(np.arange(start, start + 64))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 2.5 * limit
    assert peak < limit
