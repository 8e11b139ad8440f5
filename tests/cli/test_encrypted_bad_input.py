"""Every way an input to encrypted training can be wrong: one line says what, where, what to do.

Nothing is given away and nothing is added on any of these ways.
"""

import json

import numpy as np
import pytest

pytest.importorskip("torch")

from cli.test_train import Place
from cloister.authority import service, tokens
from cloister.authority.authority import Authority
from cloister.authority.client import AuthorityClient
from cloister.authority.database import FILE
from cloister.authority.requests import Forward, Gradient, Labels
from cloister.base.identity import PUBLIC_FILE
from cloister.base.rng import SystemRandom
from cloister.data import dataset as datasets
from cloister.data.dataset import EncryptedDataset
from cloister.data.info import PartInfo
from cloister.errors import BudgetError, EncryptionError, FunctionError
from cloister.ring.linear import Geometry, LinearMap

DIM = 30
ANY = ("--many-functions", "--value-bits", 32, "--max-bits", 10**6)


@pytest.fixture
def place(tmp_path, cloister):
    made = Place(tmp_path, cloister)
    yield made
    made.close()


@pytest.fixture
def other(tmp_path, cloister):
    """A second authority, with its own keys and address."""
    folder = tmp_path / "second"
    folder.mkdir()
    made = Place(folder, cloister)
    yield made
    made.close()


def spent(place, name):
    """What the ledger says was given away."""
    summary = place.authority.summary(name)
    return summary.rank_max, summary.bits_max, summary.labels_released


# ---- samples


def values(path, change=None):
    x = np.random.default_rng(0).uniform(0, 1, (20, 4))
    if change is not None:
        x[7, 2] = change
    np.savez(path, x=x, y=np.arange(20) % 2)
    return path


@pytest.mark.parametrize(("value", "message"), [
    (
        1.5, "sample 7, element (0, 0, 2): the value is outside the data set's range; allow "
        "--clip, or make the data set with a wider --range",
    ),
    (-np.inf, "array 'x': 1 of 20 samples hold NaN or infinity (sample 7); fill or drop them"),
    (np.nan, "array 'x': 1 of 20 samples hold NaN or infinity (sample 7); fill or drop them"),
])  # fmt: skip
def test_values_that_do_not_fit(place, refused, cloister, tmp_path, value, message):
    bad, good = values(tmp_path / "bad.npz", value), values(tmp_path / "good.npz")
    to = (*place.reach("client"), "--out", tmp_path / "set.cloister")
    found = refused("data", "encrypt", bad, *to, "--range", "0,1")
    assert message in found
    assert place.authority.datasets() == ()
    assert not (tmp_path / "set.cloister").exists()
    # The same for a client who comes later, and cannot choose the range.
    assert cloister("data", "encrypt", good, *to, "--range", "0,1").code == 0
    before = (tmp_path / "set.cloister").read_bytes()
    found = refused("data", "encrypt", bad, *to)
    assert message in found
    assert (tmp_path / "set.cloister").read_bytes() == before
    assert len(place.authority.parts("set")) == 1
    if not np.isfinite(value):
        assert message in refused("data", "encrypt", bad, *to, "--clip")
    else:
        assert cloister("data", "encrypt", bad, *to, "--clip", "--again").code == 0


def test_samples_of_another_dimension(place, refused, tmp_path):
    place.dataset("set")
    wide = tmp_path / "wide.npz"
    np.savez(wide, x=np.zeros((3, 5, 6)), y=np.arange(3))
    found = refused(
        "data", "encrypt", wide, *place.reach("client"), "--out", tmp_path / "set.cloister"
    )
    assert "data set set holds samples (6, 5, 1), these are (5, 6, 1); bring them to one" in found


# ---- data set files


def test_a_truncated_file(place, refused, tmp_path):
    data = place.dataset("set")
    whole = data.read_bytes()
    for size, message in (
        (0, "is not an encrypted data set of this version"),
        (1000, "is truncated in its header; get it again"),
        (4096, "part 1 of 1 is missing: the file is truncated; get it again"),
        (len(whole) // 2, "is truncated; get the file again"),
        (len(whole) - 70, "is truncated; get the file again"),
    ):
        data.write_bytes(whole[:size])
        found = refused("train", data, *place.reach("server"), "--epochs", 1)
        assert found.startswith(f"error: {data}")
        assert message in found
    data.write_bytes(whole[:-500] + bytes(500))
    found = refused("train", data, *place.reach("server"), "--epochs", 1)
    assert "was altered; get the file again" in found
    assert spent(place, "set") == (0, 0, 0)


def append_part(path, data):
    """Put bytes of a part behind a file's parts, and commit them as a client would."""
    with path.open("r+b") as file:
        _, commit = datasets.read_block(path, file)
        file.seek(commit.nbytes)
        file.write(data)
        following = datasets.Commit(commit.sequence + 1, file.tell(), commit.parts + 1)
        file.seek(datasets.SLOT_OFFSETS[following.sequence % 2])
        file.write(datasets.encode_slot(following))


def test_a_replayed_part(place, refused, tmp_path):
    data = place.dataset("set")
    append_part(data, data.read_bytes()[datasets.BLOCK_BYTES :])
    found = refused("train", data, *place.reach("server"), "--epochs", 1)
    assert "part 2 of 2" in found
    assert "is a replay of part" in found
    assert spent(place, "set") == (0, 0, 0)


def test_a_part_of_another_data_set(place, refused, tmp_path):
    """Well made and whole, but not registered here: under the keys of these ids it is noise."""
    data = place.dataset("set")
    stranger = place.dataset("stranger").read_bytes()
    [part] = EncryptedDataset.open(tmp_path / "stranger.cloister").parts
    moved = PartInfo(part.part, 160, part.samples, part.sha256)
    [start] = [p.offset for p in EncryptedDataset.open(tmp_path / "stranger.cloister")._parts]
    size = data.stat().st_size
    head = datasets.encode_part_head(moved, at=size)
    append_part(data, head + stranger[start:])
    found = refused("train", data, *place.reach("server"), "--epochs", 1)
    assert f"{data}: part {part.part} is not registered as it stands" in found
    assert "encrypt it again" in found
    found = refused("data", "encrypt", tmp_path / "set.npz", *place.reach("client"), "--out", data)
    assert f"part {part.part} is not registered" in found
    assert spent(place, "set") == spent(place, "stranger") == (0, 0, 0)


# ---- authorities


def test_a_wrong_authority(place, other, refused, tmp_path):
    data = place.dataset("set")
    other.dataset("set")
    ours, theirs = place.reach("server"), other.reach("server")
    # The right key file at another one's address.
    mixed = (*theirs[:2], *ours[2:])
    assert "shows another certificate than the given file; check the address" in refused(
        "train", data, *mixed
    )
    first, second = (p.authority.identity.public.fingerprint[:16] for p in (place, other))
    for there in (theirs, (*ours[:2], *theirs[2:])):
        found = refused("train", data, *there)
        assert f"{data}: belongs to authority {first}, not {second}; give that one's" in found
    assert "belongs to authority" in refused(
        "data", "encrypt", tmp_path / "set.npz", *other.reach("client"), "--out", data
    )
    # A key file that is none, or is not there.
    for content in ("", "{}", "nonsense"):
        (tmp_path / "bad.pub").write_text(content)
        found = refused("train", data, *ours[:2], "--pin", tmp_path / "bad.pub", *ours[4:])
        assert "bad.pub" in found
    found = refused("train", data, *ours[:2], "--pin", tmp_path / "no.pub", *ours[4:])
    assert "no.pub" in found
    for site in (place, other):
        assert spent(site, "set") == (0, 0, 0)
        assert len(site.authority.parts("set")) == 1


def test_a_data_set_that_the_authority_has_forgotten(place, other, refused, tmp_path):
    """Such as when its folder was put back from an old copy: said before anything is asked for."""
    data = place.dataset("set")
    place.service.close()
    place.authority.close()
    for path in (tmp_path / "authority").glob(f"{FILE}*"):
        path.unlink()
    for path in (tmp_path / "second" / "authority").glob(f"{FILE}*"):
        (tmp_path / "authority" / path.name).write_bytes(path.read_bytes())
        (tmp_path / "authority" / path.name).chmod(0o600)
    place.authority = Authority(tmp_path / "authority")
    place.service = service.serve(tmp_path / "authority", place.authority, listen="127.0.0.1:0")
    place.tokens = {
        role: tokens.issue(tmp_path / "authority" / FILE, role, name="", rng=SystemRandom())
        for role in ("client", "server", "trusted")
    }
    found = refused("train", data, *place.reach("server"))
    assert "data set set: is not known to this authority" in found
    found = refused(
        "data",
        "encrypt",
        tmp_path / "set.npz",
        *place.reach("client"),
        "--out",
        data,
        "--range=-1,1",
    )
    assert "exists, but data set set is not known to this authority; choose another" in found
    assert place.authority.datasets() == ()


# ---- functions


@pytest.fixture
def rogue(place):
    """A server with a good token that asks for what it likes, of a data set with a wide budget."""
    place.dataset("open", "--privacy", f"budget={DIM - 1}", *ANY)
    public = place.folder / "authority" / PUBLIC_FILE
    with AuthorityClient(place.service.url, public=public, token=place.tokens["server"]) as client:
        yield client


def dense(*rows):
    weights = np.array(rows, np.int16).reshape(len(rows), 1, 1, DIM)
    return LinearMap(Geometry((1, 1), DIM, (1, 1), len(rows)), weights)


IDS = np.arange(5, dtype=np.int64)
FILLED = np.random.default_rng(3).integers(-40, 41, DIM)


@pytest.mark.parametrize(("rows", "message"), [
    ([np.eye(DIM)[4]], "reads a single element (unit vector); use one that mixes elements"),
    ([FILLED, -3 * np.eye(DIM)[9]], "unit vector"),
    # 8-bit values lie in [-127, 127]: in base 255 two of them stand side by side.
    ([np.r_[1, 255, np.zeros(DIM - 2)]], "packs several values into one answer"),
    ([np.r_[1, 30, 900, 27000, np.zeros(DIM - 4)]], "packs several values into one answer"),
    ([np.r_[np.ones(DIM - 1), 32000]], "packs several values into one answer"),
])  # fmt: skip
def test_functions_that_are_never_allowed(place, rogue, rows, message):
    with pytest.raises(FunctionError) as refusal:
        rogue.ask(Forward("open", IDS, dense(*rows)), receiver="server")
    assert "data set open" in str(refusal.value)
    assert message in str(refusal.value)
    assert spent(place, "open") == (0, 0, 0)
    assert place.authority.summary("open").counts["refusals"] == 1


def test_weights_that_are_too_large(place, cloister, tmp_path):
    """At 16-bit samples a sum of |weights| of 65538 makes an answer wrap."""
    wide = ("--bits", 16, "--privacy", f"budget={DIM - 1}", *ANY)
    place.dataset("wide", *wide)
    public = place.folder / "authority" / PUBLIC_FILE
    with AuthorityClient(place.service.url, public=public, token=place.tokens["trusted"]) as asks:
        for receiver in ("server", "trusted"):
            with pytest.raises(FunctionError, match="weights sum to 90000 in magnitude, at most"):
                rows = dense(np.full(DIM, 3000))
                asks.ask(Forward("wide", IDS, rows), receiver=receiver)
            with pytest.raises(FunctionError, match="deltas sum to 150000 in magnitude, at most"):
                geometry, delta = dense(FILLED).geometry, np.full((5, 1, 1, 1), 30000, np.int16)
                asks.ask(Gradient("wide", IDS, geometry, delta), receiver=receiver)
    assert spent(place, "wide") == (0, 0, 0)


@pytest.mark.parametrize("bad", [-1, 160, 2**40])
def test_samples_that_nobody_registered(place, rogue, bad):
    ids = np.array([0, bad], np.int64)
    geometry, delta = dense(FILLED).geometry, np.ones((2, 1, 1, 1), np.int16)
    for ask in (
        lambda: rogue.ask(Forward("open", ids, dense(FILLED)), receiver="server"),
        lambda: rogue.ask(Gradient("open", ids, geometry, delta), receiver="server"),
        lambda: rogue.ask(Labels("open", ids), receiver="server"),
    ):
        with pytest.raises(EncryptionError, match=f"holds no sample {bad}, only 0 to 159; use the"):
            ask()
    assert spent(place, "open") == (0, 0, 0)


def test_wrong_dimensions_and_too_many_functions(place, rogue):
    short = LinearMap(Geometry((1, 1), 29, (1, 1), 1), np.ones((1, 1, 1, 29), np.int16))
    with pytest.raises(FunctionError, match="samples have 30 elements, the function takes 29"):
        rogue.ask(Forward("open", IDS, short), receiver="server")
    rows = np.random.default_rng(4).integers(-40, 41, (DIM, DIM))
    with pytest.raises(
        BudgetError, match=r"sample 0: .* from 0 to at least 30 of 30, allowed are 29"
    ):
        rogue.ask(Forward("open", IDS, dense(*rows)), receiver="server")
    assert spent(place, "open") == (0, 0, 0)


def test_a_model_that_asks_for_single_values(place, refused, tmp_path):
    """The same refusal, as it reaches who trains."""
    data = place.dataset("open", "--privacy", f"budget={DIM - 1}", *ANY)
    model = tmp_path / "reader.py"
    model.write_text(
        "import torch\nfrom torch import nn\n"
        "def build(shape, classes):\n"
        "    first = nn.Linear(30, 5, bias=False)\n"
        "    first.weight = nn.Parameter(torch.eye(30)[:5])\n"
        "    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(5, classes))\n"
    )
    found = refused(
        "train", data, *place.reach("server"), "--model", model, "--first-layer", "trainable"
    )
    assert "data set open: a function reads a single element (unit vector)" in found
    assert spent(place, "open")[0] == 0


# ---- checkpoints


def test_a_checkpoint_of_another_model_or_data_set(place, cloister, refused, tmp_path):
    paper = ("--allow-unbounded-leakage",)
    one, two = (place.dataset(name, "--privacy", "paper", *paper) for name in ("one", "two"))
    run = ("--epochs", 1, "--batch", 32, *paper, "--checkpoint", tmp_path / "run")
    model = tmp_path / "small.py"
    model.write_text(
        "from torch import nn\n"
        "def build(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(30, classes))\n"
    )
    assert cloister("train", one, *place.reach("server"), *run).code == 0
    kept = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    for data, more in ((two, ()), (one, ("--model", model)), (one, ("--learning-rate", 0.1))):
        found = refused("train", data, *place.reach("server"), *run, *more)
        assert f"{tmp_path / 'run' / 'checkpoint.pt'}: of another run" in found
        assert "use another --checkpoint" in found
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == kept
    (tmp_path / "run" / "checkpoint.pt").write_bytes(kept[: len(kept) // 2])
    found = refused("train", one, *place.reach("server"), *run)
    assert "checkpoint.pt: damaged; remove it to start anew" in found


def test_features_of_another_data_set_or_damaged_ones(place, cloister, refused, tmp_path):
    one, two = place.dataset("one"), place.dataset("two")
    run = ("--epochs", 1, "--batch", 32, "--checkpoint", tmp_path / "run")
    assert cloister("train", one, *place.reach("server"), *run).code == 0
    found = refused("train", two, *place.reach("server"), *run)
    assert "features.json: features of another data set or projection; use another --chec" in found
    features = tmp_path / "run" / "features.f32"
    whole = features.read_bytes()
    for size in (0, len(whole) // 2):
        features.write_bytes(whole[:size])
        found = refused("train", one, *place.reach("server"), *run)
        assert f"{features}: missing or of another length than features.json says" in found
    features.unlink()
    assert "remove features.json" in refused("train", one, *place.reach("server"), *run)
    (tmp_path / "run" / "features.json").unlink()
    ran = cloister("train", one, *place.reach("server"), *run, "--json")
    assert ran.code == 0, ran
    assert json.loads(ran.out)["spent"]["rank_max"] == 7
