"""One self-contained HTML page about a run: no scripts, no external resources.

The page is assembled from text that is escaped here and from pictures made here. It contains no
bytes that a worker sent.
"""

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from PIL import Image

STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5c6670; --line: #d9dee3;
  --paper: #fbfbf9; --card: #ffffff; --accent: #2f6f5e; --warn: #a2402f;
  --line-1: #1f6fb4; --line-2: #c8501e; --line-3: #2f8f5e; --line-4: #8a4fb0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --soft: #98a2ac; --line: #333a41;
  --paper: #16191c; --card: #1d2125; --accent: #7cc4ac; --warn: #e58d7b;
  --line-1: #6fb3ee; --line-2: #f0955f; --line-3: #6fcf97; --line-4: #c79be6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 62rem; color: var(--ink);
  background: var(--paper); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.75rem; margin: 0 0 .25rem; letter-spacing: -.01em; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; color: var(--accent); }
p { max-width: 46rem; margin: .5rem 0; }
.soft { color: var(--soft); }
.warn { border-left: 3px solid var(--warn); padding: .5rem .9rem; background: var(--card);
  font-family: ui-monospace, monospace; font-size: .85rem; }
.good, .bad, .caution { border-left: 3px solid var(--accent); padding: .5rem .9rem;
  background: var(--card); }
.bad { border-color: var(--warn); }
.caution { border-color: var(--line-2); }
h3 { font-size: .95rem; margin: 1.25rem 0 .25rem; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr));
  gap: .5rem 1.5rem; }
.figures figure { margin: 0; width: auto; }
.legend span { display: inline-block; margin-right: 1.25rem; }
.legend i { display: inline-block; width: 1.4rem; height: 0; border-top: 3px solid;
  vertical-align: middle; margin-right: .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; margin: .75rem 0; }
td, th { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: middle; }
th { color: var(--soft); font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.picture { padding: .3rem .5rem .3rem 0; }
img { display: block; width: 3.5rem; height: 3.5rem; image-rendering: pixelated;
  border: 1px solid var(--line); }
table.large img { width: 9rem; height: auto; min-height: 1.5rem; }
figure { display: inline-block; margin: .5rem 1.5rem .5rem 0; width: 27rem; max-width: 100%; }
figcaption { font-size: .85rem; color: var(--soft); }
svg { display: block; width: 100%; height: 7rem; background: var(--card);
  border: 1px solid var(--line); }
svg rect { fill: var(--accent); }
pre { background: var(--card); border: 1px solid var(--line); padding: .8rem 1rem;
  overflow-x: auto; font-size: .82rem; line-height: 1.5; }
"""

NUMBER = re.compile(r"-?[\d.,]+%?")


@dataclass(frozen=True)
class Section:
    """A heading and the markup below it."""

    title: str
    body: str


def page(title: str, lead: str, sections: Iterable[Section]) -> str:
    """The whole document."""
    parts = "\n".join(
        f"<section><h2>{html.escape(section.title)}</h2>\n{section.body}</section>"
        for section in sections
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{html.escape(title)}</h1>\n<p class="soft">{html.escape(lead)}</p>\n{parts}\n'
        "</body>\n</html>\n"
    )


def paragraph(text: str, *, kind: str = "") -> str:
    """A paragraph of plain text; `kind` is a class of the style sheet."""
    style = f' class="{html.escape(kind)}"' if kind else ""
    return f"<p{style}>{html.escape(text)}</p>\n"


def subtitle(text: str) -> str:
    """A heading within a section."""
    return f"<h3>{html.escape(text)}</h3>\n"


def legend(lines: Iterable[tuple[str, str, bool]]) -> str:
    """The lines of figures: text, colour and whether they are dashed."""
    shown = "".join(
        f'<span><i style="border-color:{html.escape(colour)};'
        f'border-top-style:{"dashed" if dashed else "solid"}"></i>{html.escape(text)}</span>'
        for text, colour, dashed in lines
    )
    return f'<p class="legend">{shown}</p>\n'


def preformatted(text: str) -> str:
    """Text whose line breaks count."""
    return f"<pre>{html.escape(text)}</pre>\n"


def table(
    header: Sequence[str], rows: Iterable[Sequence[str | bytes]], *, large: bool = False
) -> str:
    """A table; `bytes` cells are PNG pictures, other cells text, right-aligned when numeric.

    large   show pictures large enough to judge them

    A row's first cell describes its pictures to readers who cannot see them. A header of empty
    texts is left out.
    """
    body = list(rows)
    numeric = [_is_number(cell) for cell in body[0]] if body else [False] * len(header)
    head = ""
    if any(header):
        cells = zip(header, numeric, strict=True)
        head = f"<tr>{''.join(_cell('th', text, right=right) for text, right in cells)}</tr>\n"
    lines = "\n".join(_row(row) for row in body)
    style = ' class="large"' if large else ""
    return f'<div class="scroll"><table{style}>{head}{lines}</table></div>\n'


def histogram(counts: Int64[np.ndarray, "256"], caption: str) -> str:
    """How often each byte occurs, relative to the most frequent one."""
    top = max(int(counts.max()), 1)
    bars = "".join(
        f'<rect x="{value}" y="{100 - 100 * int(count) / top:.2f}" width="1" '
        f'height="{100 * int(count) / top:.2f}"/>'
        for value, count in enumerate(counts)
        if count
    )
    return (
        '<figure><svg viewBox="0 0 256 104" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(caption)}">{bars}</svg>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>\n"
    )


def png(picture: np.ndarray) -> bytes:
    """A uint8 image, grey (h, w) or in colour (h, w, 3), as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _is_number(content: str | bytes) -> bool:
    return isinstance(content, str) and NUMBER.fullmatch(content) is not None


def _row(row: Sequence[str | bytes]) -> str:
    label = row[0] if isinstance(row[0], str) else ""
    cells = (_cell("td", cell, right=_is_number(cell), alt=label) for cell in row)
    return f"<tr>{''.join(cells)}</tr>"


def _cell(tag: str, content: str | bytes, *, right: bool, alt: str = "") -> str:
    if isinstance(content, bytes):
        data = base64.b64encode(content).decode()
        image = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
        return f'<{tag} class="picture">{image}</{tag}>'
    style = ' class="number"' if right else ""
    return f"<{tag}{style}>{html.escape(content)}</{tag}>"
