import numpy as np

from cloister.graph.output_values import described, flat_arrays, owned


def test_outputs_become_arrays_without_objects():
    outputs = {
        "y": np.float32([[1, 2]]),
        "names": np.array(["ant", "bee"], object),
        "parts": [np.zeros((2, 1)), np.ones((2, 3))],
        "maps": [{7: 0.25, 5: 0.75}, {7: 0.5, 5: 0.5}],
        "uneven": [{1: 2.0}, {3: 4.0}],
        "map": {"a": 1.0},
        "nothing": None,
        "empty": [],
    }
    found = flat_arrays(outputs)
    assert list(found) == [
        "y", "names", "parts[0]", "parts[1]", "maps[7]", "maps[5]", "uneven[0][1]",
        "uneven[1][3]", "map[a]",
    ]  # fmt: skip
    assert all(array.dtype != np.object_ for array in found.values())
    np.testing.assert_array_equal(found["maps[7]"], [0.25, 0.5])
    assert found["names"].tolist() == ["ant", "bee"]


def test_a_copy_shares_nothing():
    parts = [np.zeros(2), {"a": 1.0}]
    copied = owned({"parts": 1}) | {"parts": owned(parts)}
    copied["parts"][0][:] = 1
    copied["parts"][1]["a"] = 2.0
    assert parts[0].tolist() == [0, 0]
    assert parts[1] == {"a": 1.0}
    assert owned(None) is None


def test_descriptions():
    assert described(np.zeros((2, 3), np.int64)) == "int64 (2, 3)"
    assert described(np.array(["a"], object)) == "text (1,)"
    assert described([{}, {}]) == "a list of 2"
    assert described({}) == "a map of 0"
    assert described(None) == "no value"
