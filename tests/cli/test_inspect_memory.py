import json


def test_inspect_states_the_memory_item_by_item(cloister, model_file):
    ran = cloister("inspect", model_file)
    assert ran.code == 0, ran
    for text in ("trusted memory, estimated: ", "Python, NumPy, ONNX Runtime", "while planning"):
        assert text in ran.out


def test_inspect_states_the_memory_of_larger_batches(cloister, model_file):
    one, many = (
        json.loads(cloister("inspect", model_file, "--batch", batch, "--json").out)
        for batch in (1, 64)
    )
    assert many["trusted_memory_bytes"] > one["trusted_memory_bytes"]
    phases = one["trusted_memory"].values()
    assert one["trusted_memory_bytes"] == max(sum(items.values()) for items in phases)
    assert many["totals"] == one["totals"]
