"""Tables for notebooks: the HTML of plans, reports, claims and data sets."""

import html
from collections.abc import Iterable, Sequence


def html_table(title: str, rows: Iterable[Sequence[object]], *, header: Sequence[str] = ()) -> str:
    """A table with a title; every cell is text, whatever it holds."""
    head = f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in header)}</tr>" * bool(header)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table><caption>{html.escape(title)}</caption>{head}{body}</table>"
