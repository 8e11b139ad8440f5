import pytest

import nets
from cloister.trusted.program.compile import compile_plan
from cloister.trusted.program.memory_layout import ALIGNMENT, Lifetimes, lay_out
from trusted.test_session import plan_of


def test_what_is_alive_together_does_not_overlap():
    lifetimes = Lifetimes()
    spans = {"a": (0, 3, 5000), "b": (1, 2, 100), "c": (3, 4, 4096), "d": (4, 9, 8000)}
    for key, (first, last, nbytes) in spans.items():
        lifetimes.extend(key, first, nbytes)
        lifetimes.extend(key, last)
    block = lifetimes.place()
    places = {
        key: (block.offsets[key], block.offsets[key] + spans[key][2]) for key in block.offsets
    }
    for key, (begin, end) in places.items():
        assert begin % ALIGNMENT == 0
        assert end <= block.nbytes
        for other, (start, stop) in places.items():
            together = spans[key][0] <= spans[other][1] and spans[other][0] <= spans[key][1]
            assert key == other or not together or end <= start or stop <= begin
    # "c" lives after "b" and "d" after "a": they take over the memory.
    assert block.nbytes == 3 * ALIGNMENT


@pytest.mark.parametrize("net", nets.ALL)
def test_the_memory_does_not_grow_with_every_node(net):
    layout = lay_out(compile_plan(plan_of(nets.ALL[net]())), 2)
    needed = sum(spec.nbytes for spec in (*layout.messages.values(), *layout.answers.values()))
    padding = ALIGNMENT * len(layout.shared.offsets)
    assert layout.shared.nbytes <= needed + padding
    assert set(layout.messages) == set(layout.answers)
