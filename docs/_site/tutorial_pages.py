"""Tutorials: Python files with `# %%` cells become notebooks, and pages with their output."""

import contextlib
import io
import json
from typing import NamedTuple


class Cell(NamedTuple):
    """One cell of a notebook."""

    kind: str  # "markdown" or "code"
    text: str


def cells(source: str) -> list[Cell]:
    """Return the cells of a file in the percent format, which Jupytext and editors read too."""
    found = []
    for block in source.split("# %%")[1:]:
        head, _, body = block.partition("\n")
        if "[markdown]" in head:
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.strip().split("\n")]
            found.append(Cell("markdown", "\n".join(lines)))
        else:
            found.append(Cell("code", body.strip()))
    return found


def outputs(parts: list[Cell], name: str) -> list[str]:
    """Run the code cells in one namespace; return what each prints, "" for text cells."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed = []
    for number, cell in enumerate(parts):
        stream = io.StringIO()
        if cell.kind == "code":
            with contextlib.redirect_stdout(stream):
                exec(compile(cell.text, f"{name}, cell {number}", "exec"), namespace)
        printed.append(stream.getvalue())
    return printed


def page(name: str, parts: list[Cell]) -> str:
    """Return the tutorial as a page, each cell with what it printed."""
    blocks = []
    for cell, printed in zip(parts, outputs(parts, name), strict=True):
        blocks.append(cell.text if cell.kind == "markdown" else f"~~~~python\n{cell.text}\n~~~~")
        if printed:
            blocks.append(f"~~~~{{.text .output}}\n{printed.rstrip()}\n~~~~")
    blocks.insert(1, f"[Download as a notebook]({name}.ipynb)")
    return "\n\n".join(blocks)


def notebook(parts: list[Cell]) -> str:
    """Return the tutorial as a notebook without outputs."""
    made = []
    for number, cell in enumerate(parts):
        entry = {"cell_type": cell.kind, "id": f"cell-{number}", "metadata": {}}
        if cell.kind == "code":
            entry |= {"execution_count": None, "outputs": []}
        made.append({**entry, "source": cell.text.splitlines(keepends=True)})
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return json.dumps({"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})
