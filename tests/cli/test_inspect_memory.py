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


def test_inspect_states_what_a_session_takes(cloister, model_file):
    one, many = (
        json.loads(cloister("inspect", model_file, "--batch", batch, "--json").out)[
            "session_memory"
        ]
        for batch in (1, 64)
    )
    assert (one["batch"], many["batch"]) == (1, 64)
    assert one["pads_per_input_bytes"] == many["pads_per_input_bytes"] > 0
    for part in ("private_bytes", "shared_bytes", "worker_bytes"):
        assert many[part] > one[part] > 0
    text = cloister("inspect", model_file).out
    assert "a session of batch 1 takes about " in text
    assert "in the trusted process, besides what its allocator keeps" in text
    assert "a pad set takes " in text


def test_a_plan_that_sends_nothing_has_no_worker(cloister, model_file):
    found = json.loads(cloister("inspect", model_file, "--policy", "enclave", "--json").out)
    taken = found["session_memory"]
    nothing = ("shared_bytes", "worker_bytes", "pads_per_input_bytes")
    assert [taken[part] for part in nothing] == [0, 0, 0]
    assert taken["private_bytes"] > 0
