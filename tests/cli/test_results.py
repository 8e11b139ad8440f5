import re
from types import SimpleNamespace

import numpy as np
import pytest

from cloister.cli.results import (
    Answers,
    best,
    is_classifier,
    is_labels,
    likeliest,
    probabilities,
    read_labels,
    stated,
    summary,
)
from cloister.errors import InputError
from cloister.graph.graph import Graph, TensorType
from cloister.graph.sample_form import SampleForm
from cloister.trusted.layer_row import LayerRow
from cloister.trusted.report import Report, Result


@pytest.mark.parametrize(
    "text",
    ["cat\ndog\n", "index,name\n0,cat\n1,dog\n", "1,dog\n0,cat\n", '0,"cat"\n1,dog\n\n'],
)
def test_labels(tmp_path, text):
    (tmp_path / "labels").write_text(text)
    assert read_labels(tmp_path / "labels") == ["cat", "dog"]


def test_labels_keep_commas_of_plain_lines(tmp_path):
    (tmp_path / "labels").write_text("tabby, tabby cat\npug\n")
    assert read_labels(tmp_path / "labels") == ["tabby, tabby cat", "pug"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"0,a\n999999999,b\n"])
def test_labels_that_cannot_be_used(tmp_path, content):
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(InputError, match="labels"):
        read_labels(tmp_path / "labels")
    with pytest.raises(InputError, match="no such file"):
        read_labels(tmp_path / "missing")


def test_probabilities_are_kept_and_scores_are_turned_into_them():
    given = np.float32([[0.25, 0.75], [1.0, 0.0]])
    np.testing.assert_array_equal(probabilities(given), given)
    np.testing.assert_allclose(probabilities(np.float32([[0.0, np.log(3)]])), [[0.25, 0.75]])
    np.testing.assert_allclose(probabilities(np.float32([[1e4, 0.0]])), [[1.0, 0.0]])


def test_best():
    guesses = best(np.float32([[1, 3, 2]]), top=2, labels=["zero", "one"])[0]
    assert [(guess.index, guess.label) for guess in guesses] == [(1, "one"), (2, "class 2")]


def test_what_counts_as_a_classifier():
    assert is_classifier(np.zeros((2, 5), np.float32))
    assert is_classifier(np.zeros((2, 5, 1, 1), np.float32))
    assert not is_classifier(np.zeros((2, 3, 4), np.float32))
    assert not is_classifier(np.zeros((2, 5), np.int64))


def report_of(layers):
    return Report(
        policy="own", inputs=1, soundness_bits=50.4, trusted_ms=1.0,
        worker_ms=1.0, module_ms=0.0, offline_ms=0.0, bytes_to_worker=8, bytes_from_worker=8,
        pads_used=1, pads_from="inline",
        workers=("w",), workers_lost=(), makers=(), makers_lost=(), inputs_beyond=(),
        queries_used=0, queries_left=None, plans_made=1, parts=(layers,),
    )  # fmt: skip


@pytest.mark.parametrize("unchecked", [0, 2])
def test_a_report_does_not_count_unchecked_layers_as_checked(unchecked):
    layers = [LayerRow("a", "blinded+verified", bytes_from_worker=8, soundness_bits=50.4)]
    layers += [LayerRow(f"s{i}", "open", bytes_from_worker=8) for i in range(unchecked)]
    layers.append(LayerRow("local b", "enclave"))
    report = report_of(layers)
    text = "\n".join(summary(report))
    assert "checked: a wrong answer of a layer passes" in text
    assert ("not checked: 2 of 3 answers of workers" in text) == bool(unchecked)
    assert text.count("not checked") == bool(unchecked)


def test_maps_and_text_are_guesses_too():
    maps = [{"ant": 0.25, "bee": 0.75}, {"ant": np.float32(0.5), "bee": 0.125}]
    guesses = likeliest(maps, top=1)
    assert [(g.index, g.label, g.probability) for (g,) in guesses] == [
        (1, "bee", 0.75), (0, "ant", 0.5),
    ]  # fmt: skip
    names = np.array(["ant", "bee"], object)
    assert is_labels(names)
    assert [g.label for (g,) in stated(names, top=1, labels=())] == ["ant", "bee"]


def test_scores_that_are_no_numbers_are_shown_as_such():
    found = probabilities(np.float32([[np.inf, 0], [np.nan, 1]]))
    assert np.isnan(found).any(axis=1).all()


@pytest.mark.parametrize(("targets", "shown"), [
    ("classes", r"softmax\s+a\.png +owl +75\.00 % *\n +cat +25\.00 %"),
    ("labels", r"probability\s+a\.png +owl +75\.00 % *\n +cat +25\.00 %"),
    ("numbers", r"a\.png +cat +0\.25 *\n +owl +0\.75"),
])  # fmt: skip
def test_answers_of_a_model_that_names_them(capsys, targets, shown):
    known = TensorType(np.dtype(np.float32), (None, 2))
    form = SampleForm("values", (), targets, ("cat", "owl"))
    types = {"x": known, "y": known}
    graph = Graph("g", (), ("x",), ("y",), {}, types, 17, samples=form.to_json())
    report = report_of([LayerRow("local b", "enclave")])
    result = Result({"y": np.float32([[0.25, 0.75]])}, report, None)
    answers = Answers(SimpleNamespace(graph=graph, digest=b""), "", result, ["a.png"], "", (), 5)
    answers.show()
    assert re.search(shown, capsys.readouterr().out)
