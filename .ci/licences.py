"""Print which distributions the package's extras bring, and under which licences, as Markdown."""

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

PACKAGE = "torch-specgd"
EXTRAS = ("", "data", "demo", "checkpoints", "integrations", "ray", "test")


def licence(found: Distribution) -> str:
    """Return the licence in as few words as the distribution gives."""
    about = found.metadata
    if about["License-Expression"]:
        return about["License-Expression"]
    classified = [c.split(" :: ")[-1] for c in about.get_all("Classifier", []) if "License ::" in c]
    if classified:
        return ", ".join(classified)
    lines = (about["License"] or "not stated").strip().splitlines()
    return lines[0][:80]


def name_of(text: str) -> str:
    """Return a distribution's name as indexes write it."""
    return re.sub(r"[-_.]+", "-", text).lower()


def brought(name: str, extra: str, seen: dict[tuple[str, str], Distribution]) -> None:
    """Collect into `seen` what is installed for one requirement and its own requirements."""
    if (name, extra) in seen:
        return
    try:
        seen[name, extra] = found = distribution(name)
    except PackageNotFoundError:
        return
    for text in found.requires or []:
        need = Requirement(text)
        if need.marker is None or need.marker.evaluate({"extra": extra}):
            for chosen in ("", *sorted(need.extras)):
                brought(name_of(need.name), chosen, seen)


def main() -> None:
    """Print one table: name, version, licence, and the first extra that brings it."""
    rows: dict[str, str] = {}
    for extra in EXTRAS:
        seen: dict[tuple[str, str], Distribution] = {}
        brought(PACKAGE, extra, seen)
        for (name, _), found in sorted(seen.items()):
            by = f"`[{extra}]`" if extra else "always"
            rows.setdefault(name, f"| {name} | {found.version} | {licence(found)} | {by} |")
    rows.pop(PACKAGE)
    print("# Licences\n")
    print("torch-specgd is under the MIT license. This is what its")
    print("extras brought when this page was made, as each distribution states its own licence.")
    print("Made by `python .ci/licences.py > docs/licences.md`; versions differ from machine to")
    print("machine, and a GPU build of torch brings NVIDIA's or AMD's libraries under their own.\n")
    print("| distribution | version | licence | brought by |\n|---|---|---|---|")
    print("\n".join(rows[name] for name in sorted(rows)))


if __name__ == "__main__":
    main()
