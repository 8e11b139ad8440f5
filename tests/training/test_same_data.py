"""The same data twice is noticed by the client that added it, and clients that begin at once."""

import os
import stat
import threading

import numpy as np
import pytest

from cloister.authority.authority import Authority
from cloister.authority.local import LocalClient
from cloister.base.rng import SystemRandom
from cloister.data.dataset import EncryptedDataset
from cloister.data.id_spans import IdSpans
from cloister.data.sample_digests import default_folder
from cloister.errors import InputError
from cloister.training import ArraySource, NewDataset, encrypt


@pytest.fixture
def authority(tmp_path):
    with Authority.create(tmp_path / "authority", rng=SystemRandom()) as made:
        yield made


@pytest.fixture
def add(authority, tmp_path):
    """Encrypt arrays into the data set, as the client whose digests are in a folder."""

    def run(x, *, client="north", **options):
        y = np.arange(len(x)) % 2
        return encrypt(
            ArraySource(x, y), tmp_path / "set.cloister", authority=LocalClient(authority),
            new=NewDataset(value_range=(0.0, 1.0), classes=("0", "1")),
            digests=tmp_path / client, **options,
        )  # fmt: skip

    return run


def rows(seed, n=20):
    return np.random.default_rng(seed).random((n, 6))


def test_samples_that_were_added_before_are_refused_by_their_number(add, authority):
    first, more = rows(1), rows(2)
    add(first)
    mixed = np.concatenate([more[:3], first[[4, 17]], more[3:5]])
    with pytest.raises(InputError, match=r"2 of these 7 samples before \(samples 3, 4\).*--again"):
        add(mixed)
    with pytest.raises(InputError, match=r"20 of these .* 8, 9 and 10 more\)"):
        add(first[::-1])
    assert authority.describe("set").samples == 20
    assert add(mixed, again=True).part.first == 20
    # Those that were added again are known as well; others are not.
    with pytest.raises(InputError, match=r"3 of these 4 samples before \(samples 0, 1, 2\)"):
        add(np.concatenate([more[:3], rows(3, 1)]))
    assert add(rows(4)).remarks


def test_noise_and_the_split_do_not_hide_a_repeat(add):
    add(rows(1), noise=0.1)
    with pytest.raises(InputError, match="20 of these 20 samples"):
        add(rows(1), noise=0.2, test_fraction=0.5)
    with pytest.raises(InputError, match="20 of these 20 samples"):
        add(rows(1) + 1e-9)  # other numbers, the same encoded ones


def test_repeats_inside_one_source_are_said(add):
    x = rows(1)
    x[7], x[11] = x[3], x[3]
    made = add(x)
    assert made.remarks[0] == "2 samples repeat others of the same source (samples 7, 11)"
    assert made.part.samples == 20


def test_another_client_and_another_data_set_know_nothing_of_it(add, authority, tmp_path):
    add(rows(1))
    add(rows(1), client="south")
    other = encrypt(
        ArraySource(rows(1), np.arange(20) % 2), tmp_path / "other.cloister",
        authority=LocalClient(authority), digests=tmp_path / "north",
        new=NewDataset(value_range=(0.0, 1.0)),
    )  # fmt: skip
    assert other.part.first == 0


def test_withdrawn_samples_may_be_added_again(add, authority):
    part = add(rows(1)).part
    authority.withdraw("set", IdSpans.of([(part.first, part.last)]))
    part = add(rows(1)).part
    authority.withdraw("set", IdSpans.of([(part.first + 2, part.first + 5)]))
    with pytest.raises(InputError, match="17 of these 20 samples"):
        add(rows(1))


def test_nothing_of_a_refused_source_is_left(add, authority, tmp_path):
    add(rows(1))
    before = (tmp_path / "set.cloister").read_bytes()
    kept = sorted((tmp_path / "north").rglob("*.digests"))
    with pytest.raises(InputError):
        add(rows(1))
    assert (tmp_path / "set.cloister").read_bytes() == before
    assert sorted((tmp_path / "north").rglob("*.digests")) == kept
    assert len(authority.parts("set")) == 1


def test_digests_are_private_keyed_and_not_beside_the_data_set(add, authority, tmp_path):
    part = add(rows(1)).part
    (path,) = (tmp_path / "north").rglob("*.digests")
    fingerprint = authority.identity.public.fingerprint
    assert path == tmp_path / "north" / fingerprint / "set" / f"{part.part}.digests"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    add(rows(1), client="south")
    one, two = ((tmp_path / name).rglob("*.digests") for name in ("north", "south"))
    # The same key for all clients of the data set, whose order of samples differs.
    found = [set(np.frombuffer(next(each).read_bytes(), "<u8").tolist()) for each in (one, two)]
    assert found[0] == found[1]
    assert len(found[0]) == 20
    assert default_folder().is_relative_to(os.environ["XDG_STATE_HOME"])


def test_digests_that_cannot_be_used_are_named(add, authority, tmp_path):
    (tmp_path / "north").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot be used .*--digests FOLDER"):
        add(rows(1))
    assert authority.datasets() == ()
    part = add(rows(1), client="south").part
    (path,) = (tmp_path / "south").rglob("*.digests")
    for content in (path.read_bytes()[:-1], path.read_bytes() + b"1"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{part.part}.digests: is damaged; remove it"):
            add(rows(1), client="south")
    path.chmod(0o644)
    with pytest.raises(InputError, match="other users can read it"):
        add(rows(1), client="south")
    path.unlink()
    # Names that an authority would have to invent are never opened.
    path.with_name("notes.digests").write_bytes(b"12345678")
    assert add(rows(2), client="south")


def test_clients_that_begin_a_data_set_at_once_all_get_in(add, authority, tmp_path, monkeypatch):
    """Each has seen that there is none; one makes it, and the others join that one."""
    seen = threading.Barrier(4)
    find, first = LocalClient.find, {}

    def found(self, dataset):
        known = find(self, dataset)
        # Once for each client, as it asks for the terms.
        if threading.get_ident() not in first:
            first[threading.get_ident()] = known
            seen.wait()
        return known

    monkeypatch.setattr(LocalClient, "find", found)
    clients = [
        threading.Thread(target=add, args=(rows(seed),), kwargs={"client": str(seed)})
        for seed in range(4)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert list(first.values()) == [None] * 4
    opened = EncryptedDataset.open(tmp_path / "set.cloister")
    assert (opened.samples, opened.parts) == (80, authority.parts("set"))
