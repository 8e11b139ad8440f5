"""Exported models: equal to the trained one, in own units and names, under every policy."""

import contextlib
import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import cloister
from cloister.authority.agreement import Agreement, Known
from cloister.authority.answer_keys import answer_keys, clients_fingerprint
from cloister.authority.local import LocalClient
from cloister.authority.permutation import target_permutation
from cloister.authority.records import Terms
from cloister.base.rng import InsecureSeededRandom
from cloister.data.columns import Column, encode_columns
from cloister.data.encoding import PIXELS, Encoding
from cloister.data.owner import Notes
from cloister.errors import EncryptionError, InputError, ModelError, UnknownDatasetError
from cloister.graph.graph import SAMPLES
from cloister.graph.sample_form import sample_form
from cloister.plan import policies
from cloister.ring.ring_map import RingMap
from cloister.training import RunFiles, Settings, train
from cloister.training.encrypted_model import EncryptedModel
from cloister.training.exported_model import CLAIMS, TRAINING, exported
from cloister.training.kept_model import kept_model
from cloister.training.trainer import Trainer
from cloister.training.translation import translation
from training.doubles import MemoryAuthority, MemoryDataset
from training.same_draws import same_draws
from training.test_encrypted_model import dense, small
from training.test_trainer import FROZEN, TRUSTED
from training.test_training_run import Served

LABEL_KEY = bytes(range(7, 39))
CLIENTS = clients_fingerprint(answer_keys(LABEL_KEY).public)
NAMES = ("cat", "dog", "owl")
COLUMNS = (
    Column("age", "number", low=0.0, high=120.0, fill=50.0),
    Column("sex", "category", values=("f", "m", "x"), fill="x"),
    Column("visit", "date", low=0.0, high=20000.0),
    Column("ward", "category", values=("a", "b")),
    Column("pulse", "number", low=30.0, high=200.0),
)


class Knows:
    """An authority that tells a client what a data set means."""

    fingerprint = "f" * 64

    def __init__(self, info, kind, columns=(), **more):
        notes = Notes(kind, NAMES, columns, **more).to_json()
        self.known = Known(Agreement(info, Terms(notes=notes)), LABEL_KEY)

    def find(self, dataset):
        return self.known if dataset == self.known.agreement.info.name else None


def run(made, feeds):
    session = onnxruntime.InferenceSession(made.content)
    return dict(
        zip([one.name for one in session.get_outputs()], session.run(None, feeds), strict=True)
    )


def softmax(scores):
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def wanted(model, integers):
    """The answers in own order: from the integers that a server unblinds, by NumPy."""
    products = RingMap(model.first.linear).apply(integers).view(np.int32)
    scores = model.scores(model.first.values(products, model.info.encoding))
    own = scores[:, target_permutation(LABEL_KEY, model.info)].astype(np.float64)
    if model.settings.loss == "mse":
        outputs = 1 / (1 + np.exp(-own))
        return outputs / outputs.sum(axis=1, keepdims=True)
    return softmax(own)


def equal(made, feeds, model, integers):
    """The exported model on samples in own units, and the trained one on their integers."""
    found, likely = run(made, feeds), wanted(model, integers)
    np.testing.assert_allclose(found["probabilities"], likely, rtol=1e-4, atol=2e-6)
    assert np.ptp(likely, axis=0).min() > 0.01
    assert found["class"].tolist() == [NAMES[i] for i in likely.argmax(axis=1)]
    return found


def trained(settings, x, encoding, model):
    """A model after one epoch on samples (n, h, w, c) whose classes follow from them."""
    y = np.argsort(np.argsort(x.reshape(len(x), -1).sum(1))) * 3 // len(x)
    dataset = MemoryDataset(x, y, encoding=encoding)
    made = Trainer(
        model, dataset, keys=MemoryAuthority(dataset, mode=settings.mode),
        rng=InsecureSeededRandom(0), settings=replace(settings, learning_rate=0.02),
    )  # fmt: skip
    made.fit(2)
    return kept_model(made, name="small", authority=Knows.fingerprint, clients=CLIENTS)


LAYERS = {"convolution": small, "dense": dense}
RUNS = {"frozen": FROZEN, "trusted": TRUSTED, "squared errors": replace(TRUSTED, loss="mse")}
by_layer = pytest.mark.parametrize("layer", LAYERS)
by_run = pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
PICTURES = np.random.default_rng(1).integers(0, 256, (60, 6, 5, 1), dtype=np.uint8)


@by_layer
@by_run
def test_pixels(settings, layer):
    model = trained(settings, PICTURES / 255.0, PIXELS, LAYERS[layer]())
    made = exported(model, authority=Knows(model.info, "pixels"))
    given = PICTURES.transpose(0, 3, 1, 2).astype(np.float32)
    equal(made, {"image": given}, model, PIXELS.encode(PICTURES / 255.0))
    assert made.inputs == {"image": "6x5x1, pixels 0 to 255"}


def test_pixels_of_three_channels_that_are_strided_and_padded():
    pictures = np.random.default_rng(2).integers(0, 256, (60, 7, 8, 3), dtype=np.uint8)
    torch.manual_seed(4)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2)), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * 4 * 3, 3),
    )  # fmt: skip
    model = trained(TRUSTED, pictures / 255.0, PIXELS, layers)
    made = exported(model, authority=Knows(model.info, "pixels"))
    given = pictures.transpose(0, 3, 1, 2).astype(np.float32)
    equal(made, {"image": given}, model, PIXELS.encode(pictures / 255.0))


@by_layer
@by_run
def test_arrays_in_their_own_values(settings, layer):
    encoding = Encoding.for_range(-3.0, 5.0)
    x = encoding.decode(np.random.default_rng(3).integers(-127, 128, (60, 6, 5, 1)))
    model = trained(settings, x, encoding, LAYERS[layer]())
    made = exported(model, authority=Knows(model.info, "values"))
    equal(made, {"x": x.astype(np.float32)}, model, encoding.encode(x))


@by_run
def test_features_are_a_vector(settings):
    encoding = Encoding.for_range(0.0, 1.0)
    x = encoding.decode(np.random.default_rng(3).integers(-127, 128, (60, 30)))
    model = trained(settings, x[:, None, None], encoding, dense())
    made = exported(model, authority=Knows(model.info, "values"))
    equal(made, {"x": x.astype(np.float32)}, model, encoding.encode(x[:, None, None]))


def test_features_of_a_convolution():
    encoding = Encoding.for_range(0.0, 1.0)
    x = encoding.decode(np.random.default_rng(3).integers(-127, 128, (60, 30)))
    torch.manual_seed(4)
    layers = nn.Sequential(nn.Conv2d(30, 5, 1), nn.ReLU(), nn.Flatten(), nn.Linear(5, 3))
    model = trained(TRUSTED, x[:, None, None], encoding, layers)
    made = exported(model, authority=Knows(model.info, "values"))
    equal(made, {"x": x.astype(np.float32)}, model, encoding.encode(x[:, None, None]))


def rows(n=60):
    """Cells of the columns as a user has them, and as `encode_columns` takes them."""
    rng = np.random.default_rng(5)
    cells = np.stack([
        rng.integers(0, 121, n), rng.integers(0, 3, n), rng.integers(0, 20001, n),
        rng.integers(0, 2, n), rng.integers(30, 201, n),
    ], axis=1).astype(float)  # fmt: skip
    cells[::5, 0] = cells[1::5, 1] = np.nan
    given = {}
    for place, column in enumerate(COLUMNS):
        own = cells[:, place]
        if column.kind == "category":
            texts = ["" if np.isnan(one) else column.values[int(one)] for one in own]
            given[column.name] = np.array(texts, object)[:, None]
        else:
            given[column.name] = own.astype(np.float32)[:, None]
    return given, cells


@by_run
def test_tables_with_categories_dates_and_missing_cells(settings):
    """Elements of 16 bits: what rounding leaves is below the tolerance of the scores."""
    given, cells = rows()
    elements = encode_columns(COLUMNS, cells)[:, None, None]
    encoding = Encoding.for_range(-1.0, 1.0, bits=16)
    torch.manual_seed(2)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, 3))
    model = trained(settings, encoding.decode(encoding.encode(elements)), encoding, layers)
    made = exported(model, authority=Knows(model.info, "table", COLUMNS))
    found, likely = run(made, given), wanted(model, encoding.encode(elements))
    np.testing.assert_allclose(found["probabilities"], likely, atol=1e-4)
    assert found["class"].tolist() == [NAMES[i] for i in likely.argmax(axis=1)]
    assert made.inputs["sex"] == "one of f, m, x; missing: x"
    assert made.inputs["visit"] == "days since 1970-01-01, 0 to 20000"


def test_columns_may_have_names_that_the_graph_would_use():
    encoding = Encoding.for_range(-1.0, 1.0)
    names = ("cloister/Concat_0", "rest/input", "_cloister/Sub_2")
    columns = tuple(Column(name, "number", low=-1.0, high=1.0) for name in names)
    drawn = np.random.default_rng(1).integers(-127, 128, (60, 1, 1, 3))
    x = encoding.decode(drawn.astype(np.int16))
    layers = nn.Sequential(nn.Flatten(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model = trained(TRUSTED, x, encoding, layers)
    made = exported(model, authority=Knows(model.info, "table", columns))
    found = run(made, {n: x[:, 0, 0, i, None].astype(np.float32) for i, n in enumerate(names)})
    np.testing.assert_allclose(
        found["probabilities"], wanted(model, encoding.encode(x)), rtol=1e-4, atol=1e-6
    )


def test_a_column_may_have_the_name_of_an_output():
    encoding = Encoding.for_range(-1.0, 1.0)
    columns = (Column("class", "number", low=-1.0, high=1.0), Column("probabilities", "category",
               values=("input", "output")))  # fmt: skip
    x = np.zeros((60, 1, 1, 3))
    x[:, 0, 0, 0] = encoding.decode(np.random.default_rng(1).integers(-127, 128, 60))
    layers = nn.Sequential(nn.Flatten(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model = trained(TRUSTED, x, encoding, layers)
    made = exported(model, authority=Knows(model.info, "table", columns))
    given = {"class": x[:, 0, 0, :1].astype(np.float32),
             "probabilities": np.full((60, 1), "", object)}  # fmt: skip
    found = run(made, given)
    assert list(found) == ["probabilities_", "class_"]
    np.testing.assert_allclose(
        found["probabilities_"], wanted(model, encoding.encode(x)), rtol=1e-4, atol=1e-6
    )


def frozen_pixels():
    return trained(FROZEN, PICTURES / 255.0, PIXELS, small())


@pytest.mark.parametrize("policy", ["enclave", "slalom", "blinded", "verified"])
def test_it_runs_under_every_policy(tmp_path, policy):
    model = frozen_pixels()
    made = exported(model, authority=Knows(model.info, "pixels"))
    (tmp_path / "model.onnx").write_bytes(made.content)
    graph = cloister.load(tmp_path / "model.onnx")
    given = {"image": PICTURES.transpose(0, 3, 1, 2).astype(np.float32)}
    plan = policies.make(policy, graph, calibration=given)
    with cloister.Session(plan) as session:
        found = session.run(given)
    likely = wanted(model, PIXELS.encode(PICTURES / 255.0))
    np.testing.assert_allclose(found.outputs["probabilities"], likely, atol=0.02)
    said = [NAMES[i] for i in found.outputs["probabilities"].argmax(axis=1)]
    assert found.outputs["class"].tolist() == said
    assert (found.report.bytes_to_worker > 0) is (policy != "enclave")


def test_the_file_says_what_it_is(tmp_path):
    model = frozen_pixels()
    made = exported(model, authority=Knows(model.info, "pixels"))
    found = onnx.load_from_string(made.content)
    said = {entry.key: entry.value for entry in found.metadata_props}
    assert said[CLAIMS] == str(model.claims)
    assert json.loads(said[TRAINING])["settings"]["first_layer"] == "frozen"
    (tmp_path / "model.onnx").write_bytes(made.content)
    form = sample_form(cloister.load(tmp_path / "model.onnx"))
    assert (form.kind, form.targets, form.names) == ("pixels", "classes", NAMES)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "x"}', json.dumps(
    {"kind": "table", "columns": [COLUMNS[0].to_fields()], "targets": "classes", "names": []}
)])  # fmt: skip
def test_metadata_of_a_stranger_are_refused(tmp_path, text):
    model = frozen_pixels()
    found = onnx.load_from_string(exported(model, authority=Knows(model.info, "pixels")).content)
    onnx.helper.set_model_props(found, {SAMPLES: text})
    onnx.save(found, tmp_path / "model.onnx")
    graph = cloister.load(tmp_path / "model.onnx")
    if not text:
        assert sample_form(graph) is None
        return
    with pytest.raises(ModelError, match=r"metadata cloister\.samples are not understood"):
        sample_form(graph)


def test_another_authority_or_data_set_is_refused():
    model = frozen_pixels()
    knows = Knows(model.info, "pixels")
    with pytest.raises(EncryptionError, match="belongs to authority gggg"):
        exported(replace(model, authority="g" * 64), authority=knows)
    with pytest.raises(UnknownDatasetError, match="no such data set any more"):
        exported(replace(model, info=replace(model.info, name="other")), authority=knows)
    bits = replace(PIXELS, bits=8)
    for field, other in (("encoding", bits), ("classes", 4), ("shape", (5, 6, 1))):
        stranger = Knows(replace(model.info, **{field: other}), "pixels")
        with pytest.raises(EncryptionError, match=f"another one of that name, whose {field}"):
            exported(model, authority=stranger)


def test_the_permutation_is_undone_end_to_end(tmp_path):
    with same_draws(), contextlib.closing(Served(tmp_path)) as served:
        with served.connect() as keys:
            settings = Settings(batch=16, seed=3)
            train(served.path, authority=keys, epochs=12, settings=settings,
                  keep=RunFiles(model=tmp_path / "model"))  # fmt: skip
            model = EncryptedModel.open(tmp_path / "model")
            with pytest.raises(InputError, match="a token of role server may not"):
                exported(model, authority=keys)
        with served.connect("client") as keys:
            made = exported(model, authority=keys)
        told = translation(model, authority=LocalClient(served.authority))
        assert told.notes.classes == ("0", "1", "2")
        found = run(made, {"x": served.x.astype(np.float32)})
        assert (found["class"].astype(int) == served.y).mean() > 0.85
