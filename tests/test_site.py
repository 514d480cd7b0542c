"""The site: every public name and every page is on it, and its tutorials run."""

import importlib
import re
from pathlib import Path

import pytest

import api_pages
import tutorial_pages

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
PAGES = api_pages.pages(ROOT)


@pytest.mark.parametrize("page", api_pages.PARTS)
def test_every_public_name_is_on_a_page(page: str) -> None:
    """The reference shows what a part exports, the object itself, and nothing else."""
    package = importlib.import_module(api_pages.PARTS[page][0])
    text = PAGES[f"reference/{page}.md"]
    shown = re.findall(r'^::: (\S+)\n    options:\n      heading: "(\w+)"', text, re.MULTILINE)
    shown += [(path, path.split(".")[-1]) for path in re.findall(r"engine's: \[(\S+)\]", text)]
    assert sorted(name for _, name in shown) == sorted(package.__all__)
    for path, name in shown:
        module, attribute = path.rsplit(".", 1)
        assert getattr(importlib.import_module(module), attribute) is getattr(package, name)


def test_every_page_is_in_the_navigation() -> None:
    """A page that nobody links to is lost: add it to `nav` in mkdocs.yml."""
    nav = set(re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    written = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    made = {f"tutorials/{path.stem}.md" for path in TUTORIALS} | set(PAGES)
    assert (written | made) - nav == set()


def test_maths_and_names_of_docstrings_become_markdown() -> None:
    """Equations are the point of a reference: none may show as raw markup."""
    source = "See :class:`Muon`.\n\n    .. math:: a +\n        b\n\n    With :math:`c`.\n"
    shown = api_pages.as_markdown(source)
    assert "See `Muon`." in shown
    assert "$$ a +\n        b $$" in shown
    assert "With $c$." in shown


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials_run(path: Path) -> None:
    """Every cell runs in order, and whatever prints has printed."""
    cells = tutorial_pages.cells(path.read_text())
    printed = tutorial_pages.outputs(cells, path.stem)
    speaking = [cell.kind == "code" and "print(" in cell.text for cell in cells]
    assert [bool(text.strip()) for text in printed] == speaking
    assert cells[0].text.startswith("# ")
