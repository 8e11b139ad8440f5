"""One count goes on from a key file, whatever names, forks and copies there are of it."""

import os
import stat
import threading

import numpy as np
import pytest

from cloister.base.rng import InsecureSeededRandom
from cloister.errors import EncryptionError, InputError
from cloister.published import ddh, lwe
from cloister.published.keyfile import KeyFile

RNG = InsecureSeededRandom(23)
EYE = np.eye(4, dtype=np.int64)
BACK_ENDS = pytest.mark.parametrize("scheme", [ddh, lwe], ids=["ddh", "lwe"])
MASTERS = {ddh: ddh.MasterKey, lwe: lwe.Master}


def setup(scheme, keep):
    return scheme.setup(4, x_bound=9, y_bound=9, rng=RNG, budget=2, keep=keep)


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "master.key"
    with KeyFile(made, new=True) as file:
        setup(lwe, file.keep)
    return made


def in_a_fork(ask):
    """Exit status of a child: 7 where `ask` is refused as in a fork, 0 where it is answered."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            ask()
            status = 0
        except EncryptionError as error:
            status = 7 if "not by its forks" in str(error) else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_fork_before_reading_shares_no_count(path):
    with KeyFile(path) as file:
        before = path.read_bytes()
        assert in_a_fork(file.read) == 7
        assert in_a_fork(lambda: file.keep(b"", replaces=None)) == 7
        data = file.read()
        assert in_a_fork(lambda: file.keep(b"", replaces=data)) == 7
        assert path.read_bytes() == before == data
        lwe.keygen(lwe.Master.from_bytes(data, keep=file.keep), EYE[:2])
    with KeyFile(path) as file:
        assert lwe.Master.from_bytes(file.read(), keep=None).released.rank == 2


def test_a_fork_leaves_the_file_to_its_parent(path):
    with KeyFile(path) as file:
        assert in_a_fork(file.close) == 0
        with pytest.raises(InputError, match="held by another"):
            KeyFile(path)


@BACK_ENDS
def test_of_two_masters_of_the_same_bytes_one_counts(scheme, tmp_path):
    path = tmp_path / "master.key"
    with KeyFile(path, new=True) as file:
        keys = setup(scheme, file.keep)
        copy = MASTERS[scheme].from_bytes(keys.master.to_bytes(), keep=file.keep)
        scheme.keygen(keys.master, EYE[:1])
        with pytest.raises(EncryptionError, match="another count"):
            scheme.keygen(copy, EYE[1:2])
        assert copy.released.rank == 0
    with KeyFile(path) as file:
        data = file.read()
        first, second = (MASTERS[scheme].from_bytes(data, keep=file.keep) for _ in range(2))
        scheme.keygen(second, EYE[1:2])
        with pytest.raises(EncryptionError, match="another count"):
            scheme.keygen(first, EYE[2:3])
        # What is in its span was given away before.
        scheme.keygen(first, 3 * EYE[:1])
        assert (first.released.rank, second.released.rank) == (1, 2)
    with KeyFile(path) as file:
        assert MASTERS[scheme].from_bytes(file.read(), keep=None).released.rank == 2


def test_two_masters_that_count_at_once_take_turns(path, monkeypatch):
    made, refused, threads, real = [], [], [], os.fsync

    def ask(master, row):
        try:
            made.append(lwe.keygen(master, row))
        except EncryptionError as error:
            refused.append(str(error))

    with KeyFile(path) as file:
        data = file.read()
        first, second = (lwe.Master.from_bytes(data, keep=file.keep) for _ in range(2))

        def meanwhile(descriptor):
            # When the first one's file is in place and not yet its digest: the folder's turn.
            if stat.S_ISDIR(os.fstat(descriptor).st_mode) and not threads:
                threads.append(threading.Thread(target=ask, args=(second, EYE[2:])))
                threads[0].start()
                threads[0].join(timeout=0.3)
            real(descriptor)

        monkeypatch.setattr(os, "fsync", meanwhile)
        ask(first, EYE[:2])
        threads[0].join()
    assert (len(made), len(refused)) == (1, 1)
    assert "another count" in refused[0]


def test_an_older_copy_does_not_go_on_from_a_newer_file(path):
    old = path.read_bytes()
    with KeyFile(path) as file:
        lwe.keygen(lwe.Master.from_bytes(file.read(), keep=file.keep), EYE[:2])
    with KeyFile(path) as file:
        file.read()
        with pytest.raises(EncryptionError, match="another count"):
            lwe.keygen(lwe.Master.from_bytes(old, keep=file.keep), EYE[2:])


@BACK_ENDS
def test_a_file_holds_one_setup(scheme, tmp_path):
    path = tmp_path / "master.key"
    with KeyFile(path, new=True) as file:
        keys = setup(scheme, file.keep)
        with pytest.raises(EncryptionError, match="another master key"):
            setup(scheme, file.keep)
        scheme.keygen(keys.master, EYE[:1])
    stored = path.read_bytes()
    with KeyFile(path) as file:
        with pytest.raises(EncryptionError, match="another master key"):
            setup(scheme, file.keep)
        with pytest.raises(EncryptionError, match="another master key"):
            file.keep(stored, replaces=stored)
        assert file.read() == stored
        with pytest.raises(EncryptionError, match="another master key"):
            setup(scheme, file.keep)
    assert path.read_bytes() == stored


def test_a_failed_write_can_be_tried_again(path, monkeypatch):
    with KeyFile(path) as file:
        master = lwe.Master.from_bytes(file.read(), keep=file.keep)
        real = os.fsync

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(EncryptionError, match="No space left"):
            lwe.keygen(master, EYE[:1])
        monkeypatch.setattr(os, "fsync", real)
        lwe.keygen(master, EYE[1:2])
        assert master.released.rank == 1
    assert path.read_bytes() == master.to_bytes()


# ---- names


def test_a_link_is_the_file_it_leads_to(path, tmp_path):
    link, folder = tmp_path / "link.key", tmp_path / "folder"
    link.symlink_to(path)
    folder.symlink_to(tmp_path)
    for one, other in ((path, link), (link, path), (folder / "link.key", path), (link, link)):
        with KeyFile(one), pytest.raises(InputError, match="held by another"):
            KeyFile(other)
    with KeyFile(link) as file:
        lwe.keygen(lwe.Master.from_bytes(file.read(), keep=file.keep), EYE[:2])
    # The count went to the file, and the link is still one.
    assert link.is_symlink()
    with KeyFile(path) as file:
        assert lwe.Master.from_bytes(file.read(), keep=None).released.rank == 2


def test_a_new_file_behind_a_link(tmp_path):
    link, place = tmp_path / "link.key", tmp_path / "place.key"
    link.symlink_to(place)
    with KeyFile(link, new=True) as file:
        setup(lwe, file.keep)
        with pytest.raises(InputError, match="held by another"):
            KeyFile(place)
    assert link.is_symlink() and not place.is_symlink()
    with pytest.raises(InputError, match="exists already"):
        KeyFile(link, new=True)


def test_hard_links_are_refused(path, tmp_path):
    other = tmp_path / "other.key"
    with KeyFile(path) as file:
        os.link(path, other)
        with pytest.raises(InputError, match="2 names"):
            file.read()
    for name in (path, other):
        with pytest.raises(InputError, match="2 names"):
            KeyFile(name)
    other.unlink()
    with KeyFile(path) as file:
        file.read()


def test_links_in_a_circle_and_other_things_are_refused(tmp_path):
    circle, folder, pipe = (tmp_path / name for name in ("circle", "folder", "pipe"))
    circle.symlink_to(circle)
    with pytest.raises(InputError, match="leads nowhere"):
        KeyFile(circle)
    folder.mkdir(mode=0o700)
    os.mkfifo(pipe, 0o600)
    for path in (folder, pipe):
        with pytest.raises(InputError, match="no plain file"):
            KeyFile(path)


def test_a_link_put_in_the_place_of_the_file_is_not_followed(path, tmp_path):
    with KeyFile(path) as file:
        moved = path.rename(tmp_path / "moved.key")
        path.symlink_to(moved)
        with pytest.raises(InputError, match=r"master\.key: "):
            file.read()


def test_the_lock_is_no_link(path, tmp_path):
    lock = tmp_path / "master.key.lock"
    lock.unlink()
    lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"master\.key\.lock: cannot be written"):
        KeyFile(path)
    assert not (tmp_path / "elsewhere").exists()


# ---- what lies in the place of the new file


@pytest.mark.parametrize("left", ["open to others", "symbolic link", "dangling link", "hard link"])
def test_what_is_left_in_the_place_of_the_new_file_is_not_written_into(path, tmp_path, left):
    new, victim = tmp_path / "master.key.new", tmp_path / "victim"
    victim.write_bytes(b"precious")
    if left == "open to others":
        new.write_bytes(b"left over")
        new.chmod(0o666)
    elif left == "hard link":
        os.link(victim, new)
    else:
        new.symlink_to(victim if left == "symbolic link" else tmp_path / "nothing")
    # Whoever holds the old file open would read what is written into it.
    watch = open(new, "rb") if left != "dangling link" else None  # noqa: SIM115
    with KeyFile(path) as file:
        master = lwe.Master.from_bytes(file.read(), keep=file.keep)
        lwe.keygen(master, EYE[:1])
    found = path.lstat()
    assert stat.S_ISREG(found.st_mode)
    assert (stat.S_IMODE(found.st_mode), found.st_nlink) == (0o600, 1)
    assert path.read_bytes() == master.to_bytes()
    assert victim.read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "master.key", "master.key.lock", "master.key.new", "victim",
    ]  # fmt: skip
    if watch:
        with watch:
            assert watch.read() in (b"left over", b"precious")
