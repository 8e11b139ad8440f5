import pytest

import nets
from cloister.trusted.program.compile import compile_plan
from cloister.trusted.program.layout import ALIGNMENT, Lives, make_schedule
from trusted.test_session import plan_of


def test_what_is_alive_together_does_not_overlap():
    lives = Lives()
    spans = {"a": (0, 3, 5000), "b": (1, 2, 100), "c": (3, 4, 4096), "d": (4, 9, 8000)}
    for key, (first, last, nbytes) in spans.items():
        lives.extend(key, first, nbytes)
        lives.extend(key, last)
    layout = lives.layout()
    places = {
        key: (layout.offsets[key], layout.offsets[key] + spans[key][2]) for key in layout.offsets
    }
    for key, (begin, end) in places.items():
        assert begin % ALIGNMENT == 0
        assert end <= layout.nbytes
        for other, (start, stop) in places.items():
            together = spans[key][0] <= spans[other][1] and spans[other][0] <= spans[key][1]
            assert key == other or not together or end <= start or stop <= begin
    # "c" lives after "b" and "d" after "a": they take over the memory.
    assert layout.nbytes == 3 * ALIGNMENT


@pytest.mark.parametrize("net", nets.ALL)
def test_the_memory_does_not_grow_with_every_node(net):
    schedule = make_schedule(compile_plan(plan_of(nets.ALL[net]())), 2)
    needed = sum(spec.nbytes for spec in (*schedule.messages.values(), *schedule.answers.values()))
    padding = ALIGNMENT * len(schedule.shared.offsets)
    assert schedule.shared.nbytes <= needed + padding
    assert set(schedule.messages) == set(schedule.answers)
