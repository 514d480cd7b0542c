"""Tables of numbers in the docs: a program writes them, or their command is there."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
CELLS = 4  # a table with fewer cells of decimal numbers describes, and measures nothing
COMMAND = re.compile(
    r"\b(python|bash|pytest) [\w./-]+|\b(benchmarks|experiments|tests)/\w+[\w/]*\.py"
)


def typed_tables(text: str) -> list[tuple[str, str]]:
    """(section, table) of measured numbers outside all markers; the page's lead counts to each."""
    outside = re.sub(r"<!-- (.+?): begin -->.*?<!-- \1: end -->", "", text, flags=re.DOTALL)
    lead, *sections = re.split(r"(?m)^(?=##+ )", outside)
    return [
        (lead + section, table)
        for section in (lead, *sections)
        for table in re.findall(r"(?m)(?:^\|.*\n)+", section)
        if len(re.findall(r"\| [-+]?\d*\.\d", table)) >= CELLS
    ]


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda p: str(p.relative_to(DOCS)))
def test_numbers_stand_beside_their_command(page: Path) -> None:
    """A reader could not check a typed table, and a rerun would not change it."""
    for section, table in typed_tables(page.read_text()):
        assert COMMAND.search(section), f"{page.name}: {table.splitlines()[0]}"


def test_a_typed_table_is_found() -> None:
    """The check above would pass every page if it saw no table."""
    table = "| a | b |\n|---|---|\n| 1.0 | 2.0 |\n| 3.0 | 4.0 |\n"
    assert [found for _, found in typed_tables(f"# A\n\n{table}")] == [table]
    assert not typed_tables(f"# A\n\n<!-- t: begin -->\n{table}<!-- t: end -->\n")
    assert not COMMAND.search(table)
    assert COMMAND.search("`python benchmarks/engine_cpu.py`")


def test_figures_are_there_as_svg_and_png() -> None:
    """A page shows the PNG, a talk wants the SVG; two pictures of screens are PNG alone."""
    png, svg = ({p.stem for p in (DOCS / "figures").glob(f"*.{kind}")} for kind in ("png", "svg"))
    assert png - svg == {"prune_report", "quickstart"}
    assert not svg - png
