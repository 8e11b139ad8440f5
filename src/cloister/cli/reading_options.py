"""Options that say how tables are read."""

from dataclasses import dataclass, replace
from typing import Annotated

import typer

from cloister.data.table_options import TableOptions

TABLES = "Reading tables (.csv)"

Label = Annotated[
    str,
    typer.Option("--label", metavar="COLUMN", help="Column of the class.", rich_help_panel=TABLES),
]
Without = Annotated[
    str | None,
    typer.Option(
        "--without", metavar="A,B,...", help="Columns that are left out.", rich_help_panel=TABLES
    ),
]
Categories = Annotated[
    str | None,
    typer.Option(
        "--categories",
        metavar="A,B,...",
        help="Columns of numbers that stand for categories.",
        rich_help_panel=TABLES,
    ),
]
Fill = Annotated[
    str | None,
    typer.Option(
        "--fill",
        metavar="RULE",
        help="Fill missing cells: median, mean, VALUE or COLUMN=VALUE,...",
        rich_help_panel=TABLES,
    ),
]
Drop = Annotated[
    bool, typer.Option("--drop", help="Leave out rows with missing cells.", rich_help_panel=TABLES)
]
Missing = Annotated[
    str | None,
    typer.Option(
        "--missing",
        metavar="A,B,...",
        help="More texts that mean a missing cell, as -999.",
        rich_help_panel=TABLES,
    ),
]
Separator = Annotated[
    str | None,
    typer.Option(
        "--separator",
        metavar="CHARACTER",
        help="Between cells, or tab. Default: found.",
        rich_help_panel=TABLES,
    ),
]
Decimal = Annotated[
    str | None,
    typer.Option(
        "--decimal", metavar=".|,", help="Mark of numbers. Default: found.", rich_help_panel=TABLES
    ),
]
Thousands = Annotated[
    str | None,
    typer.Option(
        "--thousands",
        metavar=".|,|'|space",
        help="Groups the digits of numbers.",
        rich_help_panel=TABLES,
    ),
]
DateFormat = Annotated[
    str | None,
    typer.Option(
        "--date-format",
        metavar="FORMAT",
        help="Of dates, as %d/%m/%Y. Default: found.",
        rich_help_panel=TABLES,
    ),
]
TextEncoding = Annotated[
    str | None,
    typer.Option(
        "--encoding", help="Of the text, as latin-1. Default: found.", rich_help_panel=TABLES
    ),
]


@dataclass(frozen=True)
class CellOptions:
    """How the text and the cells of tables are written."""

    missing: Missing = None
    separator: Separator = None
    decimal: Decimal = None
    thousands: Thousands = None
    date_format: DateFormat = None
    encoding: TextEncoding = None

    def table(self) -> TableOptions:
        """The options' texts as values."""
        return TableOptions(
            separator=self.separator,
            encoding=self.encoding,
            decimal=self.decimal,
            thousands=" " if self.thousands == "space" else self.thousands or "",
            date_format=self.date_format,
            missing=names(self.missing),
        )


@dataclass(frozen=True)
class ReadingOptions(CellOptions):
    """How tables become samples."""

    label: Label = "label"
    without: Without = None
    categories: Categories = None
    fill: Fill = None
    drop: Drop = False

    def table(self) -> TableOptions:
        """The options' texts as values."""
        return replace(
            super().table(),
            label=names(self.label),
            without=names(self.without),
            categories=names(self.categories),
            fill=self.fill,
            drop=self.drop,
        )


def names(text: str | None) -> tuple[str, ...]:
    """The names of a list with commas."""
    return tuple(name.strip() for name in text.split(",")) if text else ()
