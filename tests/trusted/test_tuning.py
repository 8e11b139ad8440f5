"""The kernels' parameters: which are chosen, how they are kept; no result depends on them."""

import logging
from dataclasses import replace

import numpy as np
import pytest

import cloister.base._native as native
import nets
from cloister.errors import InputError
from cloister.trusted import tuning
from cloister.trusted.session import Session
from cloister.trusted.tuning import Choice, MeasuredChoice
from trusted.links import DirectLink
from trusted.test_session import plan_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and the defaults in force."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = native.tuning()
    tuning.settle.cache_clear()
    native.set_tuning(native.Tuning())
    yield tmp_path
    native.set_tuning(before)
    tuning.settle.cache_clear()


def other() -> Choice:
    return replace(tuning.defaults(), tile=1024, far_tiles=3, stream_from=123)


def in_force() -> tuple[int, int, int]:
    found = native.tuning()
    return found.tile, found.far_tiles, found.stream_from


def path(cache):
    (found,) = cache.glob("cloister/*")
    return found


def measured(*times: float) -> list[MeasuredChoice]:
    return [
        MeasuredChoice(replace(tuning.defaults(), far_tiles=i), ms) for i, ms in enumerate(times)
    ]


def never(*_: object) -> list[MeasuredChoice]:
    raise AssertionError("measured")


def test_a_choice_that_is_kept_is_used_without_measuring(cache, monkeypatch):
    tuning.keep(other())
    assert path(cache).stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(tuning, "calibrate", never)
    tuning.settle()
    assert in_force() == (1024, 3, 123)


def test_the_first_session_measures_and_keeps_its_choice(cache, monkeypatch):
    asked = []
    monkeypatch.setattr(tuning, "calibrate", lambda: asked.append(1) or measured(1.0, 0.5))
    tuning.settle()
    tuning.settle()
    assert asked == [1]
    assert in_force()[1] == 1
    assert tuning.kept() == replace(tuning.defaults(), far_tiles=1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[" * 2000,
        lambda text: text.replace("1024", "1000"),
        lambda text: text.replace("1024", "1e3"),
        lambda text: text.replace("1024", '"1024"'),
        lambda text: text.replace("123", "-1"),
        lambda text: text.replace("123", "1" * 40),
        lambda text: text.replace('"tile"', '"tiles"'),
        lambda text: text.replace("}", ', "more": 1}'),
        lambda text: text.replace('"avx512"', '"avx"').replace('"avx2"', '"avx"'),
        lambda text: text.replace('"processor": "', '"processor": "another '),
        lambda text: text + "x",
    ],
)
def test_a_damaged_file_counts_as_none(cache, damage):
    tuning.keep(other())
    file = path(cache)
    file.write_text(damage(file.read_text()))
    assert tuning.kept() is None
    assert in_force() == in_force_by_default()


def in_force_by_default() -> tuple[int, int, int]:
    found = native.Tuning()
    return found.tile, found.far_tiles, found.stream_from


def test_a_file_that_others_can_read_counts_as_none(cache):
    tuning.keep(other())
    path(cache).chmod(0o644)
    assert tuning.kept() is None


def test_a_choice_against_other_defaults_counts_as_none(cache, monkeypatch):
    tuning.keep(other())
    own = tuning.defaults()
    monkeypatch.setattr(tuning, "defaults", lambda: replace(own, far_tiles=own.far_tiles + 1))
    assert tuning.kept() is None


def test_a_choice_of_another_machine_lies_in_another_file(cache):
    tuning.keep(replace(other(), cores=other().cores + 1))
    assert tuning.kept() is None
    tuning.keep(other())
    assert tuning.kept() == other()
    assert len(list(cache.glob("cloister/*"))) == 2


def test_without_time_to_measure_the_defaults_stay_and_the_log_says_so(caplog, monkeypatch):
    with pytest.raises(InputError, match="rounds"):
        tuning.calibrate(budget_s=0.0)
    real = tuning.calibrate
    monkeypatch.setattr(tuning, "calibrate", lambda: real(budget_s=0.0))
    with caplog.at_level(logging.INFO, "cloister.trusted"):
        tuning.settle()
    assert "default parameters" in caplog.text
    assert in_force() == in_force_by_default()
    assert tuning.kept() is None


def test_a_cache_folder_that_cannot_be_written_stops_no_session(cache, monkeypatch):
    (cache / "cloister").write_text("a file")
    monkeypatch.setattr(tuning, "calibrate", lambda: measured(1.0, 0.5))
    tuning.settle()
    assert in_force() == in_force_by_default()


def test_calibration_gives_every_candidate_and_changes_nothing(isa, monkeypatch):
    monkeypatch.setattr(tuning, "_ROUNDS", tuning._LEAST_ROUNDS)
    monkeypatch.setattr(tuning, "_MEMORY_BYTES", 4 << 20)
    native.set_tuning(other().to_native())
    found = tuning.calibrate(budget_s=600.0)
    assert in_force() == (1024, 3, 123)
    assert found[0].choice == tuning.defaults()
    assert len({one.choice for one in found}) == len(found) > 4
    assert all(one.ms > 0 and one.choice.isa == isa for one in found)


def test_only_a_clear_gain_replaces_the_defaults():
    assert tuning.best(measured(1.0, 0.99, 1.5)).far_tiles == 0
    assert tuning.best(measured(1.0, 0.9, 0.8, 1.5)).far_tiles == 2


def test_results_do_not_depend_on_the_choice(isa):
    model = nets.ALL["residual"]()
    plan, feeds = plan_of(model), nets.samples(model, 5)
    results = []
    for choice in (tuning.defaults(), replace(other(), stream_from=1)):
        native.set_tuning(choice.to_native())
        with Session(plan, batch=3, workers=[DirectLink()]) as session:
            results.append(session.run(feeds).outputs)
    for name, value in results[0].items():
        np.testing.assert_array_equal(value, results[1][name])
