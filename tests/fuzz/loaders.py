"""Everything that reads a file: how to make a good one, and how to read it whole."""

import gzip
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import torch
from PIL import Image

import nets
import unequal
from bundle.bundles import module, sealed
from cloister.attest.runtime_manifest import RuntimeManifest
from cloister.audit.model.interval import Interval
from cloister.audit.model.theft_progress import Stolen, TheftJob, TheftProgress
from cloister.audit.model.theft_report import BlackBox, ModelTheftReport, SplitTheft, Theft
from cloister.audit.model.theft_settings import TheftSettings
from cloister.authority.agreement import Agreement
from cloister.authority.enrolment import Enrolment
from cloister.authority.records import Terms
from cloister.authority.request_log import Release, ReleaseLog, read_releases
from cloister.authority.requests import Forward
from cloister.base.identity import PUBLIC_FILE, Identity, PublicIdentity
from cloister.base.rng import InsecureSeededRandom, SystemRandom
from cloister.bundle.bundle_keys import (
    CONTENT_KEY,
    VENDOR_KEY,
    VENDOR_PUBLIC,
    create_keys,
    load_content_key,
    load_signer,
    load_vendor,
)
from cloister.bundle.compiled_module import MANIFEST, CompiledModule
from cloister.bundle.sealed_bundle import SealedBundle
from cloister.cli.results import read_labels
from cloister.data.dataset import EncryptedDataset
from cloister.data.encoding import Encoding
from cloister.data.idx_file import read_idx
from cloister.data.info import DatasetInfo
from cloister.data.owner import read_ranges, read_target_ranges
from cloister.data.pictures import read_picture
from cloister.data.sources import open_source
from cloister.data.target_encoding import one_hot
from cloister.data.writer import Chunk, EncryptedDatasetWriter
from cloister.graph import graph_file
from cloister.graph.graph import Graph, TensorType
from cloister.graph.input_files import read_inputs
from cloister.graph.onnx import load as models
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from cloister.graph.split import split_points
from cloister.plan import policies, split_report
from cloister.plan.plan import Plan
from cloister.ring.linear import Geometry, LinearMap
from cloister.splits import preset_model
from cloister.tickets.receipt_files import read_receipts, save_receipt
from cloister.tickets.ticket import Ticket
from cloister.training import answer_file, checkpoint, ciphertext_service, encrypted_model
from cloister.training.answer_file import read_answers, write_answers
from cloister.training.encrypted_model import EncryptedModel
from cloister.training.kept_model import kept_model
from cloister.training.settings import Settings
from cloister.training.trainer import Trainer
from cloister.trusted.packed_values import pack, unpack
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.pads.store import PadStore
from cloister.wire.https import bodies
from cloister.wire.transcript import Entry, Transcript
from dicom_files import dicom
from fuzz.mutate import Mutator, mutated_bytes, mutated_document, mutated_json, mutated_message
from graph.test_ml_operators import forest
from plan import split_reports
from tickets.licences import SIGNER, TICKET, VENDOR, MemoryCounter, meter
from training.doubles import MemoryAuthority, MemoryDataset, blobs


@dataclass(frozen=True)
class Loader:
    """`make` writes a good file into a folder; `load` reads what is there, as users' code would."""

    make: Callable[[Path], Path]
    load: Callable[[Path], object]
    mutators: tuple[Mutator, ...] = (mutated_bytes,)


def _written(name: str, data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def _model(build: Callable[[], onnx.ModelProto]) -> Callable[[Path], Path]:
    return _written("model.onnx", build().SerializeToString())


INFO = DatasetInfo("set", (4, 3, 1), 3, Encoding.for_range(0, 1), 12, 3)


def _dataset(folder: Path) -> Path:
    write_dataset(folder / "set.cloister")
    return folder / "set.cloister"


def write_dataset(path: Path) -> None:
    """An encrypted data set of five samples."""
    rng = np.random.default_rng(0)
    info = DatasetInfo("set", (4, 3, 1), 3, Encoding.for_range(0, 1), 0, 3)
    permutation = np.arange(3, dtype=np.int64)
    enrolment = Enrolment(
        Agreement(info, Terms()), "f" * 64, "c" * 64, permutation, bytes(32), lambda *_: 0
    )
    samples = Chunk(
        rng.integers(-9, 9, (5, 4, 3, 1)).astype(np.int16),
        one_hot(np.arange(5) % 3, 3),
        (np.arange(5) > 3).astype(np.uint8),
    )
    EncryptedDatasetWriter(path, enrolment).append([samples], rng=InsecureSeededRandom(1))


def _read_dataset(path: Path) -> None:
    opened = EncryptedDataset.open(path)
    opened.data(np.arange(opened.samples, dtype=np.int64))


def _transcript(folder: Path) -> Path:
    numbers = np.arange(6, dtype=np.int16).reshape(1, 2, 3)
    entries = [
        Entry("to_worker", 1, 2, "worker", numbers.dtype, numbers.shape, payload)
        for payload in (numbers, None)
    ]
    Transcript(entries).save(folder / "transcript.npz")
    return folder / "transcript.npz"


def _arrays(folder: Path) -> Path:
    np.savez(folder / "a.npz", x=np.arange(12.0).reshape(4, 3), y=np.arange(4))
    return folder / "a.npz"


def _array(folder: Path) -> Path:
    np.save(folder / "a.npy", np.arange(12.0).reshape(4, 3))
    return folder / "a.npy"


def _takes(**types: type) -> Graph:
    """A model of such inputs: x of three numbers a sample, y of one."""
    shapes = {"x": (None, 3), "y": (None,)}
    inputs = {name: TensorType(np.dtype(kind), shapes[name]) for name, kind in types.items()}
    return Graph("g", (), tuple(inputs), (), {}, inputs, 17)


def _picture(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        return folder / name

    return make


def _dicom(folder: Path) -> Path:
    stored = np.arange(63, dtype=np.uint16).reshape(7, 9)
    elements = {"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": "2"}
    made = dicom(stored, BitsStored=12, **elements)
    made.save_as(folder / "a.dcm", enforce_file_format=True)
    return folder / "a.dcm"


def _log(folder: Path) -> Path:
    geometry = Geometry((5, 4), 1, (4, 3), 2, (2, 2))
    weights = np.ones(geometry.weight_shape, np.int16)
    values = np.ones((2, *geometry.out_shape), np.int64)
    with ReleaseLog(folder / "log") as log:
        for step in range(2):
            ids = np.arange(2, dtype=np.int64)
            request = Forward("set", ids, LinearMap(geometry, weights))
            log.append(Release(request, step, values, (5, 4, 1)))
    return folder / "log"


def _public(folder: Path) -> Path:
    Identity.create(folder, rng=InsecureSeededRandom(1))
    return folder / PUBLIC_FILE


def _pad_key(folder: Path) -> Path:
    key = folder / "key"
    PadStore.create(
        folder / "pads", plan_digest=bytes(32), layout=PadLayout.of_shapes({0: (1, 2, 3)}),
        sealed=True, key_file=key, rng=SystemRandom(), busy_timeout_s=0.1,
    )  # fmt: skip
    return key


def _open_pads(path: Path) -> None:
    pads = path.with_name("pads")
    PadStore.open(pads, plan_digest=bytes(32), key_file=path, busy_timeout_s=0.1)


def _graph(build: Callable[[], onnx.ModelProto]) -> Graph:
    return prepare(from_model(build(), name="net"))


def _plan(build: Callable[[], onnx.ModelProto], samples: Callable) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        model = build()
        calibration = samples(model, 8)
        policies.make("slalom", _graph(build), calibration=calibration).save(folder / "a.plan")
        return folder / "a.plan"

    return make


def _split_plan(folder: Path) -> Path:
    graph = _graph(nets.chain)
    ranges = policies.measure_ranges("slalom", graph, calibration=nets.samples(nets.chain(), 2))
    until = split_points(graph)[0].name
    report = split_reports.report_of(graph, accepted=until, ranges=ranges)
    policies.origami(graph, audit=report).save(folder / "a.plan")
    return folder / "a.plan"


def _module_plan(folder: Path) -> Path:
    plan = policies.ennclave(
        _graph(nets.residual), module_digest=bytes(32), last=2, outer="slalom", queries=9,
        calibration=nets.samples(nets.residual(), 4),
    )  # fmt: skip
    plan.save(folder / "a.plan")
    return folder / "a.plan"


def _bundle(folder: Path) -> Path:
    create_keys(folder, rng=InsecureSeededRandom(1))
    return sealed(
        folder / "a.bundle",
        module(),
        content_key=load_content_key(folder / CONTENT_KEY),
        signer=load_signer(folder / VENDOR_KEY),
    )


def _open_bundle(path: Path) -> None:
    vendor = load_vendor(path.with_name(VENDOR_PUBLIC))
    SealedBundle.open(path, load_content_key(path.with_name(CONTENT_KEY)), vendor=vendor)


def _module(folder: Path) -> Path:
    module().save(folder)
    return folder / MANIFEST


def _key(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        create_keys(folder, rng=InsecureSeededRandom(1))
        return folder / name

    return make


def _receipts(folder: Path) -> Path:
    found = meter(folder / "meter", counter=MemoryCounter()).spend(2, bytes(32))
    return save_receipt(folder / "receipts", found, bytes(32))


def _source(path: Path) -> None:
    found = open_source(path)
    found.read(np.arange(found.samples))


def _answers(folder: Path) -> Path:
    made = SimpleNamespace(
        info=INFO, authority="f" * 64, clients="c" * 64, run="r",
        ids=np.arange(5, dtype=np.int64), answers=np.ones((5, 3), np.float32),
    )  # fmt: skip
    write_answers(made, folder / "a.answers", key=None)
    return folder / "a.answers"


def _read_signed_answers(path: Path) -> None:
    """As an attacker's file: with a header of any content, and the digest of that content."""
    content = path.read_bytes()
    start = len(answer_file.MAGIC) + answer_file._HEAD.size
    if len(content) > start:
        length = int.from_bytes(content[len(answer_file.MAGIC) : start - 32], "little")
        digest = sha256(content[start : start + length]).digest()
        path.write_bytes(content[: start - 32] + digest + content[start:])
    read_answers(path)


def _host(folder: Path) -> Path:
    return ciphertext_service.init(folder / "host", rng=InsecureSeededRandom(1))


def _thefts(folder: Path) -> Path:
    made = TheftProgress(folder, "audit")
    made.add(TheftJob(1, 50, 0), (Stolen("trained", 0.5, 0.25, None),))
    return made.path


def _split_report(folder: Path) -> Path:
    harmless = split_reports.HARMLESS
    report = split_reports.split_report([("a", split_reports.EXPOSED, {}), ("b", harmless, {})])
    split_report.save(report, folder)
    return folder / split_report.NAME


def _read_signed(path: Path) -> None:
    """As an attacker's file: of any content, with the digest of that content."""
    with suppress(ValueError, RecursionError):
        document = json.loads(path.read_text())
        if isinstance(document, dict):
            document.pop("digest", None)
            text = json.dumps(document, sort_keys=True, separators=(",", ":"))
            path.write_text(json.dumps({**document, "digest": sha256(text.encode()).hexdigest()}))
    report = split_report.load(path)
    assert report.conclusion
    assert len(report.table()[1]) == len(report.verdicts)


def _theft_report(folder: Path) -> Path:
    one = Interval(0.5, 0.25, 0.75, 3)
    thefts = (Theft(50, "trained", one, one, None),)
    ModelTheftReport(
        model="net", model_sha256="0", data_sha256="1", versions={"torch": "2"},
        settings=TheftSettings(queries=(50,)), layers=2, parameters=9, classes=3,
        thief_samples=60, own=False, evaluated=60, seeds_done=3, victim_accuracy=0.75,
        black_boxes=(BlackBox("a small architecture", thefts),),
        splits=(SplitTheft(1, "gemm", 4, thefts, None),), membership=(),
    ).save(folder)  # fmt: skip
    return folder / "report.json"


def _kept_model(folder: Path) -> Path:
    """The document of a model; the other files of its folder are checked against it."""
    x, y, encoding = blobs(20)
    samples = MemoryDataset(x, y, encoding=encoding)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(30, 3))
    settings = Settings(allow_unbounded_leakage=True)
    made = Trainer(
        net, samples, keys=MemoryAuthority(samples), rng=InsecureSeededRandom(0), settings=settings
    )
    kept_model(made, name="net", authority="f" * 64, clients="c" * 64).save(folder)
    return folder / encrypted_model.NAME


RUN = {"data set": "a digest"}


def _checkpoint(folder: Path) -> Path:
    state = checkpoint.Checkpoint(
        RUN, checkpoint.Position(1, 2), [], {"weight": torch.ones(2, 3)}, {}, {}, [],
        torch.arange(4),
    )  # fmt: skip
    checkpoint.save(state, folder)
    return folder / checkpoint.NAME


JSON = (mutated_bytes, mutated_json)
MODEL = (mutated_bytes, mutated_message, mutated_message)
CANONICAL = (mutated_bytes, mutated_document, mutated_document)
GRAPHS = {
    "residual": nets.residual,
    "a branch": nets.choosing,
    "long lists": partial(forest, 460),
}
RANGES = json.dumps({"age": [0, 120], "bp": [60, 250]}).encode()
TABLE = b"age,bp,label\n61,120.5,sick\n35,1e2,well\n"


def _kept_preset(folder: Path) -> Path:
    x, y = np.zeros((1, 1, 13, 10), np.float32), np.zeros(1, np.int64)
    trained = preset_model._Trained(_graph(nets.chain), x, y, 0.5)
    preset_model._keep(folder, "mnist", trained)
    return folder / "mnist.json"


IDX = gzip.compress(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + bytes(12))


LOADERS = {
    **{f"model {name}": Loader(_model(build), models.load, MODEL)
       for name, build in nets.ALL.items()},
    "data set": Loader(_dataset, _read_dataset),
    "data set description": Loader(
        _written("info.json", INFO.to_json()),
        lambda path: DatasetInfo.from_json(path.read_bytes()),
        JSON,
    ),
    "transcript": Loader(_transcript, Transcript.load),
    "release log": Loader(_log, lambda path: list(read_releases(path))),
    "answers": Loader(_answers, read_answers),
    "answers, with a digest of their own": Loader(_answers, _read_signed_answers),
    "public file of an authority": Loader(_public, PublicIdentity.load, JSON),
    "access file of a ciphertext host": Loader(
        _host,
        lambda path: ciphertext_service.RemoteCiphertextServer("https://127.0.0.1:1", access=path),
        JSON,
    ),
    "report of a theft": Loader(
        _theft_report, lambda path: ModelTheftReport.load(path).gain(1), JSON
    ),
    "report of splits": Loader(_split_report, lambda path: split_report.load(path), JSON),
    "report of splits, with a digest of its own": Loader(_split_report, _read_signed, JSON),
    "thefts that are done": Loader(
        _thefts, lambda path: TheftProgress(path.parent, "audit"), JSON
    ),
    "model that was trained": Loader(
        _kept_model, lambda path: EncryptedModel.open(path.parent), JSON
    ),
    "checkpoint": Loader(_checkpoint, lambda path: checkpoint.load(path.parent, run=RUN)),
    "key file of pads": Loader(_pad_key, _open_pads),
    **{f"graph of {name}": Loader(
        _written("a.graph", graph_file.to_bytes(_graph(build))),
        lambda path: graph_file.from_bytes(path.read_bytes()),
        CANONICAL,
    ) for name, build in GRAPHS.items()},
    "plan": Loader(_plan(nets.residual, nets.samples), Plan.load, CANONICAL),
    "plan with a module": Loader(_module_plan, Plan.load, CANONICAL),
    "plan with a split": Loader(_split_plan, Plan.load, CANONICAL),
    "plan with factors": Loader(_plan(unequal.table, unequal.samples), Plan.load, CANONICAL),
    "bundle": Loader(_bundle, _open_bundle, CANONICAL),
    "bundle that is not opened": Loader(_bundle, SealedBundle.show, CANONICAL),
    "manifest of a module": Loader(_module, lambda path: CompiledModule.load(path.parent), JSON),
    "private key of a vendor": Loader(_key(VENDOR_KEY), load_signer),
    "public key of a vendor": Loader(_key(VENDOR_PUBLIC), load_vendor),
    "ticket": Loader(
        _written("a.lic", TICKET.signed_by(SIGNER)), lambda path: Ticket.read(path, vendor=VENDOR)
    ),
    "receipts of a ticket": Loader(
        _receipts, lambda path: read_receipts(path.parent, TICKET, signer=None), CANONICAL
    ),
    "content key": Loader(_key(CONTENT_KEY), load_content_key),
    "preset that is kept": Loader(
        _kept_preset, lambda path: preset_model._kept(path.parent, "mnist"), JSON
    ),
    "digits of MNIST": Loader(
        _written("a.gz", IDX), lambda path: read_idx(path, axes=3)
    ),
    "array": Loader(_array, lambda path: read_inputs(_takes(x=np.float32), [path])),
    "arrays": Loader(_arrays, lambda path: read_inputs(_takes(x=np.float32, y=np.int64), [path])),
    "samples in arrays": Loader(_arrays, _source),
    "samples in a table": Loader(_written("a.csv", TABLE), _source),
    "png": Loader(_picture("a.png"), read_picture),
    "jpeg": Loader(_picture("a.jpg"), read_picture),
    "tiff": Loader(_picture("a.tiff"), read_picture),
    "gif": Loader(_picture("a.gif"), read_picture),
    "webp": Loader(_picture("a.webp"), read_picture),
    "dicom": Loader(_dicom, read_picture),
    "ranges": Loader(_written("ranges.json", RANGES), read_ranges, JSON),
    "target ranges": Loader(
        _written("ranges.json", b"{\"age\": [0, 120]}"), read_target_ranges, JSON
    ),
    "labels": Loader(_written("labels.txt", b"0,cat\n1,dog\n2,horse\n"), read_labels),
    "values of a request": Loader(
        _written("values", pack({"x": np.ones((2, 3), np.float32), "m": [{"a": 0.5}, {}]})),
        lambda path: unpack(path.read_bytes()), CANONICAL,
    ),
    "manifest of a runtime": Loader(
        _written("runtime.json", RuntimeManifest("1.0", ("serve", "--threads", "2")).to_bytes()),
        lambda path: RuntimeManifest.from_bytes(path.read_bytes()), JSON,
    ),
    "message body": Loader(
        _written("body", bodies.encode(bodies.Body({"a": 1, "b": "x"}))),
        lambda path: bodies.decode(path.read_bytes()),
    ),
}  # fmt: skip
