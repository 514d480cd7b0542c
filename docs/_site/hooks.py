"""What MkDocs calls while it builds the site: pages made from the code, and links out of docs/."""

import re
import shutil
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import api_pages
import tutorial_pages

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / "build" / "packages"
# Pages that lie at the root of the checkout, where hosts and people look for them.
ROOT_PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
TABLE_END = re.compile(r"^( *\|.*\|) *\n(?= *[^|\s])", re.MULTILINE)
CODE = re.compile(r"`[^`]+`")
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)")
# The search finds guides and names, not source files.
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".sh": "bash"}


@event_priority(100)  # Before mkdocstrings, which drops a search path that does not exist yet.
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lay the packages out under their installed names, as mkdocstrings reads them."""
    shutil.rmtree(PACKAGES, ignore_errors=True)
    for part in ("torch_specgd", "data_prune", "warmstart", "specgd_common"):
        shutil.copytree(ROOT / part, PACKAGES / part)
    shutil.copytree(ROOT / "triton_kernels", PACKAGES / "torch_specgd" / "triton_kernels")
    for path in PACKAGES.rglob("*.py"):
        path.write_text(api_pages.as_markdown(path.read_text()))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages; point links to files of the checkout at pages of the site."""
    pages = {**api_pages.pages(ROOT), **api_pages.command_lines()}
    for path in sorted((ROOT / "docs" / "tutorials").glob("*.py")):
        cells = tutorial_pages.cells(path.read_text())
        pages[f"tutorials/{path.stem}.md"] = tutorial_pages.page(path.stem, cells)
        notebook = tutorial_pages.notebook(cells)
        files.append(File.generated(config, f"tutorials/{path.stem}.ipynb", content=notebook))
    linked: set[str] = set()
    for source, uri in ROOT_PAGES.items():
        pages[uri] = relinked((ROOT / source).read_text(), source, uri, linked)
    for file in files.documentation_pages():
        source = f"docs/{file.src_uri}"
        file.content_string = relinked(file.content_string, source, file.src_uri, linked)
    pages |= {uri_of(target): as_page(target) for target in linked}
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Keep the network out of every page."""
    return without_network(output, page.file.dest_uri)


def on_post_template(output: str, template_name: str, config: MkDocsConfig) -> str:
    """Keep the network out of the page for addresses that do not exist."""
    return without_network(output, template_name)


def without_network(output: str, uri: str) -> str:
    """Take the theme's one foreign script from the site itself; refuse any other."""
    shim = relpath("_site/iframe-worker.js", PurePosixPath(uri).parent)
    output = output.replace("https://unpkg.com/iframe-worker/shim", shim)
    foreign = re.search(r'(?:src|rel="stylesheet" href)="https?://[^"]*"', output)
    if foreign:
        raise PluginError(f"{uri} would load {foreign[0]} from a network")
    return output


def uri_of(target: str) -> str:
    """Return the page or file of the site on which a path of the checkout is found."""
    if target in ROOT_PAGES:
        return ROOT_PAGES[target]
    if target.startswith("docs/tutorials/"):
        return target[5:].replace(".py", ".md")
    return target[5:] if target.startswith("docs/") else f"files/{target}.md"


def relinked(text: str, source: str, uri: str, linked: set[str]) -> str:
    """Return `text` with its links rewritten, and note in `linked` which files need a page."""

    def replace(match: re.Match[str]) -> str:
        target = normpath(PurePosixPath(source).parent / match[1])
        if not (ROOT / target).exists():
            return match[0]  # MkDocs names the page and the dead link
        if uri_of(target).startswith("files/"):
            linked.add(target)
        return relpath(uri_of(target), PurePosixPath(uri).parent)

    return LINK.sub(replace, as_python_markdown(text))


def as_python_markdown(text: str) -> str:
    """Return `text` with tables as Python-Markdown reads them.

    It takes a line that follows a table for one more row, and shows the backslash of a bar in code.
    """
    lines = TABLE_END.sub(r"\1\n\n", text).split("\n")
    for number, line in enumerate(lines):
        if line.lstrip().startswith("|"):
            lines[number] = CODE.sub(lambda code: code[0].replace("\\|", "|"), line)
    return "\n".join(lines)


def as_page(target: str) -> str:
    """Return a page that shows one file, or what lies in one folder."""
    path = ROOT / target
    if path.is_dir():
        names = sorted(p.name for p in path.iterdir() if not p.name.startswith((".", "__")))
        return f"{UNSEARCHED}# {target}/\n\n" + "\n".join(f"- `{name}`" for name in names) + "\n"
    language = LANGUAGES.get(path.suffix, "text")
    code = f"~~~~{language}\n{path.read_text()}\n~~~~\n"
    return f"{UNSEARCHED}# {path.name}\n\n`{target}`\n\n{code}"
