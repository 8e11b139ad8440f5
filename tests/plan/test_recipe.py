import pytest

import nets
from cloister.errors import InputError, PlanError
from cloister.graph.onnx import read
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.plan.quantise import Precision
from cloister.plan.recipe import Recipe, measure


def graph_of(model):
    return normalise.prepare(read.from_model(model, name="net"))


@pytest.mark.parametrize("policy", policies.NAMES)
def test_a_stored_recipe_makes_the_same_plan(tmp_path, policy):
    model = nets.residual()
    graph, samples = graph_of(model), nets.samples(model, 5)
    recipe = measure(graph, policy=policy, samples=samples, precision=Precision(11, 10))
    recipe.save(tmp_path / "r.json")
    again = Recipe.load(tmp_path / "r.json")
    assert again == recipe
    expected = policies.make(policy, graph, calibration=samples, precision=Precision(11, 10))
    assert again.plan(graph_of(model)).digest == recipe.plan(graph).digest == expected.digest


def test_other_recipes_make_other_plans():
    model = nets.chain()
    graph = graph_of(model)
    digests = {
        measure(graph, policy=policy, samples=nets.samples(model, count), precision=precision)
        .plan(graph)
        .digest
        for policy in ("slalom", "verified")
        for count in (1, 20)
        for precision in (Precision(), Precision(12, 11))
    }
    assert len(digests) == 8


def test_samples_are_needed():
    with pytest.raises(PlanError, match="needs calibration"):
        measure(graph_of(nets.chain()), policy="slalom", samples=None, precision=Precision())


def test_recipe_of_another_model():
    with pytest.raises(PlanError, match="belongs to another model"):
        Recipe("slalom", ranges={"elsewhere": (1.0,)}).plan(graph_of(nets.chain()))


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Recipe.load(tmp_path / "none.json")
    (tmp_path / "r.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not a calibration file"):
        Recipe.load(tmp_path / "r.json")
    Recipe("slalom", ranges={"x": (float("nan"),)}).save(tmp_path / "nan.json")
    with pytest.raises(InputError, match="not a finite number"):
        Recipe.load(tmp_path / "nan.json")


@pytest.mark.parametrize(
    "ranges",
    ["1.0", "[]", "[-1.0]", "[true]", '["1"]', "[NaN]", "[Infinity]", "[1e39]", "[1, null]",
     "[1" + "0" * 400 + "]", "[[1]]", "{}"],
)  # fmt: skip
def test_ranges_that_are_no_list_of_numbers(tmp_path, ranges):
    path = tmp_path / "r.json"
    path.write_text(
        '{"format": "cloister recipe 2", "policy": "slalom", "weight_bits": 12, '
        f'"activation_bits": 12, "ranges": {{"Conv_0": {ranges}}}}}'
    )
    with pytest.raises(InputError, match="node 'Conv_0'"):
        Recipe.load(path)


def test_as_many_ranges_as_channels():
    graph = graph_of(nets.chain())
    ranges = {node.name: (1.0,) for node in graph.nodes}
    Recipe("slalom", ranges=ranges).plan(graph)
    with pytest.raises(PlanError, match="2 ranges for 3 input channels"):
        Recipe("slalom", ranges={**ranges, "Conv_0": (1.0, 2.0)}).plan(graph)
