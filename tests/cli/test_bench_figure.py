"""The drawing holds what the results say."""

import json
import xml.etree.ElementTree as ET

import pytest

from cloister.cli.bench.figure import Bar, bars, draw, published, read_results, write_figure
from cloister.errors import InputError


def result(model: str, policy: str, ratio: float) -> dict[str, object]:
    return {
        "model": model, "policy": policy, "ratio": ratio, "cpu": "Some CPU <1>", "isa": "avx2",
        "threads": 1, "batch": 1, "weights": "random, seeded",
    }  # fmt: skip


def texts(path) -> list[str]:
    root = ET.parse(path).getroot()
    return ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_every_ratio_stands_beside_the_published_one(tmp_path):
    path = tmp_path / "ratios.svg"
    write_figure([result("vgg16", "slalom", 21.04), result("resnet50", "slalom", 7.5)], path)
    found = texts(path)
    for text in ("vgg16", "21.0x", "10.7x", "resnet50", "7.5x", "4x to 11x", "private + verified"):
        assert text in found
    assert any("Some CPU <1>" in text and "random weights" in text for text in found)


def test_several_machines_are_not_passed_off_as_one(tmp_path):
    path = tmp_path / "ratios.svg"
    rows = [result("vgg16", "slalom", 2), {**result("vgg19", "slalom", 2), "cpu": "Other"}]
    write_figure(rows, path)
    assert not any("Some CPU" in text for text in texts(path))
    assert any("several machines" in text for text in texts(path))


def test_what_slalom_published():
    assert published("vgg16", "verified") == (20.3, 20.3)
    assert published("resnet152", "slalom") == (4.0, 11.0)
    assert published("mobilenet_v1", "blinded") == (5.0, 5.0)
    for model, policy in (
        ("vgg19", "slalom"), ("mobilenet_v2", "slalom"), ("vgg16", "enclave"),
        ("resnet50", "blinded"),
    ):  # fmt: skip
        assert published(model, policy) is None


def test_the_last_result_of_a_model_and_policy_counts():
    rows = [
        result("b", "verified", 1),
        result("a", "slalom", 2),
        result("b", "slalom", 3),
        result("b", "verified", 4),
    ]
    assert [(bar.model, bar.policy, bar.ratio) for bar in bars(rows)] == [
        ("b", "slalom", 3), ("b", "verified", 4), ("a", "slalom", 2),
    ]  # fmt: skip


@pytest.mark.parametrize("ratio", [0.02, 0.9, 1.0, 21.0, 400.0])
def test_bars_stay_inside_the_drawing(ratio):
    root = ET.fromstring(draw([Bar("m", "slalom", ratio, None)], caption=""))
    width = float(root.get("width"))
    for rect in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(rect.get("x", 0)) + float(rect.get("width")) <= width


def test_the_command_reads_one_result_or_many(cloister, refused, tmp_path):
    one, many, other = (tmp_path / f"{i}.json" for i in range(3))
    one.write_text(json.dumps(result("vgg16", "slalom", 20)))
    many.write_text(json.dumps({"results": [result("vgg16", "verified", 30)]}))
    other.write_text(json.dumps({"layers": [], "ratio": 1.0}))
    assert read_results(other) == []
    drawing = tmp_path / "out.svg"
    ran = cloister("bench", "figure", one, many, other, "--out", drawing)
    assert ran.code == 0, ran
    assert "2 ratios" in ran.out
    assert {"20.0x", "30.0x"} <= set(texts(drawing))
    assert "no results" in refused("bench", "figure", other, "--out", drawing)
    assert "no such file" in refused("bench", "figure", tmp_path / "none.json")
    other.write_text("{")
    assert "not a result" in refused("bench", "figure", other)


@pytest.mark.parametrize("ratio", [None, "20", -1, float("nan"), True, float("inf")])
def test_odd_ratios_are_not_drawn(tmp_path, ratio):
    with pytest.raises(InputError, match="no results"):
        write_figure([{**result("vgg16", "slalom", 1), "ratio": ratio}], tmp_path / "x.svg")
