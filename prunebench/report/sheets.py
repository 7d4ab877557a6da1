"""Tables for documents: Markdown, LaTeX, and one HTML page that needs nothing else."""

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunebench.report.table import Column, cells, filled, lookup, markdown, spans

PRINTED = 6  # highest rank of a column that a LaTeX table has
ESCAPED = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Sheet:
    """A table of a document.

    Attributes:
      title: its heading, or caption.
      columns, rows: as in `table.table`.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Mapping]


def markdown_lines(sheets: Iterable[Sheet]) -> list[str]:
    """The tables as Markdown, with every filled column."""
    lines = []
    for sheet in sheets:
        lines += [f"**{sheet.title}**", "", *markdown(sheet.columns, sheet.rows), ""]
    return lines


def latex_lines(sheets: Iterable[Sheet], notes: Sequence[str]) -> list[str]:
    """The tables as LaTeX with booktabs, without columns of little importance; notes are comments."""
    lines = [r"% needs \usepackage{booktabs}", *(f"% {note}" for note in notes)]
    for sheet in sheets:
        shown = filled([c for c in sheet.columns if c.rank <= PRINTED], sheet.rows)
        content = [cells(c, sheet.rows) for c in shown]
        lines += ["", r"\begin{table}", r"\centering", rf"\caption{{{escaped(sheet.title)}}}"]
        lines += [rf"\begin{{tabular}}{{{''.join('l' if c.text else 'r' for c in shown)}}}", r"\toprule"]
        heads = _group_heads(shown)
        lines += [*heads, " & ".join(escaped(c.header) for c in shown) + r" \\", r"\midrule"]
        for i in range(len(sheet.rows)):
            texts = [escaped(t[i]) if c.text else _number(t[i]) for c, t in zip(shown, content)]
            lines.append(" & ".join(texts) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return lines


def escaped(text: str) -> str:
    """Text for LaTeX."""
    return "".join(ESCAPED.get(character, character) for character in text).replace("+-", r"$\pm$")


Section = tuple[Sequence[Sheet], Sequence[Path]]
"""What a page shows of one part of a report: tables, and the pictures that belong to them."""

INLINE = {".png": "image/png", ".svg": "image/svg+xml"}  # kinds of pictures that a page can hold


def page(title: str, sections: Iterable[Section], notes: Sequence[str]) -> str:
    """An HTML page: tables that are sorted by a click on a header, pictures inside, no network."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for sheets, pictures in sections:
        parts += [*map(_html_table, sheets), *map(_html_picture, pictures)]
    parts.append("<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in notes) + "</ul>")
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n"
        f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n<script>{SCRIPT}</script>\n</body></html>\n"
    )


def _group_heads(columns: Sequence[Column]) -> list[str]:
    """The line of group words above the headers, with rules below it; none where no column has a group."""
    if not any(c.group for c in columns):
        return []
    words, rules = [], []
    for start, stop in spans(columns):
        word = escaped(columns[start].group)
        words.append(rf"\multicolumn{{{stop - start}}}{{c}}{{{word}}}" if word else "")
        rules += [rf"\cmidrule(lr){{{start + 1}-{stop}}}"] if word else []
    return [" & ".join(words) + r" \\", " ".join(rules)]


def _number(text: str) -> str:
    """A number as LaTeX has it, with a minus that is no hyphen."""
    return re.sub(r"(?<![\w.$])-(?=[\d.])", "$-$", escaped(text)) if text != "-" else "--"


def _html_table(sheet: Sheet) -> str:
    shown = filled(sheet.columns, sheet.rows)
    content = [cells(c, sheet.rows) for c in shown]
    heads = "".join(
        f'<th class="{"text" if c.text else "number"}" tabindex="0" aria-sort="none">'
        f"{html.escape(f'{c.group} {c.header}'.strip())}</th>"
        for c in shown
    )
    lines = []
    for i, row in enumerate(sheet.rows):
        data = "".join(
            f'<td class="{"text" if c.text else "number"}" data-value="{_sorted_by(c, row, column[i])}">'
            f"{html.escape(column[i])}</td>"
            for c, column in zip(shown, content)
        )
        lines.append(f"<tr>{data}</tr>")
    return (
        f'<div class="wide"><table><caption>{html.escape(sheet.title)}</caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody></table></div>"
    )


def _sorted_by(column: Column, row: Mapping, text: str) -> str:
    """What a cell is sorted by: its number, or its text."""
    value = lookup(row, column.key)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return repr(value)
    found = None if column.text else NUMBER.search(text)
    return found.group() if found else html.escape("" if text == "-" else text)


def _html_picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(path.stem)
    image = f'<img alt="{name}" src="data:{INLINE[path.suffix]};base64,{data}">'
    return f"<figure>{image}<figcaption>{name}</figcaption></figure>"


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
h1 { font-size: 1.3rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1.2rem 0; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
th, td { padding: .25rem .6rem; white-space: nowrap; border-bottom: 1px solid #ddd; }
th { cursor: pointer; border-bottom: 2px solid #555; }
th[aria-sort=ascending]::after { content: " \\2191"; }
th[aria-sort=descending]::after { content: " \\2193"; }
.text { text-align: left; }
td.text { white-space: normal; min-width: 10rem; max-width: 24rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
tbody tr:hover td { background: #f2f6fa; }
img { max-width: 100%; }
figure { margin: 1.5rem 0; }
figcaption { color: #555; }
"""
SCRIPT = """
function order(a, b) {
  const x = parseFloat(a), y = parseFloat(b);
  if (a === "" || b === "") return (a === "") - (b === "");
  return isNaN(x) || isNaN(y) ? a.localeCompare(b) : x - y;
}
document.querySelectorAll("th").forEach((head) => {
  const sort = () => {
    const body = head.closest("table").tBodies[0];
    const at = [...head.parentNode.children].indexOf(head);
    const up = head.getAttribute("aria-sort") !== "ascending";
    head.parentNode.querySelectorAll("th").forEach((other) => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    [...body.rows]
      .sort((r, s) => (up ? 1 : -1) * order(r.cells[at].dataset.value, s.cells[at].dataset.value))
      .forEach((row) => body.append(row));
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
});
"""
