import json

import numpy as np
import pytest

from cloister.cli.bench import environment
from cloister.cli.bench.transport import KINDS, RoundTrips, echo, echo_links
from cloister.errors import InputError, WorkerUnavailable
from cloister.wire.inprocess import InProcessLink
from cloister.wire.messages import Answer, Apply, Hello, LoadSegment


def test_every_link_carries_every_message_there_and_back(cloister):
    ran = cloister(
        "bench", "transport", "--largest", 4096, "--repeats", 2, "--seconds", 0.002, "--json"
    )  # fmt: skip
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    rows = found["links"]
    pairs = [(row["link"], row["message_bytes"]) for row in rows]
    assert pairs == [(kind, size) for size in (1024, 4096) for kind in KINDS]
    for row in rows:
        assert row["round_trips_per_s"] == pytest.approx(1e6 / row["round_trip_us"])
        both_ways = 2 * row["message_bytes"] * row["round_trips_per_s"] / 1e9
        assert row["gb_per_s"] == pytest.approx(both_ways)
        assert row["round_trip_us"] > 0
    for key in ("cpu", "cpu_flags", "isa", "gpu", "versions", "git_commit"):
        assert key in found


def test_for_people(cloister):
    ran = cloister("bench", "transport", "--largest", 1024, "--repeats", 1, "--seconds", 0.001)
    assert ran.code == 0, ran
    for kind in (*KINDS, "round trips/s"):
        assert kind in ran.out


def test_the_workers_are_processes_of_their_own_and_end():
    with echo_links() as links:
        assert set(links) == set(KINDS)
        for link in links.values():
            RoundTrips(link, 64)()
        closed = list(links.values())
    for link in closed:
        with pytest.raises(WorkerUnavailable):
            RoundTrips(link, 64)()


def test_an_echo_that_lies_is_noticed():
    def liar(message):
        match message:
            case Apply(request_id, _, (tensor,)):
                return Answer(request_id, (tensor + np.uint32(1),))
        return echo(message)

    with pytest.raises(WorkerUnavailable, match="did not send back"):
        RoundTrips(InProcessLink(liar), 64)()


def test_the_echo_takes_nothing_else():
    assert echo(Hello()) is not None
    with pytest.raises(InputError, match="LoadSegment"):
        echo(LoadSegment(0, b""))


def test_the_environment_is_complete_with_and_without_a_checkout(tmp_path):
    found = environment.environment()
    assert found["isa"]
    assert found["gpu"]
    assert set(found["versions"]) == {"python", *environment.PACKAGES}
    assert environment.git_commit(tmp_path) is None
    assert set(environment.cpu_flags()) <= set(environment.FLAGS)


def test_programs_that_are_absent_or_fail_say_nothing(tmp_path):
    (tmp_path / ".git").mkdir()
    assert environment.git_commit(tmp_path) is None
    assert environment._output(["no-such-program-anywhere"]) is None
    assert environment._output(["false"]) is None
