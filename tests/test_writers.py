"""Everything that writes a file: what lies under its name, and who may read it afterwards."""

import os
import stat
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import nets
from bundle.bundles import module, sealed
from cloister.authority import database, records
from cloister.authority.request_log import ReleaseLog
from cloister.base import identity
from cloister.base.rng import InsecureSeededRandom, SystemRandom
from cloister.bundle.bundle_keys import create_keys
from cloister.cli.main import main
from cloister.codegen.gramine import write_gramine
from cloister.data.owner import OrderFile
from cloister.errors import CloisterError, InputError
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from cloister.plan import policies
from cloister.planner.planner_page import write_planner_page
from cloister.splits import preset_model
from cloister.splits.median_interval import ZERO
from cloister.splits.split_cost import Phases, SplitCost, SplitSweep
from cloister.splits.splits_page import write_page
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.pads.pad_ledger import PadLedger
from cloister.trusted.pads.store import PadStore
from cloister.trusted.query_counter import QueryCounter
from cloister.wire.transcript import Transcript
from planner.test_frontier import SLALOM, frontier

RNG = InsecureSeededRandom(1)
DIGEST = bytes(32)
PLAN = policies.enclave(prepare(from_model(nets.chain(), name="net")))


@pytest.fixture(params=[0o000, 0o022])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    assert not path.is_symlink(), path
    return stat.S_IMODE(path.stat().st_mode)


def order(path):
    part = SimpleNamespace(first=0, last=1)
    made = OrderFile(path.with_suffix(".npz"), np.zeros(1, np.int64), targets="classes")
    chunk = SimpleNamespace(x=np.zeros((1, 2), np.int16), labels=np.zeros((1, 2), np.int32))
    list(made.watch(iter([chunk])))
    made.write(part, clients="c" * 64)


def pad(path):
    key = path.parent.parent / "pad.key"
    put_block(pad_store(path.parent, key))


def pad_store(folder, key):
    layout = PadLayout.of_shapes({0: (1, 2, 3)})
    return PadStore.create(
        folder, plan_digest=DIGEST, layout=layout, sealed=True, key_file=key, rng=RNG
    )


def put_block(store):
    store.put_block(store.reserve(1), np.zeros((1, store.layout.words), np.uint32))


def log(path):
    ReleaseLog(path).close()


def curve(path):
    pytest.importorskip("torch")
    from cloister.training.accuracy_plot import write_curve

    write_curve([], path, title="accuracy")


def trained_model(path):
    pytest.importorskip("torch")
    from training.test_encrypted_model import frozen

    frozen().save(path.parent)


def exported_model(path):
    pytest.importorskip("torch")
    from cloister.training import export
    from training.test_encrypted_model import frozen
    from training.test_exported_model import CLIENTS, Knows

    replace(frozen(), clients=CLIENTS).save(path.parent.parent / "model")
    authority = Knows(frozen().info, "values")
    export(path.parent.parent / "model", path, authority=authority)


def data_set(path):
    from fuzz.loaders import write_dataset

    write_dataset(path)


def run_output(path):
    import onnx

    net = nets.Net()
    model = net.model(net.conv(net.input("image", 3, 4, 4), 3, 2))
    onnx.save(model, path.parent.parent / "model.onnx")
    np.save(path.parent.parent / "x.npy", np.zeros((1, 3, 4, 4), np.float32))
    given = (path.parent.parent / "x.npy", "--policy", "enclave", "--out", path)
    assert main(["run", str(path.parent.parent / "model.onnx"), *map(str, given)]) == 0


def token(path):
    folder = path.parent.parent / "authority"
    records.init(folder, rng=SystemRandom())
    arguments = ("authority", "token", folder, "--role", "client", "--out", path)
    if main(list(map(str, arguments))):
        raise InputError("refused")


def audit_page(path):
    pytest.importorskip("scipy")
    log(path.parent.parent / "log")
    command = ("audit", "training", path.parent.parent / "log", "--out", path)
    assert main(list(map(str, command))) == 0


def theft(path):
    pytest.importorskip("torch")
    from audit.model import victims
    from cloister.audit.model import TheftSettings, audit_data, audit_model

    data = audit_data(victims.digits()[1], evaluated=20)
    settings = TheftSettings(splits=(1,), queries=(5,), seeds=1, steps=1)
    audit_model(victims.untrained(), data, folder=path.parent, settings=settings)


def ledger(path):
    layout = PadLayout.of_shapes({0: (1, 2, 3)})
    PadLedger.create(path, plan_digest=DIGEST, layout=layout, sealed=True, rng=RNG)


def bundle_key(path):
    create_keys(path.parent, rng=RNG)


def splits(path):
    nothing = SplitCost(Phases(*[ZERO] * 5))
    write_page(SplitSweep("m", 1, 1, "native", 1, 1, "", "", (nothing,)), path.parent)


def kept_preset(path):
    pytest.importorskip("torch")
    x, y = np.zeros((1, 1, 13, 10), np.float32), np.zeros(1, np.int64)
    preset_model._keep(path.parent, "mnist", preset_model._Trained(PLAN.graph, x, y, 0.5))


def plans(path):
    write_planner_page(frontier(SLALOM), path)


REPLACE_PRIVATE = {
    "model.json": trained_model,
    "model.onnx": exported_model,
    "transcript.npz": lambda path: Transcript().save(path),
    "out.npz": run_output,
    "0.pad": pad,
    "page.html": audit_page,
    "weights.bin": lambda path: module().save(path.parent),
    "launch.sh": lambda path: write_gramine(module(), path.parent),
}
REPLACE_PUBLIC = {
    "model.plan": lambda path: PLAN.save(path),
    "model.bundle": lambda path: sealed(path, module()),
    "index.html": splits,
    "mnist.onnx": kept_preset,
    "mnist.npz": kept_preset,
    "mnist.json": kept_preset,
    "curve.svg": curve,
    "plans.html": plans,
    "plans.svg": plans,
    "curve.png": curve,
    "report.json": theft,
    "report.html": theft,
}
REFUSE_PRIVATE = {
    "order.npz": order,
    "client.token": token,
    "releases.log": log,
    "pads.key": ledger,
    "queries": QueryCounter.create,
    "vendor.key": bundle_key,
    "content.key": bundle_key,
    "ledger.sqlite": lambda path: database.create(path, modulus=3),
    "lock": lambda path: os.close(database.hold(path)),
}
REFUSE_PUBLIC = {"set.cloister": data_set, "vendor.pub": bundle_key}
REPLACE = REPLACE_PRIVATE | REPLACE_PUBLIC
REFUSE = REFUSE_PRIVATE | REFUSE_PUBLIC
PRIVATE = REPLACE_PRIVATE | REFUSE_PRIVATE


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "folder"
    made.mkdir()
    return made


@pytest.mark.parametrize("name", REPLACE | REFUSE)
def test_who_may_read_it(folder, umask, name):
    (REPLACE | REFUSE)[name](folder / name)
    assert mode(folder / name) == (0o600 if name in PRIVATE else 0o666 & ~umask)


ENDS = ("", ".part", ".new", ".tmp")
# A new store refuses a folder with pads; the next test plants one later.
PLANTED = [(name, end) for name in REPLACE for end in ENDS if (name, end) != ("0.pad", "")]


@pytest.mark.parametrize(("name", "end"), PLANTED)
def test_a_planted_link_is_not_written_through(folder, tmp_path, name, end):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (folder / f"{name}{end}").symlink_to(victim)
    REPLACE[name](folder / name)
    assert victim.read_bytes() == b"precious"
    assert not (folder / name).is_symlink()


def test_a_pad_replaces_a_link_that_was_planted_later(folder, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    key = tmp_path / "key"
    store = pad_store(folder, key)
    (folder / "0.pad").symlink_to(victim)
    put_block(store)
    assert victim.read_bytes() == b"precious"
    assert mode(folder / "0.pad") == 0o600


@pytest.mark.parametrize("target", ["victim", "nothing"])
@pytest.mark.parametrize("name", REFUSE)
def test_a_planted_link_is_refused(folder, tmp_path, name, target):
    victim = tmp_path / "victim"
    victim.write_bytes(b"")
    (folder / name).symlink_to(tmp_path / target)
    if (name, target) == ("master.key", "nothing"):
        # Its owner may keep it elsewhere: the file is where the link leads, and a new one.
        REFUSE[name](folder / name)
        assert mode(tmp_path / target) == 0o600
        return
    with pytest.raises((CloisterError, OSError)):
        REFUSE[name](folder / name)
    assert victim.read_bytes() == b""
    assert not (tmp_path / "nothing").exists()


def test_keys_and_certificates_of_servers(tmp_path, umask):
    pytest.importorskip("torch")
    from cloister.training import ciphertext_service

    records.init(tmp_path / "authority", rng=SystemRandom())
    ciphertext_service.init(tmp_path / "host", rng=SystemRandom())
    private = {identity.HPKE_FILE, identity.PRIVATE_KEY_FILE, database.FILE}
    private.add(identity.ACCESS_FILE)  # which holds a token
    for path in (*(tmp_path / "authority").iterdir(), *(tmp_path / "host").iterdir()):
        wanted = 0o600 if path.name in private else 0o666 & ~umask
        assert mode(path) == wanted, path
    for folder in ("authority", "host"):
        assert mode(tmp_path / folder) == 0o700
