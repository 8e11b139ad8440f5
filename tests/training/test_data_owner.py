"""`cloister.training.encrypt`: an owner's side from Python, with an authority in process."""

from dataclasses import replace

import numpy as np
import pytest

from cloister import training
from cloister.authority.agreement import Agreement
from cloister.authority.authority import Authority
from cloister.authority.enrolment import enrol
from cloister.authority.local import LocalClient
from cloister.authority.records import Terms
from cloister.authority.requests import Forward
from cloister.base.rng import SystemRandom
from cloister.data.dataset import EncryptedDataset
from cloister.errors import FunctionError, InputError, RangeError, UnknownDatasetError
from cloister.training import ArraySource, NewDataset, Privacy, encrypt, proposal


@pytest.fixture
def authority(tmp_path):
    with Authority.create(tmp_path / "authority", rng=SystemRandom()) as made:
        yield made


@pytest.fixture
def service(authority):
    return LocalClient(authority)


def samples(n=20, *, seed=0, dtype=np.uint8):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n, 3, 4, 1)).astype(dtype)
    return ArraySource(x, np.arange(n) % 3)


def test_arrays_become_a_part(authority, service, tmp_path):
    seen, noted = [], []
    made = encrypt(
        samples(), tmp_path / "set.cloister", authority=service, test_fraction=0.25,
        note=noted.append, update=lambda *of: seen.append(of),
    )  # fmt: skip
    assert (made.part.first, made.part.samples, made.clipped, made.noise) == (0, 20, 0, None)
    assert made.fingerprint == authority.identity.public.fingerprint
    assert (made.remarks, noted) == ((), [])
    assert seen == [("encrypting", 20, 20)]
    opened = EncryptedDataset.open(tmp_path / "set.cloister")
    assert (len(opened.train_ids), len(opened.test_ids)) == (15, 5)
    assert opened.parts == (made.part,)
    info = authority.describe("set")
    assert (info.budget_rank, info.mode, info.samples) == (12 // 4, "budgeted", 20)


def test_a_path_is_read_as_the_command_reads_it(authority, service, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 3)), y=np.arange(4) % 2)
    made = encrypt(
        str(tmp_path / "a.npz"), str(tmp_path / "b.cloister"), authority=service,
        new=NewDataset(bits=6, value_range=(-1.0, 1.0), classes=("0", "1", "2")), name="mine",
    )  # fmt: skip
    info = made.agreement.info
    assert (info.name, info.classes, info.encoding.bits) == ("mine", 3, 6)


def test_privacy_is_decided_once_and_agreed_to_by_all_others(authority, service, tmp_path):
    out = tmp_path / "set.cloister"
    wide = Privacy("budget=5", value_bits=12, max_bits=99, many_functions=True, labels_to="trusted")
    encrypt(samples(), out, authority=service, privacy=wide)
    assert authority.describe("set").budget_rank == 5
    terms = authority.terms("set")
    assert (terms.value_bits, terms.max_bits) == (12, 99)
    assert (terms.one_function, terms.labels_to_server) == (False, False)
    with pytest.raises(InputError, match=r"budget 5 instead of the default 3 \(--privacy budget=5"):
        encrypt(samples(seed=1), out, authority=service)
    with pytest.raises(InputError, match="bits of a value 12 instead of 4"):
        encrypt(samples(seed=1), out, authority=service, privacy=Privacy("budget=5", value_bits=4))
    assert len(authority.parts("set")) == 1
    again = encrypt(samples(seed=1), out, authority=service, privacy=wide)
    assert again.part.first == 20
    assert "data set set had 20 samples" in again.remarks[0]


def test_paper_is_never_the_word_alone(authority, service, tmp_path):
    out = tmp_path / "set.cloister"
    with pytest.raises(InputError, match="allow_unbounded_leakage"):
        encrypt(samples(), out, authority=service, privacy="paper")
    assert authority.datasets() == ()
    consent = Privacy("paper", allow_unbounded_leakage=True)
    encrypt(samples(), out, authority=service, privacy=consent)
    assert authority.describe("set").mode == "paper"
    with pytest.raises(InputError, match="mode paper instead of the default budgeted"):
        encrypt(samples(seed=1), out, authority=service)


def test_what_becomes_public_is_said_before_anything_is_written(authority, service, tmp_path):
    out, noted = tmp_path / "set.cloister", []

    def note(text):
        noted.append(text)
        assert not out.exists()

    values = samples(dtype=np.float64)
    made = encrypt(values, out, authority=service, note=note)
    assert made.remarks == tuple(noted)
    assert "the range of your data, 0 to 255, becomes public" in noted[0]
    given = NewDataset(value_range=(0.0, 255.0))
    other = encrypt(values, tmp_path / "b.cloister", authority=service, new=given)
    assert other.remarks == ()


def test_what_fails_adds_nothing(authority, service, tmp_path):
    out = tmp_path / "set.cloister"
    values = samples(dtype=np.float64)
    narrow = NewDataset(value_range=(0.0, 9.0))
    with pytest.raises(RangeError, match="allow --clip"):
        encrypt(values, out, authority=service, new=narrow)
    with pytest.raises(InputError, match="test_fraction must be 0 to 1"):
        encrypt(values, out, authority=service, new=narrow, test_fraction=1.5)
    with pytest.raises(RangeError, match="sigma"):
        encrypt(values, out, authority=service, new=narrow, noise=0.0)
    with pytest.raises(InputError, match=r"\.npz"):
        encrypt(values, out, authority=service, new=narrow, order=tmp_path / "order.csv")
    assert (authority.datasets(), out.exists()) == ((), False)
    made = encrypt(values, out, authority=service, new=narrow, clip=True)
    assert made.clipped > 0
    assert any("were brought to its ends" in remark for remark in made.remarks)


def test_a_data_set_of_another_authority_is_told_by_its_type(service, tmp_path):
    out = tmp_path / "set.cloister"
    encrypt(samples(), out, authority=service)
    with Authority.create(tmp_path / "other", rng=SystemRandom()) as other:
        with pytest.raises(UnknownDatasetError, match="not known to this authority; choose"):
            encrypt(samples(), out, authority=LocalClient(other))
        assert other.datasets() == ()


def test_the_order_is_kept(service, tmp_path):
    source, order = samples(), tmp_path / "order.npz"
    made = encrypt(source, tmp_path / "set.cloister", authority=service, order=order)
    assert f"{order} holds your samples in plain" in made.remarks[-1]
    with np.load(order) as kept:
        assert kept["ids"].tolist() == list(range(20))
        np.testing.assert_array_equal(kept["x"] + 128, source.read(kept["rows"]))


def test_what_is_no_source_is_refused(service, tmp_path):
    with pytest.raises(InputError, match=r"a ndarray is none; give a path, or ArraySource"):
        encrypt(np.zeros((4, 3, 4, 1)), tmp_path / "set.cloister", authority=service)


def table(dim):
    return ArraySource(np.random.default_rng(dim).random((40, dim)), np.arange(40) % 2)


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 13, 17])
def test_a_small_table_has_a_budget_that_trains_or_is_refused(service, tmp_path, dim):
    """What `encrypt` refuses, no trainer could use; what it takes, trains at the defaults."""
    pytest.importorskip("torch")
    out, new = tmp_path / "set.cloister", NewDataset(value_range=(0.0, 1.0))
    options = {"authority": service, "new": new, "test_fraction": 0.25}
    if dim < proposal.FEWEST_ELEMENTS:
        for privacy in ("strict", "budget=1"):
            with pytest.raises(InputError, match=r"no function .*add columns, .*budget=0\)"):
                encrypt(table(dim), out, privacy=privacy, **options)
        assert not out.exists()
        made = encrypt(table(dim), out, privacy="budget=0", **options)
        assert "only `cloister train --unblind-to trusted` trains" in made.remarks[-1]
        proposed = replace(made.agreement.info, budget_rank=1)
        with pytest.raises(FunctionError):
            ask_as_a_trainer(tmp_path / "a2", proposed, table(dim))
    else:
        made = encrypt(table(dim), out, **options)
        assert made.agreement.info.budget_rank == max(1, dim // 4)
    receiver = "trusted" if dim < proposal.FEWEST_ELEMENTS else "server"
    settings = training.Settings(unblind_to=receiver)
    assert training.train(out, authority=service, epochs=1, settings=settings).epochs


def ask_as_a_trainer(folder, info, source):
    """The first key of a frozen run on a data set that another program has made."""
    with Authority.create(folder, rng=SystemRandom()) as authority:
        service = LocalClient(authority)
        enrolment = enrol(service, Agreement(info, Terms()), rng=SystemRandom())
        enrolment.register("a" * 32, len(source.labels), "b" * 64, bytes(32))
        from cloister.training.frozen import default_projection

        linear = default_projection(authority.describe(info.name), rank=None).linear
        ids = np.arange(5, dtype=np.int64)
        service.ask(Forward(info.name, ids, linear), "server")


def test_bits_that_no_value_fits_into_are_refused(service, tmp_path):
    out, new = tmp_path / "set.cloister", NewDataset(bits=12, value_range=(0.0, 1.0))
    for privacy in (Privacy(max_bits=7), Privacy(max_bits=0), Privacy(max_bits=9, value_bits=10)):
        with pytest.raises(InputError, match=r"bits of a sample are less than .*--max-bits"):
            encrypt(table(8), out, authority=service, new=new, privacy=privacy)
    fitting = Privacy(max_bits=7, value_bits=7)
    assert encrypt(table(8), out, authority=service, new=new, privacy=fitting)
