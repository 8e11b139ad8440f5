"""How a CSV file is written: its encoding, its separator, and where its header is.

All of it is found from the file, and said as a remark where it is not what a program expects.
"""

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

from cloister.base.reading import open_regular, parsing
from cloister.errors import InputError, printable

SEPARATORS = (",", ";", "\t", "|")
NAMED_SEPARATORS = {"tab": "\t", "comma": ",", "semicolon": ";", "space": " ", "pipe": "|"}
SAMPLE_CHARS = 1 << 18
SAMPLED_ROWS = 200
PIECE_BYTES = 1 << 20
SHOWN_CHARS = 60
FALLBACK = "cp1252"
"""What programs on Windows write in western Europe; the first 256 characters are nearly Latin-1."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER_FILES = (
    (b"PK\x03\x04", "a spreadsheet or an archive"),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet"),
    (b"\x1f\x8b", "a compressed file"),
    (b"%PDF", "a PDF document"),
    (b"PAR1", "a Parquet file"),
)
_UTF8_LETTER = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)
_SEPARATOR_LINE = re.compile(r"sep=(.)\s*")
_NUMBER = re.compile(r"[+-]?[0-9.,]+")


@dataclass(frozen=True)
class Dialect:
    """How a file is written.

    header   cells of the header, without the spaces around them
    first    lines before the first row
    remarks  what was assumed, a sentence each
    """

    path: Path
    encoding: str
    separator: str
    header: tuple[str, ...]
    first: int
    remarks: tuple[str, ...]

    @contextmanager
    def rows_text(self) -> Iterator[TextIO]:
        """The text of the rows."""
        with _opened(self.path, self.encoding) as file:
            for _ in range(self.first):
                file.readline()
            yield file

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """Every row with the line on which it begins; empty lines are no rows.

        Raises   InputError
        """
        with self.rows_text() as file, parsing(f"{self.path}: not a readable CSV file"):
            reader, line = csv.reader(file, delimiter=self.separator), self.first
            for row in reader:
                if any(map(str.strip, row)) or len(row) == len(self.header):
                    yield line + 1, row
                line = self.first + reader.line_num

    def require_closed_quotes(self) -> None:
        """Refuse a quote that would make one cell of the rest of the file.

        Raises   InputError naming the line
        """
        line = self.first
        with self.rows_text() as file:
            reader = csv.reader(file, delimiter=self.separator, strict=True)
            try:
                for _ in reader:
                    line = self.first + reader.line_num
            except csv.Error:
                raise InputError(
                    f"{self.path}: line {line + 1}: a quote is not closed, or text follows it; "
                    "correct the line"
                ) from None


def find_dialect(
    path: Path,
    *,
    separator: str | None = None,
    encoding: str | None = None,
    wanted: Collection[str] = (),
    columns: int = 2,
) -> Dialect:
    """Find how a file is written.

    separator, encoding   as the file's owner says; None: what the file suggests
    wanted                columns that are in the header
    columns               how many there are at least

    Raises   InputError naming the file, the line and the option that says otherwise
    """
    with parsing(f"{path}: not a readable CSV file"):
        encoding, remarks = _encoding(path, encoding)
        with _opened(path, encoding) as file:
            sample = file.read(SAMPLE_CHARS)
    lines = list(io.StringIO(sample, newline=""))
    whole = len(sample) < SAMPLE_CHARS
    above = 0
    if lines and (stated := _SEPARATOR_LINE.fullmatch(lines[0])):
        separator, above = separator or stated[1], 1
    while above < len(lines) and (not lines[above].strip() or lines[above].startswith("#")):
        above += 1
    if above == len(lines):
        raise InputError(f"{path}: is empty; it needs a header and rows")
    chosen = NAMED_SEPARATORS.get(separator or "", separator) or _separator(
        lines[above:] if whole else lines[above:-1], wanted
    )
    if chosen is None and columns < 2:
        chosen = ","
    if chosen is None or len(chosen) != 1:
        raise InputError(
            f"{path}: line {above + 1} has one cell, {_shown(lines[above])}: none of , ; | and tab "
            "separates cells; name what does with --separator"
        )
    reader = csv.reader(lines[above:], delimiter=chosen)
    with parsing(f"{path}: not a readable CSV file"):
        header = tuple(
            unicodedata.normalize("NFC", cell.strip().removeprefix("\ufeff"))
            for cell in next(reader)
        )
    _require_wanted(path, wanted, header, lines, above, chosen)
    if chosen != "," and separator is None:
        remarks.append(f"cells are separated by {_separator_name(chosen)}")
    if above:
        remarks.append(f"{above} {_lines(above)} before the header left out")
    return Dialect(path, encoding, chosen, header, above + reader.line_num, tuple(remarks))


def _separator(lines: Sequence[str], wanted: Collection[str]) -> str | None:
    """What separates cells: it finds the wanted columns, then as many cells in rows as in header.

    Of two that fit alike, the one that makes more cells: with semicolons, commas may be decimal
    ones.
    """
    best: tuple[bool, float, int] = (False, 0.0, 1)
    found = None
    for candidate in SEPARATORS:
        rows: list[list[str]] = []
        try:
            for row in islice(csv.reader(lines, delimiter=candidate), SAMPLED_ROWS):
                rows += [row] if row else []
        except csv.Error:  # a long cell: what precedes it shows as much
            pass
        header = [cell.strip() for cell in rows[0]] if rows else []
        if len(header) < 2:
            continue
        alike = [len(row) == len(header) for row in rows[1:]] or [True]
        score = (set(wanted) <= set(header), sum(alike) / len(alike), len(header))
        if found is None or score > best:
            best, found = score, candidate
    return found


def _require_wanted(
    path: Path,
    wanted: Collection[str],
    header: Sequence[str],
    lines: Sequence[str],
    above: int,
    separator: str,
) -> None:
    missing = [name for name in wanted if name not in header]
    if not missing:
        return
    named = f"{path}: line {above + 1} names no column {missing[0]!r}"
    for number, line in enumerate(lines[:SAMPLED_ROWS], 1):
        cells = [cell.strip(" \t\r\n#\"'") for cell in line.split(separator)]
        if missing[0] in cells:
            raise InputError(
                f"{named}, line {number} does; begin the file with that line, without a '#'"
            )
    if sum(bool(_NUMBER.fullmatch(cell)) for cell in header) * 2 > len(header):
        raise InputError(f"{named}: it holds numbers; write a header, a line with column names")
    near = [name for name in header if name.lower() == missing[0].lower()]
    raise InputError(
        f"{named} but {_shown(', '.join(header))}; name the column of the classes with --label"
        + (f" {near[0]}" if near else "")
    )


def _encoding(path: Path, given: str | None) -> tuple[str, list[str]]:
    with open_regular(path) as file:
        begin = file.read(4096)
    for mark, kind in _OTHER_FILES:
        if begin.startswith(mark):
            raise InputError(f"{path}: is {kind}; save the table as CSV (UTF-8)")
    if given is not None:
        _require_encoding(given)
        line = _undecodable(path, given)
        if line is not None:
            raise InputError(f"{path}: line {line} is not {given}; correct --encoding")
        return given, []
    found = next((name for mark, name in _MARKS if begin.startswith(mark)), None)
    # Most characters of a table are ASCII, of which UTF-16 writes one half as zeros.
    if found is None and 4 * begin.count(0) > len(begin):
        odd, even = begin[1::2].count(0), begin[::2].count(0)
        found = "utf-16-le" if odd > even else "utf-16-be"
    line = _undecodable(path, found or "utf-8")
    if line is None:
        said = [] if found in (None, "utf-8-sig") else [f"the file is read as {found}"]
        return found or "utf-8", said
    if found is not None:
        raise InputError(
            f"{path}: line {line} is not {found.upper()}; save the table as UTF-8, or name its "
            "encoding with --encoding"
        )
    if _holds(path, _UTF8_LETTER):
        raise InputError(
            f"{path}: line {line} is not UTF-8, other lines are: the file mixes encodings; save it "
            "in one, or name one with --encoding"
        )
    other = _undecodable(path, FALLBACK)
    if other is not None:
        raise InputError(
            f"{path}: line {other} is neither UTF-8 nor Windows-1252; save the table as UTF-8, or "
            "name its encoding with --encoding"
        )
    return FALLBACK, [
        f"line {line} is not UTF-8: the file is read as Windows-1252 (Latin-1); name another "
        "encoding with --encoding"
    ]


def _require_encoding(name: str) -> None:
    try:
        codecs.getincrementaldecoder(name)
        "".encode(name)
    except LookupError:
        raise InputError(
            f"--encoding {name}: give one such as utf-8, utf-16, latin-1 or cp1252"
        ) from None


def _undecodable(path: Path, encoding: str) -> int | None:
    """The first line that is not text in an encoding."""
    decoder, line = codecs.getincrementaldecoder(encoding)(), 1
    with open_regular(path) as file:
        while True:
            piece = file.read(PIECE_BYTES)
            try:
                text = decoder.decode(piece, final=not piece)
            except UnicodeError as error:
                good = getattr(error, "start", 0)
                # What the decoder held back belongs to the same line.
                return line + piece[:good].count(b"\n")
            if "\0" in text:
                return line + text[: text.index("\0")].count("\n")
            if not piece:
                return None
            line += text.count("\n")


def _holds(path: Path, pattern: re.Pattern[bytes]) -> bool:
    with open_regular(path) as file:
        while piece := file.read(PIECE_BYTES):
            if pattern.search(piece):
                return True
    return False


@contextmanager
def _opened(path: Path, encoding: str) -> Iterator[TextIO]:
    with (
        open_regular(path) as file,
        io.TextIOWrapper(file, encoding=encoding, newline="") as text,
    ):
        yield text


def _separator_name(separator: str) -> str:
    names = {value: name for name, value in NAMED_SEPARATORS.items()}
    return {"tab": "tabs", "semicolon": "semicolons", "pipe": "vertical bars"}.get(
        names.get(separator, ""), repr(separator)
    )


def _lines(count: int) -> str:
    return "line is" if count == 1 else "lines are"


def _shown(text: str) -> str:
    text = printable(text.strip())
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."
