"""A report as one HTML file, with text, tables and pictures inside it."""

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --faint: #5f6368; --line: #dadce0; --paper: #fff; --mark: #eef4ff }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --faint: #9aa0a6; --line: #3c4043; --paper: #16181b; --mark: #22304a }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 92rem; margin: 2.5rem auto; padding: 0 1.25rem }
h1 { font-size: 1.9rem; margin-bottom: .2rem } h2 { margin-top: 2.6rem; font-size: 1.3rem }
p { max-width: 46rem } .faint { color: var(--faint); font-size: .92rem }
figure { margin: 1rem 0 } img { max-width: 100%; height: auto; border-radius: 6px; background: #fff }
div.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .86rem }
th, td { padding: .35rem .55rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: bottom }
td { white-space: nowrap } tr.mark { background: var(--mark) }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: inherit }
tr { background: var(--paper) }
pre { background: var(--mark); padding: .8rem 1rem; border-radius: 6px; font-size: .9rem;
      white-space: pre-wrap; overflow-wrap: anywhere }
"""


def page(title: str, blocks: Sequence[str]) -> str:
    """The whole HTML document."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n" + "\n".join(blocks) + "\n</body>\n</html>\n"
    )


def heading(text: str) -> str:
    """A section's title."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str, faint: bool = False) -> str:
    """Running text."""
    return f"<p{' class=faint' if faint else ''}>{html.escape(text)}</p>"


def preformatted(text: str) -> str:
    """Commands to copy."""
    return f"<pre>{html.escape(text)}</pre>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[int] = ()) -> str:
    """A table with these column titles. The rows with the numbers in `marked` are highlighted."""
    head = "".join(f"<th>{html.escape(column).replace(' %', '&nbsp;%')}</th>" for column in columns)
    lines = []
    for number, row in enumerate(rows):
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        lines.append(f"<tr{' class=mark' if number in marked else ''}>{cells}</tr>")
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n' + "\n".join(lines) + "\n</table></div>"


def figure(image: Image.Image, alt: str) -> str:
    """The picture, inside the document."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(alt, quote=True)}"></figure>'


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table as Markdown, with padded columns, so that it is readable as plain text."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    lines = [[cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
             for row in [columns, *rows]]  # fmt: skip
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])
