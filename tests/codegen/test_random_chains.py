"""Chains of 3 to 8 random operators through the generated C, against float64."""

import os

import numpy as np
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st

from cloister.base.rng import InsecureSeededRandom
from cloister.codegen.float64_check import check_module
from codegen.modules import Native, Wasm, compiled
from codegen.random_chains import chain, graph_of

EXAMPLES = int(os.environ.get("CLOISTER_EXAMPLES", "8"))
"""Each has CHAINS chains in one module. CLOISTER_EXAMPLES=5000 searches with other ones."""
CHAINS = 4

random_chains = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="CLOISTER_EXAMPLES" not in os.environ,
    database=None,
    # A failing chain is short already, and each attempt to shorten it compiles C.
    phases=[Phase.explicit, Phase.generate],
    report_multiple_bugs=False,
)


@random_chains
@given(st.data())
def test_a_chain_equals_float64_native_and_wasm(data):
    def draw(values):
        return data.draw(st.sampled_from(values))

    chains = [chain(draw, f"k{at}", draw(range(3, 9))) for at in range(CHAINS)]
    note("; ".join(f"{one.input_shape} {' '.join(one.operators)}" for one in chains))
    graph = graph_of(chains)
    contraction = draw(["fma", "off"])
    builds = ("native-x86-64-v3", "wasm" if contraction == "off" else "native-x86-64")
    module = compiled(graph, builds=builds, contraction=contraction)
    rng = np.random.default_rng(draw(range(1000)))
    sample = {
        name: rng.standard_normal((1, *graph.types[name].shape[1:])).astype(np.float32)
        for name in graph.inputs
    }
    native = Native(module).run(*sample.values())
    check_module(graph, lambda _: native, samples=[sample], rng=InsecureSeededRandom(1))
    other = Native(module, builds[1]) if contraction == "fma" else Wasm(module)
    again = other.run(*sample.values())
    for first, second in zip(native, getattr(again, "outputs", again), strict=True):
        assert first.tobytes() == second.tobytes()
