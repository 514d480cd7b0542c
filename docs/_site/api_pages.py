"""Pages of the API reference: one a part, every public name, from its own docstring."""

import ast
import contextlib
import importlib
import io
import re
from pathlib import Path

PARTS = {  # page: (import path, its file in the checkout, title)
    "torch_specgd": ("torch_specgd", "torch_specgd", "Optimizers"),
    "factorization": (
        "torch_specgd.factorization",
        "torch_specgd/factorization",
        "The theory's test bed",
    ),
    "engine": ("torch_specgd.triton_kernels", "triton_kernels", "Engine"),
    "data_prune": ("data_prune", "data_prune", "Dataset pruning"),
    "warmstart": ("warmstart", "warmstart", "Warm starts"),
}
ENGINE = "torch_specgd.triton_kernels."


def as_markdown(source: str) -> str:
    """Return Python source whose docstrings mkdocstrings renders: Markdown's maths and names."""
    source = re.sub(r"\.\. math:: (.+?)\n\n", r"$$ \1 $$\n\n", source, flags=re.DOTALL)
    source = re.sub(r"::\n\n", r":\n\n", source)
    source = re.sub(r":math:`([^`]+)`", r"$\1$", source)
    source = re.sub(r":(?:class|func|meth|mod|data):`", "`", source)
    return re.sub(r"^( +)Example:$", r"\1Examples:", source, flags=re.MULTILINE)


def public_names(package: str, init: str) -> dict[str, str]:
    """Return each public name and the dotted path at which it is defined."""
    tree = ast.parse(init)
    defined = {
        alias.asname or alias.name: f"{'.' if node.level else ''}{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lists = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return {
        name: package + path if (path := defined[name]).startswith(".") else path
        for name in lists[0]
    }


def pages(root: Path) -> dict[str, str]:
    """Return the text of each page of the reference."""
    made, rows = {}, []
    for page, (package, folder, title) in PARTS.items():
        init = (root / folder / "__init__.py").read_text()
        names = public_names(package, init)
        blocks = [f"# {title}", f"`import {package}`", ast.get_docstring(ast.parse(init)) or ""]
        for name, path in names.items():
            if page != "engine" and path.startswith(ENGINE):
                blocks.append(f"## {name}\n\nThe engine's: [{ENGINE}{name}](engine.md).")
                continue
            options = {"heading": name, "toc_label": name}
            lines = "".join(f'      {key}: "{value}"\n' for key, value in options.items())
            blocks.append(f"::: {path}\n    options:\n{lines}")
        made[f"reference/{page}.md"] = "\n\n".join(blocks)
        listed = ", ".join(f"`{name}`" for name in names)
        rows.append(f"| [{title}]({page}.md) | `{package}` | {listed} |")
    made["reference/index.md"] = "\n".join(
        [
            "# API reference",
            "",
            "Every public name, from its own docstring. What is not listed here is private.",
            "",
            "| part | import | names |",
            "|---|---|---|",
            *rows,
            "",
            "`data-prune` and `warmstart` in a shell: [command lines](command_lines.md).",
        ]
    )
    return made


def command_lines() -> dict[str, str]:
    """Return one page with the help of every command."""
    blocks = ["# Command lines", "Both come with the package: no extra is needed."]
    for package in ("data_prune", "warmstart"):
        main = importlib.import_module(f"{package}.__main__").main
        text = help_text(main)
        blocks.append(f"## {package.replace('_', '-')}\n\n~~~~text\n{text}~~~~")
        commands = re.search(r"\{([a-z,]+)\}", text)
        for command in commands[1].split(",") if commands else []:
            blocks.append(f"### {package.replace('_', '-')} {command}")
            blocks.append(f"~~~~text\n{help_text(main, command)}~~~~")
    return {"reference/command_lines.md": "\n\n".join(blocks)}


def help_text(main, *command: str) -> str:  # type: ignore[no-untyped-def]
    """Return what one command prints for `--help`."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return printed.getvalue()
