"""report.html in a real browser: it loads alone, its tables sort, its pictures are there."""

import re

import pytest

from tests.unit import browser
from tests.unit.test_report import put, rounds_to, run
from tests.unit.test_report_layers import layered

COLUMN = "[...{table}.tBodies[0].rows].map((row) => row.cells[{at}].innerText)"


def written(tmp_path, capsys):
    """The page of eleven runs whose numbers sort otherwise than their texts do."""
    for i, target in enumerate((0.5, 0.8, 0.9, 0.95, 0.99, 0.999)):
        put(tmp_path, f"imp-{i}", rounds_to(target, 0.95 - 0.15 * i))
        put(tmp_path, f"lth-{i}", rounds_to(target, 0.2 - 0.03 * i), method="lth", seed=i % 2)
    layered(tmp_path, "layers", [[100, 400], [60, 200], [20, 30]], method="one_shot")
    code, _, err = run(capsys, tmp_path, "--html", "--pareto", "--layers", "sparsity", "--baseline", "imp")
    assert (code, err) == (0, "")
    return tmp_path / "report.html"


def test_the_page_names_no_other_file_and_no_address(tmp_path, capsys):
    text = written(tmp_path, capsys).read_text()
    assert set(re.findall(r'(?:src|href)="([a-z]+:)', text)) == {"data:"}
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)


@pytest.mark.parametrize(("figure", "kind"), [("pdf,svg", "svg+xml"), ("svg,png", "png")])
def test_the_page_holds_pictures_of_one_kind(tmp_path, capsys, figure, kind):
    put(tmp_path, "imp", rounds_to(0.9, 0.8))
    run(capsys, tmp_path, "--html", "--figure", figure)
    found = re.findall(r'src="data:image/([a-z+]+);', (tmp_path / "report.html").read_text())
    assert found == [kind]


@pytest.mark.slow
@pytest.mark.skipif(browser.PROGRAM is None, reason=f"no browser: none of {', '.join(browser.NAMES)}")
def test_the_page_works_in_a_browser(tmp_path, capsys):
    address = written(tmp_path, capsys).as_uri()
    with browser.Page(tmp_path / "profile") as page:
        page.open(address)
        assert page.requests == [address]
        assert page.run("[...document.images].map((i) => i.complete && i.naturalWidth > 100)") == [True] * 2
        tables = page.run("document.querySelectorAll('table').length")
        assert tables == 3
        for number in range(tables):
            sorts(page, number)
        assert page.requests == [address]
        assert page.complaints == []
        assert page.run("document.documentElement.scrollWidth <= innerWidth")


def sorts(page, number):
    """Click every head of a table twice: rows go up, then down; what has no number is last, or first."""
    table = f"document.querySelectorAll('table')[{number}]"
    heads = page.run(f"[...{table}.tHead.rows[0].cells].map((c) => [c.innerText, c.className])")
    before = page.run(f"document.querySelectorAll('table')[{number}].tBodies[0].innerText")
    first = page.run(f"[...document.querySelectorAll('th')].indexOf({table}.tHead.rows[0].cells[0])")
    for at, (head, kind) in enumerate(heads):
        page.click("th", first + at)
        up = page.run(COLUMN.format(table=table, at=at))
        page.click("th", first + at)
        down = page.run(COLUMN.format(table=table, at=at))
        assert sorted(up) == sorted(down)
        assert is_sorted(up, kind), (head, up)
        assert is_sorted(down[::-1], kind), (head, down)
        assert page.run(f"{table}.tHead.rows[0].cells[{at}].getAttribute('aria-sort')") == "descending"
    after = page.run(f"{table}.tBodies[0].innerText")
    assert sorted(before.split("\n")) == sorted(after.split("\n"))


def is_sorted(texts, kind):
    known = [text for text in texts if text != "-"]
    if kind == "text":
        return known == sorted(known, key=str.lower)
    numbers = [number(text) for text in known]
    return texts[: len(known)] == known and numbers == sorted(numbers)


def number(text):
    """The number of a cell: "50.6k", "10.0x", "<.001", "[-0.3, 0.1]"."""
    found = re.search(r"[-+]?\d*\.?\d+", text)
    unit = re.search(r"\d([kMGTP])", text)
    value = float(found.group()) * 1000 ** (1 + "kMGTP".index(unit[1]) if unit else 0)
    return value - 1e-6 * text.startswith("<")


def test_the_number_of_a_cell_is_read_as_it_is_shown():
    assert [number(text) for text in ("50.6k", "10.0x", "-0.42", "[-0.3, 0.1]", "+1")] == [
        *(50600, 10, -0.42, -0.3, 1)
    ]
