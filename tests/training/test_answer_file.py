"""Files of answers: who can read them, in whose names, and what damage is noticed."""

import csv
import stat
from dataclasses import replace

import numpy as np
import pytest

from cloister.authority.answer_keys import answer_keys
from cloister.authority.permutation import label_permutation
from cloister.errors import EncryptionError, InputError, UnknownDatasetError
from cloister.training import PredictionOptions, answer_file, open_answers, write_answers
from cloister.training.answer_file import read_answers
from training.test_predictions import Clinic

SEALED = PredictionOptions(answers_to="client")


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    made = Clinic(tmp_path_factory.mktemp("clinic"), "exact")
    yield made
    made.authority.close()


@pytest.fixture(scope="module")
def predictions(clinic):
    return clinic.predict(options=SEALED)


@pytest.fixture(params=["readable", "sealed"])
def written(request, clinic, predictions, tmp_path):
    """A file of answers, in several records, and the key that opens it."""
    path, is_sealed = tmp_path / "a.answers", request.param == "sealed"
    key = clinic.client.answer_key("set") if is_sealed else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer_file, "RECORD_NUMBERS", 75)
        write_answers(predictions, path, key=key)
    keys = answer_keys(clinic.client.find("set").label_key) if is_sealed else None
    return path, keys


def test_a_file_holds_what_was_predicted(written, predictions):
    path, keys = written
    found = read_answers(path, keys=keys)
    np.testing.assert_array_equal(found.ids, predictions.ids)
    np.testing.assert_array_equal(found.values, predictions.answers)
    assert (found.info, found.run) == (predictions.info, predictions.run)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_sealed_file_holds_nothing_readable_and_opens_for_clients_alone(
    clinic, predictions, tmp_path
):
    path, plain = tmp_path / "a.answers", tmp_path / "b.answers"
    write_answers(predictions, path, key=clinic.client.answer_key("set"))
    write_answers(predictions, plain, key=None)
    for piece in (predictions.answers[:2].tobytes(), predictions.ids[:2].tobytes()):
        assert piece in plain.read_bytes()
        assert piece not in path.read_bytes()
    with pytest.raises(InputError, match="is sealed to the clients of data set set; give"):
        open_answers(path)
    with pytest.raises(EncryptionError, match="sealed to another authority, data set or purpose"):
        read_answers(path, keys=answer_keys(bytes(32)))
    assert open_answers(path, authority=clinic.client).names == ("0", "1", "2")


@pytest.mark.parametrize("sealed", [False, True])
def test_a_client_reads_its_own_names_rows_and_the_truth(clinic, predictions, tmp_path, sealed):
    """The permutation is undone: each answer is under the name of the class that it is for."""
    path = tmp_path / "a.answers"
    write_answers(predictions, path, key=clinic.client.answer_key("set") if sealed else None)
    found = open_answers(path, authority=clinic.client)
    answered = predictions.answers.argmax(axis=1)
    assert np.array(found.classes, int).tolist() == clinic.own_classes()[answered].tolist()
    places = label_permutation(clinic.client.find("set").label_key, 3)
    np.testing.assert_array_equal(found.values, predictions.answers[:, places])
    own = found.of_owner(clinic.path.parent / "order.npz")
    assert own.rows.tolist() == list(range(60))
    numbers = {clinic.rows[one] - 120: i for i, one in enumerate(predictions.ids.tolist())}
    for row in range(60):
        np.testing.assert_array_equal(own.values[row], found.values[numbers[row]])
        assert own.classes[row] == found.classes[numbers[row]]
    assert (np.array(own.classes, int) == clinic.y[120:]).mean() > 0.9
    own.write_csv(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["row", "sample", "class", "0", "1", "2"]
    assert [row[0] for row in rows[1:]] == [str(i) for i in range(60)]
    assert rows[1][2] == own.classes[0]
    assert float(rows[1][3]) == pytest.approx(float(own.values[0, 0]), rel=1e-5)
    assert stat.S_IMODE((tmp_path / "a.csv").stat().st_mode) == 0o600


def test_a_readable_file_tells_secret_numbers_without_a_token(predictions, tmp_path):
    path = tmp_path / "a.answers"
    write_answers(predictions, path, key=None)
    found = open_answers(path)
    assert found.names == ("secret 0", "secret 1", "secret 2")
    np.testing.assert_array_equal(found.values, predictions.answers)
    found.write_csv(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().startswith("sample,class,secret 0,secret 1,secret 2\n")


def test_labels_and_numbers_have_a_column_each(predictions, tmp_path):
    for targets in ("labels", "numbers"):
        made = replace(predictions, info=replace(predictions.info, targets=targets))
        write_answers(made, tmp_path / "a.answers", key=None)
        open_answers(tmp_path / "a.answers").write_csv(tmp_path / "a.csv")
        text = (tmp_path / "a.csv").read_text()
        assert text.startswith("sample,secret 0,secret 1,secret 2\n")


def test_every_damage_is_noticed(written):
    path, keys = written
    whole = path.read_bytes()
    for at in range(0, len(whole), 37):
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(EncryptionError, match=r"a\.answers"):
            read_answers(path, keys=keys)
    for cut in (0, 10, 50, 400, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(EncryptionError, match=r"a\.answers"):
            read_answers(path, keys=keys)
    path.write_bytes(whole + b"\0")
    with pytest.raises(EncryptionError, match="goes on behind its last record"):
        read_answers(path, keys=keys)


def test_records_do_not_change_places(written):
    """A record is bound to its number and to its file."""
    path, keys = written
    whole = path.read_bytes()
    header = len(answer_file.MAGIC) + 36 + int.from_bytes(whole[19:23], "little")
    first = 8 + int.from_bytes(whole[header : header + 8], "little")
    second = 8 + int.from_bytes(whole[header + first : header + first + 8], "little")
    swapped = (
        whole[:header]
        + whole[header + first : header + first + second]
        + whole[header : header + first]
        + whole[header + first + second :]
    )
    path.write_bytes(swapped)
    with pytest.raises(EncryptionError, match="record 1 of"):
        read_answers(path, keys=keys)


def test_what_is_no_file_of_answers_or_no_order_is_said(clinic, predictions, tmp_path):
    with pytest.raises(InputError, match="No such file"):
        open_answers(tmp_path / "none")
    with pytest.raises(EncryptionError, match="give the --out of cloister predict"):
        read_answers(clinic.path)
    write_answers(predictions, tmp_path / "a.answers", key=None)
    found = open_answers(tmp_path / "a.answers", authority=clinic.client)
    (tmp_path / "text.npz").write_text("x")
    with pytest.raises(InputError, match="no file of --order"):
        found.of_owner(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", ids=np.array([999]), rows=np.array([0]), clients=found.clients)
    with pytest.raises(InputError, match="none of its samples has an answer"):
        found.of_owner(tmp_path / "other.npz")
    with pytest.raises(InputError, match="cannot be written"):
        found.write_csv(tmp_path / "no" / "a.csv")
    with pytest.raises(InputError, match="cannot be written"):
        write_answers(predictions, tmp_path / "no" / "a.answers", key=None)


def test_an_answer_twice_or_of_no_number_is_refused(predictions, tmp_path):
    ids, values = predictions.ids.copy(), predictions.answers.copy()
    ids[1] = ids[0]
    values[2, 1] = np.nan
    for made in (replace(predictions, ids=ids), replace(predictions, answers=values)):
        write_answers(made, tmp_path / "a.answers", key=None)
        with pytest.raises(EncryptionError, match="for a sample twice, or with what is no number"):
            open_answers(tmp_path / "a.answers")


def test_samples_without_an_answer_are_counted(clinic, predictions, tmp_path):
    some = replace(predictions, ids=predictions.ids[:7], answers=predictions.answers[:7])
    write_answers(some, tmp_path / "a.answers", key=None)
    own = open_answers(tmp_path / "a.answers", authority=clinic.client)
    own = own.of_owner(clinic.path.parent / "order.npz")
    assert (len(own.ids), own.absent) == (7, 53)


def test_another_authority_or_a_deleted_data_set_tells_no_names(clinic, predictions, tmp_path):
    path = tmp_path / "a.answers"
    write_answers(replace(predictions, authority="f" * 64), path, key=None)
    with pytest.raises(EncryptionError, match="belongs to authority ffff"):
        open_answers(path, authority=clinic.client)
    gone = replace(predictions, info=replace(predictions.info, name="gone"))
    write_answers(gone, path, key=None)
    with pytest.raises(UnknownDatasetError, match="data set gone is not known"):
        open_answers(path, authority=clinic.client)


def test_a_name_of_another_client_is_no_formula_in_a_spreadsheet(predictions, tmp_path):
    write_answers(predictions, tmp_path / "a.answers", key=None)
    names = ("=HYPERLINK(1)", "-1.5", "@x")
    replace(open_answers(tmp_path / "a.answers"), names=names).write_csv(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    shown = ["'=HYPERLINK(1)", "-1.5", "'@x"]
    assert header == ["sample", "class", *shown]
    assert {row[1] for row in rows} <= set(shown)
