"""Every messy table is read right, or refused with its file, line, column and a remedy."""

import numpy as np
import pytest
from tests.data.messy_tables import CSV, PATIENTS, comma, plain, written

from cloister.data.columns import days
from cloister.data.csv_source import TableSource
from cloister.data.sources import open_source
from cloister.data.table_options import TableOptions
from cloister.errors import InputError

AGE = np.array([float(p.age) for p in PATIENTS])
BP = np.array([float(p.bp) for p in PATIENTS])
LABEL = np.array([p.label for p in PATIENTS])
IS_M = np.array([float(p.sex == "m") for p in PATIENTS])
GAPS = np.arange(40) % 7 == 0
VISITS = days("2024-01-01") + np.arange(40) % 28


@pytest.fixture
def path(tmp_path):
    return tmp_path / "table.csv"


def read(path, content, **options):
    """A file's cells by column, in its own units, and its source."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    targets = options.pop("targets", None)
    source = TableSource(path, TableOptions(**options), targets=targets)
    columns = source.columns()
    cells = source.read(np.arange(source.samples))[:, 0, 0]
    return {column.name: cells[:, place] for place, column in enumerate(columns)}, source


def refusal(path, content, **options):
    with pytest.raises(InputError) as caught:
        read(path, content, **options)
    text = str(caught.value)
    assert text.startswith((str(path), "--")), text
    assert "\n" not in text
    return text.replace(f"{path}: ", "")


def equal(found, **wanted):
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


RIGHT = {
    "bom": {}, "utf16": {"remark": "the file is read as utf-16"},
    "latin1": {"names": ("böse", "gut"), "labels": 1 - LABEL, "remark": "line 3 is not UTF-8"},
    "quotes": {"columns": {"age": AGE, "bp, systolic": BP}, "names": ("no", "yes")},
    "semicolon": {"remark": "separated by semicolons"}, "tab": {"remark": "separated by tabs"},
    "semicomma": {"remark": "numbers have decimal commas"},
    "deccomma_q": {"remark": "numbers have decimal commas"},
    "middle": {}, "trailing": {}, "spaces": {}, "floatlabel": {},
    "dates": {"columns": {"visit": VISITS, "age": AGE, "bp": BP},
              "remark": "column visit: dates are read as %Y-%m-%d"},
    "strings": {"columns": {"age": AGE, "sex": IS_M, "bp": BP},
                "remark": "column sex: a category of f, m"},
    "bool": {"columns": {"age": AGE, "smoker": IS_M},
             "remark": "column smoker: a category of false, true"},
    "constant": {"columns": {"age": AGE, "k": np.full(40, 5.0), "bp": BP},
                 "remark": "column k: all cells are alike"},
    "id": {"columns": {"patient_id": 100000 + np.arange(40.0), "age": AGE, "bp": BP},
           "remark": "leave them out with --without patient_id"},
    "dups": {"columns": {"age": np.tile(AGE, 3), "bp": np.tile(BP, 3)},
             "labels": np.tile(LABEL, 3)},
    "imbalance": {"columns": {"age": np.tile(AGE, 10), "bp": np.tile(BP, 10)},
                  "labels": (np.arange(400) == 3).astype(int),
                  "remark": "class 1 has 1 of 400 samples"},
    "onerow": {"columns": {"age": [61], "bp": [120]}, "names": ("1",), "labels": [0]},
    "oneclass": {"names": ("1",), "labels": np.zeros(40),
                 "remark": "every sample is of class 1"},
}  # fmt: skip

GAP_LINES = "; ".join(f"line {2 + i}, column bp: the value is missing" for i in range(0, 40, 7))
MISSING = (
    f"6 cells cannot be used: {GAP_LINES}; fill it (--fill), or leave out rows with missing cells "
    "(--drop)"
)
WRONG = {
    "missing": MISSING, "na": MISSING, "nan": MISSING,
    "missinglabel": "line 6, column label: the class is missing; write it, or leave out rows with "
    "missing cells (--drop)",
    "noheader": "line 1 names no column 'label': it holds numbers; write a header, a line with "
    "column names",
    "headeronly": "holds no samples", "empty": "is empty; it needs a header and rows",
    "huge": "column bp: the value 1e+300 would make all others alike, which lie between 97.2 and "
    "178.9; correct it, or give a range with --ranges",
    "inf": "line 2, column bp: 'inf' is no finite number; correct it, or leave its row out",
    "ragged": "line 7: 4 cells, but the header has 3; correct them, or name what separates cells "
    "with --separator",
    "regress": "column label holds numbers such as 1.943, which are no classes: --targets numbers "
    "reads numbers to be predicted; or group them, or name the column of the classes with --label",
    "thousands": "40 cells cannot be used: line 2, column bp: '1,158' may be 1.158 or 1158; ",
}  # fmt: skip


@pytest.mark.parametrize("name", CSV)
def test_each_is_right_or_refused(name, path):
    if name in WRONG:
        assert refusal(path, CSV[name]).startswith(WRONG[name])
        return
    expected = RIGHT[name]
    found, source = read(path, CSV[name])
    equal(found, **expected.get("columns", {"age": AGE, "bp": BP}))
    assert source.names == expected.get("names", ("0", "1"))
    np.testing.assert_array_equal(source.labels, expected.get("labels", LABEL))
    said = " / ".join(source.remarks)
    assert expected.get("remark", "") in said
    assert said if "remark" in expected else not source.remarks or name == "onerow"


def test_a_spreadsheet_is_refused(tmp_path):
    for name in ("data.xlsx", "data.ods", "data.csv"):
        (tmp_path / name).write_bytes(b"PK\x03\x04junk")
        with pytest.raises(InputError, match=r"spreadsheet.*save the (sheet|table) as CSV"):
            open_source(tmp_path / name)


# ---- remedies


def test_missing_cells_are_filled_or_their_rows_dropped(path):
    found, source = read(path, CSV["na"], fill="median")
    assert np.isnan(found["bp"]).tolist() == GAPS.tolist()
    age, bp = source.columns()
    assert (age.fill, bp.fill) == (np.median(AGE), np.median(BP[~GAPS]))
    assert f"column bp: 6 missing cells are filled by {bp.fill:g}" in source.remarks
    assert read(path, CSV["na"], fill="bp=100")[1].columns()[1].fill == 100
    assert read(path, CSV["na"], fill="mean")[1].columns()[1].fill == BP[~GAPS].mean()
    found, source = read(path, CSV["na"], drop=True)
    equal(found, age=AGE[~GAPS], bp=BP[~GAPS])
    np.testing.assert_array_equal(source.labels, LABEL[~GAPS])
    np.testing.assert_array_equal(source.row_numbers, np.flatnonzero(~GAPS))
    assert "6 rows with missing cells are left out" in source.remarks
    found, _ = read(path, CSV["missinglabel"], drop=True)
    equal(found, age=np.delete(AGE, 4), bp=np.delete(BP, 4))


def test_a_fill_outside_the_values_widens_their_range(path):
    _, source = read(path, CSV["na"], fill="bp=-1")
    assert (source.columns()[1].low, source.columns()[1].fill) == (-1.0, -1.0)
    unknown = written("sex,age,label", lambda i, p: f"{p.sex if i else ''},{p.age},{p.label}")
    sex = read(path, unknown, fill="sex=unknown")[1].columns()[0]
    assert (sex.values, sex.fill) == (("f", "m", "unknown"), "unknown")
    sex = read(path, unknown, fill="median")[1].columns()[0]
    assert sex.fill == max("fm", key=lambda value: sum(p.sex == value for p in PATIENTS[1:]))


@pytest.mark.parametrize(("fill", "message"), [
    ("bp=", "--fill bp=: give median, mean, VALUE or COLUMN=VALUE"),
    ("median,mean", "--fill median,mean: give"),
    ("weight=3", "--fill weight=...: there is no such column"),
    ("bp=unknown", "--fill unknown: column bp is a number and needs another value; say bp=VALUE"),
    ("unknown", "--fill unknown: column bp is a number"),
])  # fmt: skip
def test_a_fill_that_cannot_be_is_refused(path, fill, message):
    assert refusal(path, CSV["na"], fill=fill).startswith(message)


def test_options_say_what_a_file_leaves_open(path):
    bp = np.floor(BP)
    equal(read(path, CSV["thousands"], thousands=",")[0], age=AGE, bp=1000 + bp)
    equal(read(path, CSV["thousands"], decimal=",")[0], age=AGE, bp=(1000 + bp) / 1000)
    found, source = read(path, CSV["regress"], targets="numbers")
    equal(found, age=AGE, bp=BP)
    assert source.labels.shape == (40, 1)
    assert source.names == ("label",)
    assert source.labels[0, 0] == 1.943
    equal(read(path, CSV["id"], without=("patient_id",))[0], age=AGE, bp=BP)
    cut = CSV["semicolon"].replace(";", "^")
    assert "none of , ; | and tab separates cells" in refusal(path, cut)
    equal(read(path, cut, separator="^")[0], age=AGE, bp=BP)
    equal(read(path, CSV["latin1"], encoding="latin-1")[0], age=AGE, bp=BP)
    assert "line 3 is not utf-8; correct --encoding" in refusal(
        path, CSV["latin1"], encoding="utf-8"
    )
    assert "--encoding klingon: give one such as" in refusal(path, "", encoding="klingon")
    assert "--decimal x" in refusal(path, CSV["na"], decimal="x")
    assert "--thousands ." in refusal(path, CSV["na"], thousands=".", decimal=".")


# ---- other encodings, separators and shapes of a file


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "ascii"])
def test_encodings(path, encoding):
    equal(read(path, written("age,bp,label", plain).encode(encoding))[0], age=AGE, bp=BP)


def test_mixed_encodings_are_refused(path):
    mixed = "age,label\n1,böse\n".encode() + "2,böse\n".encode("latin-1")
    assert refusal(path, mixed).startswith("line 3 is not UTF-8, other lines are: the file mixes")
    odd = b"age,label\n1,b\x81se\n"
    assert refusal(path, odd).startswith("line 2 is neither UTF-8 nor Windows-1252")
    assert read(path, odd, encoding="cp850")[1].names == ("büse",)
    cut = written("age,bp,label", plain).encode("utf-16")[:-1]
    assert "UTF-16; save the table as UTF-8" in refusal(path, cut)
    assert "line 2" in refusal(path, b"age,label\n1,a\0b\n")


@pytest.mark.parametrize("separator", ["|", ";", "\t", ","])
@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
def test_separators_and_line_ends(path, separator, end):
    text = written("age,bp,label", plain, end=end).replace(",", separator)
    equal(read(path, text)[0], age=AGE, bp=BP)


def test_a_tsv_is_a_table(tmp_path):
    (tmp_path / "a.tsv").write_text(CSV["tab"])
    assert open_source(tmp_path / "a.tsv").samples == 40


def test_a_long_text_does_not_hide_the_separator(path):
    text = f'note,age,label\n"{"x" * 200_000}",1,0\ny,2,1\n'
    equal(read(path, text, without=("note",))[0], age=[1, 2])


def test_a_separator_in_names_does_not_mislead(path):
    text = written('age;"bp, systolic";label', lambda i, p: f"{p.age};{comma(p.bp)};{p.label}")
    equal(read(path, text)[0], age=AGE, **{"bp, systolic": BP})


def test_lines_before_the_header(path):
    for above in ("# exported 2024\n#\n", "\n\n", "sep=,\n", "sep=,\r\n# a\n"):
        found, source = read(path, above + CSV["middle"])
        equal(found, age=AGE, bp=BP)
        assert "before the header left out" in source.remarks[0]
    text = "sep=;\n" + CSV["semicomma"]
    equal(read(path, text)[0], age=AGE, bp=BP)
    assert refusal(path, "Report of 2024,,\n" + CSV["middle"]).startswith(
        "line 1 names no column 'label', line 2 does; begin the file with that line"
    )
    assert "line 1 does; begin the file with that line, without a '#'" in refusal(
        path, "# " + CSV["middle"]
    )


def test_bad_headers(path):
    assert "the header needs different names, but has 'age' 2 times" in refusal(
        path, "age,age,label\n1,2,0\n"
    )
    assert "but Age, Label; name the column of the classes with --label Label" in refusal(
        path, "Age,Label\n1,0\n"
    )
    text = written(",age,bp,label", lambda i, p: f"{i},{plain(i, p)}")
    assert "line 1: column 1 has no name; write one, or leave it out with --without" in refusal(
        path, text
    )
    equal(read(path, text, without=("column 1",))[0], age=AGE, bp=BP)
    assert "has no columns besides --label label" in refusal(path, "label,x\na,1\n", without=("x",))
    assert "--without weight: there is no such column" in refusal(
        path, CSV["na"], without=("weight",)
    )


def test_separators_at_the_end_of_lines_and_empty_rows(path):
    text = written("age,bp,label,", lambda i, p: plain(i, p) + ",")
    equal(read(path, text)[0], age=AGE, bp=BP)
    equal(read(path, text, drop=True)[0], age=AGE, bp=BP)
    found, source = read(path, CSV["middle"] + ",,\n,,\n \n")
    equal(found, age=AGE, bp=BP)
    assert "2 empty rows are left out" in source.remarks
    said = refusal(path, written("age,bp,label", lambda i, p: plain(i, p) + ","))
    assert said.startswith("line 2: 4 cells, line 3: 4 cells, ")
    assert "4 cells, and 20 more, but the header has 3; " in said


def test_quoted_line_breaks_are_read_and_open_quotes_refused(path):
    text = written("note,age,bp,label", lambda i, p: f'"a, ""b""\n{i}",{plain(i, p)}')
    equal(read(path, text, without=("note",))[0], age=AGE, bp=BP)
    wrong = text.replace(f"{PATIENTS[2].bp},", "x,", 1)
    assert "line 6, column bp: 'x' is not a number" in refusal(path, wrong, without=("note",))
    assert "line 3: a quote is not closed" in refusal(path, 'a,label\n1,x\n2,"y\n3,x\n4,y\n')
    assert "line 2: 1 cells (a quote that is not closed?)" in refusal(path, 'a,label\n"1,x\n2,y\n')


def test_all_ragged_lines_are_listed(path):
    text = written("age,bp,label", lambda i, p: plain(i, p) + (",0.0" if i % 2 else ""))
    said = refusal(path, "\n" + text)
    assert said.startswith("line 4: 4 cells, line 6: 4 cells, ")
    assert said.count(": 4 cells") == 20
    short = refusal(path, text.replace(",0.0", "", 15) + "1,2\n")
    assert short.count("4 cells") == 5
    assert "line 42: 2 cells" in short


# ---- cells


def column(*cells):
    return "x,label\n" + "".join(f'"{cell}",{i % 2}\n' for i, cell in enumerate(cells))


@pytest.mark.parametrize(("cells", "values"), [
    (("1e3", "2.5E-1", "+4", ".5", "5."), (1000, 0.25, 4, 0.5, 5)),
    (("\u22125.5", "-3", "2"), (-5.5, -3, 2)),
    (("\u00a01\u00a0", "\u202f2", " 3\t"), (1, 2, 3)),
    (("007", "08", "9"), (7, 8, 9)),
    (("1,5", "-0,25", "1e3", "7"), (1.5, -0.25, 1000, 7)),
    (("0,125", "1,5"), (0.125, 1.5)),
])  # fmt: skip
def test_numbers(path, cells, values):
    equal(read(path, column(*cells))[0], x=values)


@pytest.mark.parametrize(("cells", "options", "values"), [
    (("1,234.5", "2,000", "12"), {"thousands": ","}, (1234.5, 2000, 12)),
    (("1.234,5", "2.000", "12"), {"thousands": "."}, (1234.5, 2000, 12)),
    (("1'234.5", "2'000'000"), {"thousands": "'"}, (1234.5, 2000000)),
    (("1 234,5", "2\u00a0000", "3\u202f000\u202f000"), {"thousands": " ", "decimal": ","},
     (1234.5, 2000, 3000000)),
    (("5", "-999", "7"), {"missing": ("-999",), "fill": "0"}, (5, np.nan, 7)),
    (("5", "None", "7", "?"), {"missing": ("none",), "fill": "0"}, (5, np.nan, 7, np.nan)),
])  # fmt: skip
def test_numbers_with_options(path, cells, options, values):
    equal(read(path, column(*cells), **options)[0], x=values)


@pytest.mark.parametrize(("cells", "message"), [
    (("12%", "15 %"), "line 2, column x: '12%' has a unit; line 3, column x: '15 %' has a unit; "
     "write numbers alone, or name categories with --categories"),
    (("120 mmHg", "110 mmHg"), "'120 mmHg' has a unit"),
    (("5kg", "6"), "'5kg' has a unit"),
    (("37 °C", "38"), "'37 °C' has a unit"),
    (("<5", "6", "7"), "line 2, column x: '<5' is a bound"),
    (("1,234.5", "2"), "'1,234.5' groups its digits; say --thousands ,"),
    (("1.234.567", "2"), "'1.234.567' groups its digits; say --thousands ."),
    (("1 234", "2"), "'1 234' groups its digits; say --thousands space"),
    (("1'234", "2"), "groups its digits; say --thousands '"),
    (("1,5", "2.5", "3.5"), "'1,5' has a comma in a file with decimal points"),
    (("1,5", "2.5", "3,5"), "'2.5' has a point in a file with decimal commas"),
    (("1", "2", "unknown"), "line 4, column x: 'unknown' is not a number such as 1234.5; write "
     "one, or name what stands for a missing one with --missing, or columns of categories with"),
    (("1", "2", "\uff13"), "is not a number"),
    (("1", "2", "0x1F"), "'0x1F' is not a number"),
    (("1", "2", "1_000"), "'1_000' is not a number"),
    (("1", "2", "Infinity"), "'Infinity' is no finite number"),
    (("1", "2", "1e999"), "'1e999' is no finite number"),
    (("1", "2", "3 \u200b4"), "is not a number"),
    (("", "NA", "?"), "column x: every cell is missing; leave it out (--without)"),
])  # fmt: skip
def test_cells_that_are_no_numbers(path, cells, message):
    assert message in refusal(path, column(*cells))


def test_identifiers_are_noticed_by_name_or_as_a_count(path):
    said = "column {}: every row has another whole number; if these are identifiers, leave them out"
    for name in ("Patient ID", "case_no", "MRN"):
        text = written(f"{name},label", lambda i, p: f"{7919 * i % 1000},{p.label}")
        assert read(path, text)[1].remarks[0].startswith(said.format(name))
    text = written("x,label", lambda i, p: f"{i + 5},{p.label}")
    assert read(path, text)[1].remarks[0].startswith(said.format("x"))
    for name in ("x", "did", "piano"):
        text = written(f"{name},label", lambda i, p: f"{7919 * i % 1000},{p.label}")
        assert not read(path, text)[1].remarks


def test_bad_cells_of_all_columns_are_listed_at_once(path):
    text = written("age,bp,label", lambda i, p: f"{p.age if i != 3 else 'x'},"
                   f"{p.bp if i != 1 else ''},{p.label}")  # fmt: skip
    assert refusal(path, text).startswith(
        "2 cells cannot be used: line 3, column bp: the value is missing; "
        "line 5, column age: 'x' is not a number"
    )
    text = written("age,label", lambda i, p: f"{p.age if i % 2 else '?'},{p.label}",
                   patients=PATIENTS * 100)  # fmt: skip
    said = refusal(path, text)
    assert said.startswith("2,000 cells cannot be used: line 2, column age")
    assert said.count("the value is missing") == 20
    assert "; and 1,980 more; " in said


@pytest.mark.parametrize(("cells", "truths"), [
    (("TRUE", "FALSE", "TRUE"), (1, 0, 1)), (("yes", "No", "YES"), (1, 0, 1)),
    (("t", "f", "T"), (1, 0, 1)), (("Y", "N", "Y"), (1, 0, 1)),
    (("yes", "0", "1", "false"), (1, 0, 1, 0)), (("no", "no", "no"), (0, 0, 0)),
])  # fmt: skip
def test_truth_values_in_any_spelling(path, cells, truths):
    found, source = read(path, column(*cells))
    equal(found, x=truths)
    assert source.columns()[0].values == ("false", "true")


def test_one_letter_alone_is_no_truth_value(path):
    assert read(path, column("f", "f", "f"))[1].columns()[0].values == ("f",)
    assert read(path, column("f", "m", "f"))[1].columns()[0].values == ("f", "m")
    assert read(path, column("1", "0", "1"))[1].columns()[0].kind == "number"


@pytest.mark.parametrize(("cells", "form"), [
    (("2024-01-31", "2023-12-01"), "%Y-%m-%d"), (("2024/01/31", "2023/12/01"), "%Y/%m/%d"),
    (("31.01.2024", "01.12.2023"), "%d.%m.%Y"), (("31/01/2024", "01/12/2023"), "%d/%m/%Y"),
    (("01/31/2024", "12/01/2023"), "%m/%d/%Y"), (("31-1-2024", "1-12-2023"), "%d-%m-%Y"),
    (("2024-01-31T10:30:00Z", "2023-12-01 08:00"), "%Y-%m-%d, their times of day are left out"),
])  # fmt: skip
def test_dates(path, cells, form):
    found, source = read(path, column(*cells))
    equal(found, x=(days("2024-01-31"), days("2023-12-01")))
    assert f"column x: dates are read as {form}" in source.remarks


def test_dates_that_may_mean_two_days_are_refused(path):
    cells = ("01/02/2024", "03/04/2024")
    assert refusal(path, column(*cells)) == (
        "column x: dates such as '01/02/2024' may begin with the day or the month; "
        "write them as YYYY-MM-DD, or say which with "
        "--date-format %d/%m/%Y or %m/%d/%Y"
    )
    equal(read(path, column(*cells), date_format="%d/%m/%Y")[0],
          x=(days("2024-02-01"), days("2024-04-03")))  # fmt: skip
    named = column("15-Jan-2024", "16-Feb-2024")
    equal(read(path, named, date_format="%d-%b-%Y")[0], x=(days("2024-01-15"), days("2024-02-16")))
    assert "line 4, column x: '2024-02-30' is no date in the format %Y-%m-%d" in refusal(
        path, column("2024-01-01", "2024-01-02", "2024-02-30")
    )
    assert "'03.02.2024' is no date in the format %Y-%m-%d; write all dates in one" in refusal(
        path, column("2024-01-01", "2024-01-02", "03.02.2024")
    )
    equal(read(path, column("20240131", "20231201"), date_format="%Y%m%d")[0],
          x=(days("2024-01-31"), days("2023-12-01")))  # fmt: skip


@pytest.mark.parametrize("cells", [
    ("01/02/24", "02/02/24"), ("15 Jan 2024", "16 Feb 2024"), ("Jan 15, 2024", "Feb 1, 2024"),
    ("15-Jan-24", "16-Feb-24"), ("01/15/2024 10:30 PM", "01/16/2024 1:30 AM"),
])  # fmt: skip
def test_dates_in_other_formats_need_a_name(path, cells):
    assert "may be dates; name their format with --date-format" in refusal(path, column(*cells))
    assert read(path, column(*cells), categories=("x",))[1].columns()[0].kind == "category"


def test_numbers_that_may_mean_something_else_are_noticed(path):
    zips = written("zip,label", lambda i, p: f"0{1000 + 7 * i},{p.label}")
    assert (
        "column zip: some numbers begin with a zero; if these are codes"
        in read(path, zips)[1].remarks[0]
    )
    dates = column("20240131", "20231201", "20231202")
    assert read(path, dates)[1].remarks == (
        "column x: its numbers may be dates; if they are, say --date-format %Y%m%d",
    )
    gaps = written("bp,label", lambda i, p: f"{p.bp if i % 7 else -999},{p.label}")
    assert read(path, gaps)[1].remarks == (
        "column bp: 6 cells are -999, far from all others; if these are missing, say --missing "
        "-999",
    )
    found, source = read(path, gaps, missing=("-999",), drop=True)
    equal(found, bp=BP[~GAPS])
    assert source.remarks == ("6 rows with missing cells are left out",)
    assert read(path, written("bp,label", lambda i, p: f"{i % 9 - 1},{p.label}"))[1].remarks == ()


def test_letters_with_accents_and_hidden_characters(path):
    two = ("ma\u0308nnlich", "m\u00e4nnlich")
    text = written("sex,label", lambda i, p: f"{two[i % 2]},{two[p.label]}")
    _, source = read(path, text)
    assert source.columns()[0].values == source.names == ("m\u00e4nnlich",)
    text = written("sex,label", lambda i, p: f"{p.sex}{chr(0x200B) if i == 3 else ''},{p.label}")
    assert (
        "column sex: some of its values hold characters that do not show"
        in read(path, text)[1].remarks
    )


def test_texts_are_refused_or_categories(path):
    text = written("note,label", lambda i, p: f"seen at {i} o'clock,{p.label}")
    assert refusal(path, text).startswith(
        'column note: holds texts such as "seen at 0 o\'clock", more different ones'
    )
    assert "HashingVectorizer" in refusal(path, text)
    coded = written("cp,age,label", lambda i, p: f"{i % 4},{p.age},{p.label}")
    assert read(path, coded)[1].columns()[0].kind == "number"
    assert read(path, coded, categories=("cp",))[1].columns()[0].values == ("0", "1", "2", "3")
    mixed = written("grade,label", lambda i, p: f"{['1a', '1b', '2', '3'][i % 4]},{p.label}")
    assert "'1a' is not a number" in refusal(path, mixed)
    assert read(path, mixed, categories=("grade",))[1].columns()[0].values == (
        "1a", "1b", "2", "3",
    )  # fmt: skip
    spelled = written("sex,label", lambda i, p: f"{p.sex.upper() if i % 2 else p.sex},{p.label}")
    assert (
        "column sex: some of its values differ in upper and lower case only"
        in read(path, spelled)[1].remarks
    )


def test_several_unusable_columns_are_named_at_once(path):
    text = written("note,seen,label", lambda i, p: f"text {i},0{1 + i % 9}/02/2024,{p.label}")
    said = refusal(path, text)
    assert "column note: holds texts" in said
    assert "; column seen: dates such as" in said


# ---- labels


def test_several_label_columns(path):
    text = written("age,ill,old,label", lambda i, p: f"{p.age},{'yes' if p.label else 'no'},"
                   f"{int(float(p.age) > 60)},{p.bp}")  # fmt: skip
    found, source = read(path, text, label=("ill", "old"), without=("label",))
    equal(found, age=AGE)
    assert (source.targets, source.names) == ("labels", ("ill", "old"))
    np.testing.assert_array_equal(source.labels, np.stack([LABEL, AGE > 60], axis=1))
    both = {"label": ("old", "label"), "without": ("ill",)}
    _, source = read(path, text, targets="numbers", **both)
    np.testing.assert_array_equal(source.labels, np.stack([AGE > 60, BP], axis=1))
    assert source.labels.dtype == np.float64
    assert "say what the columns old, label are: --targets labels" in refusal(path, text, **both)
    assert "column label holds '" in refusal(path, text, targets="labels", **both)
    assert "classes are in one column" in refusal(path, text, targets="classes", **both)
    assert "name every column once" in refusal(path, text, label=("ill", "ill"))


def test_numbers_to_predict_have_the_decimal_mark_of_the_file(path):
    text = written("age;label", lambda i, p: f"{p.age};{comma(p.bp)}")
    np.testing.assert_array_equal(read(path, text, targets="numbers")[1].labels[:, 0], BP)
    wrong = text.replace(comma(PATIENTS[1].bp), "high")
    assert "line 3, column label: 'high' is not a number" in refusal(path, wrong, targets="numbers")


def test_class_names_are_trimmed_and_in_order(path):
    text = "x,label\n" + "".join(f"{i}, {1 + i % 12}.0\n" for i in range(40))
    _, source = read(path, text)
    assert source.names == tuple(str(i) for i in range(1, 13))
    assert read(path, "x,label\n1,b\n2, a\n3,b \n")[1].names == ("a", "b")
    text = written(
        "age,label",
        lambda i, p: f"{p.age},{(('no', 'False', '0'), ('Yes', 'true', '1'))[p.label][i % 3]}",
    )
    _, source = read(path, text)
    assert source.names == ("false", "true")
    np.testing.assert_array_equal(source.labels, LABEL)
    text = written("age,label", lambda i, p: f"{p.age},{('sick', 'Sick', 'well')[i % 3]}")
    assert read(path, text)[1].remarks == ("some classes differ in upper and lower case only",)


def test_unlabelled_samples_have_no_labels(path):
    found, source = read(path, CSV["strings"], label=(), without=("label", "sex"))
    equal(found, age=AGE, bp=BP)
    assert (source.labels, source.names, source.samples) == (None, (), 40)
    path.write_text(CSV["middle"])
    for text in (CSV["middle"], written("age,bp", lambda i, p: f"{p.age},{p.bp}")):
        path.write_text(text)
        source = open_source(path, unlabelled=True)
        cells = source.read(np.arange(40))[:, 0, 0].T
        equal(dict(zip(source.column_names, cells, strict=True)), age=AGE, bp=BP)
        assert source.labels is None
        said = ("column label is left out",) if "label" in text else ()
        assert source.remarks == said
    gap = "age,bp\n20,90.0\n,\n30,91.0\n"
    assert "line 3, column age: the value is missing" in refusal(path, gap, label=())
    found, source = read(path, gap, label=(), drop=True)
    equal(found, age=[20, 30], bp=[90, 91])
    assert source.row_numbers.tolist() == [0, 2]


# ---- the data set's columns


def test_a_second_owner_reads_by_the_data_sets_columns(path):
    first = read(path, CSV["strings"], fill="sex=f")[1].columns()
    other = written("bp;sex;age;label", lambda i, p: f"{comma(p.bp)};m;{p.age};{p.label}",
                    patients=PATIENTS[5:8])  # fmt: skip
    path.write_text(other)
    source = TableSource(path)
    source.use(first)
    cells = source.read(np.arange(3))[:, 0, 0]
    np.testing.assert_array_equal(cells.T, [AGE[5:8], [1, 1, 1], BP[5:8]])
    for text, message in (
        (other.replace("m;", "x;", 1), "line 2, column sex: 'x' is none of the column's values"),
        (other.replace(";m;", ";m;9"), "3 cells cannot be used: line 2, column age: 9"),
        (other.replace("m;" + PATIENTS[6].age, "m;"), "line 3, column age: the value is missing"),
        (other.replace("bp;", "weight;"), "has no column bp, which the data set has"),
        (other.replace("bp;", "bp;weight;").replace(";m", ";1;m"), "column weight is not in the"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            TableSource(path).use(first)
    path.write_text(other.replace("m;", ";"))
    source = TableSource(path)
    source.use(first)
    assert "column sex: 3 missing cells are filled by f" in source.remarks
    with pytest.raises(InputError, match="column sex: the data set fills f; leave sex out"):
        TableSource(path, TableOptions(fill="sex=m")).use(first)
    with pytest.raises(InputError, match="column age is a number in the data set"):
        TableSource(path, TableOptions(categories=("age",))).use(first)


def test_what_a_file_suggests_does_not_count_beside_the_data_set(path):
    columns = read(path, column("a", "1", "2", "b"), categories=("x",))[1].columns()
    path.write_text(column("1", "2", "2.0"))
    source = TableSource(path)
    source.use(columns)
    np.testing.assert_array_equal(source.read(np.arange(3)).reshape(-1), [0, 1, 1])
    smoker = read(path, column("TRUE", "FALSE"))[1].columns()
    path.write_text(column("1", "0", "0"))
    source = TableSource(path)
    source.use(smoker)
    np.testing.assert_array_equal(source.read(np.arange(3)).reshape(-1), [1, 0, 0])


def test_a_column_without_cells_is_filled_by_the_data_set(path):
    table = column("2024-01-01", "2024-01-03", "") + '"2024-01-02",1\n'
    first = read(path, table, fill="median")[1].columns()
    path.write_text("x,label\n,0\nNA,1\n")
    source = TableSource(path)
    source.use(first)
    assert source.remarks == ("column x: dates are read as %Y-%m-%d",
                              "column x: 2 missing cells are filled by 2024-01-02")  # fmt: skip


def test_public_ranges_say_how_columns_are_read(path):
    path.write_text(CSV["dates"])
    ranges = {"visit": ("2000-01-01", "2030-01-01"), "age": (0, 120), "bp": (50, 250)}
    visit, age, _ = TableSource(path).columns(ranges)
    assert (visit.low, visit.high) == (days("2000-01-01"), days("2030-01-01"))
    assert (age.low, age.high) == (0, 120)
    with pytest.raises(InputError, match="--ranges: column bp is missing"):
        TableSource(path).columns({"visit": ("2000-01-01", "2030-01-01"), "age": (0, 120)})
    with pytest.raises(InputError, match="--ranges: columns visit, bp are missing; give"):
        TableSource(path).columns({"age": (0, 120)})
    days_first = ranges | {"visit": ("01.01.2000", "31.12.2030")}
    with pytest.raises(InputError, match=r"write the dates 01\.01\.2000 and 31\.12\.2030"):
        TableSource(path).columns(days_first)
    path.write_text(CSV["strings"])
    ranges = {"age": (0, 120), "sex": ("m",), "bp": (50, 250)}
    with pytest.raises(InputError, match="column sex: 'f' is none of the column's values"):
        TableSource(path).columns(ranges)


def test_a_long_table_takes_several_pieces(path, monkeypatch):
    monkeypatch.setattr("cloister.data.csv_reader.BLOCK_BYTES", 256)
    equal(read(path, CSV["quotes"])[0], age=AGE, **{"bp, systolic": BP})
    assert refusal(path, CSV["na"]) == MISSING
    text = CSV["middle"] + "1,0," + "9" * 600 + "\n"
    assert "not a readable CSV file" in refusal(path, text)


def test_without_pyarrow_the_remedy_is_named(path, monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr("cloister.data.csv_reader.importlib.import_module", absent)
    path.write_text(CSV["middle"])
    with pytest.raises(InputError, match=r"needs pyarrow: pip install 'cloister\[tables\]'"):
        TableSource(path)
