"""An install leaves the Triton that came with torch alone, whichever flavour of torch that is.

torch's CPU, CUDA, ROCm and XPU builds have one name, and bring no Triton or one of several: all of
these put a folder `triton` into site-packages, under distribution names that pip takes for
different things. So pip itself, offline, installs our requirements beside each flavour.
"""

import importlib.metadata
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

# By its metadata: a search for the module makes setuptools put the standard library's distutils
# back, with which torch's own test helpers cannot be imported.
PIP = [found.name for found in importlib.metadata.distributions(name="pip")]
pytestmark = [
    pytest.mark.skipif(not PIP, reason="needs pip"),
    pytest.mark.skipif(
        (platform.system(), platform.machine()) != ("Linux", "x86_64"),
        reason="torch brings Triton on Linux alone",
    ),
]

COMMON = ("filelock", "typing-extensions>=4.10.0", "sympy>=1.13.3", "networkx>=2.5.1", "jinja2")
X86 = 'platform_system == "Linux" and platform_machine == "x86_64"'
# torch's version, what its wheel's Requires-Dist says beside COMMON, and who owns the folder. CPU
# and CUDA: METADATA of the wheels; ROCm and XPU: pytorch/pytorch#186350, which tells their old and
# new names; AMD's own index: what torch from there requires.
FLAVOURS = {
    "CPU": ("2.13.0+cpu", (), None),
    "CUDA": (
        "2.14.1",
        (
            'cuda-bindings<14,>=13.0.3; platform_system == "Linux" and python_version < "3.15"',
            'triton~=3.8.0; platform_system == "Linux" and python_version < "3.15"',
        ),
        "triton",
    ),
    "ROCm, 2.9": ("2.9.1+rocm6.4", (f"pytorch-triton-rocm==3.5.1; {X86}",), "pytorch-triton-rocm"),
    "ROCm": (
        "2.11.0+rocm7.2",
        ('triton-rocm==3.6.0; platform_system == "Linux"',),
        "triton-rocm",
    ),
    "AMD's index": ("2.11.0+rocm7.13.0", ("triton==3.6.0+rocm7.13.0",), "triton"),
    "XPU": ("2.12.0+xpu", ('triton-xpu==3.7.1; platform_system == "Linux"',), "triton-xpu"),
}


def _metadata(name: str, version: str, requires: tuple[str, ...]) -> str:
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    extras = {part.split('"')[1] for line in requires for part in line.split("extra ==")[1:]}
    lines += [f"Provides-Extra: {extra}" for extra in sorted(extras)]
    return "\n".join([*lines, *(f"Requires-Dist: {line}" for line in requires)]) + "\n"


def _install(site: Path, name: str, version: str, requires: tuple[str, ...] = ()) -> None:
    """Lay out what pip leaves of a distribution, with a folder `triton` if it owns one."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(_metadata(name, version, requires))
    (info / "INSTALLER").write_text("pip\n")
    record = [f"{info.name}/{file},," for file in ("METADATA", "INSTALLER", "RECORD")]
    if "triton" in name:
        (site / "triton").mkdir()
        (site / "triton" / "__init__.py").write_text(f"owner = '{name}'\n")
        record.append("triton/__init__.py,,")
    (info / "RECORD").write_text("\n".join(record) + "\n")


def _wheel(folder: Path, name: str, version: str, requires: tuple[str, ...], module: str) -> None:
    """Write a wheel of one module, as an index would offer it."""
    stem = f"{name.replace('-', '_')}-{version}"
    tag = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {
        f"{module}/__init__.py": f"owner = 'the index: {name}'\n",
        f"{stem}.dist-info/METADATA": _metadata(name, version, requires),
        f"{stem}.dist-info/WHEEL": tag,
    }
    record = "".join(f"{file},,\n" for file in (*files, f"{stem}.dist-info/RECORD"))
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        for file, text in (files | {f"{stem}.dist-info/RECORD": record}).items():
            archive.writestr(file, text)


def _version(requirement: Requirement) -> str:
    """Return a version that a requirement takes."""
    pins = [s.version for s in requirement.specifier if s.operator in ("==", "~=", ">=")]
    return pins[0] if pins else "1.0"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with our wheel, as the installed metadata describes it, and a newer Triton."""
    folder = tmp_path_factory.mktemp("index")
    ours = importlib.metadata.distribution("torch-specgd")
    _wheel(folder, "torch-specgd", ours.version, tuple(ours.requires or ()), "torch_specgd")
    _wheel(folder, "triton", "3.9.0", (), "triton")
    _wheel(folder, "numpy", "2.4.0", (), "numpy")
    return folder


def _environment(folder: Path, flavour: str) -> tuple[Path, Path]:
    """Return the interpreter and the site-packages of an environment with a flavour of torch."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--symlinks", folder], check=True
    )
    (site,) = folder.glob("lib/python*/site-packages")
    version, extra, _ = FLAVOURS[flavour]
    requires = (*COMMON, *extra)
    _install(site, "torch", version, requires)
    for requirement in map(Requirement, requires):
        if requirement.marker is None or requirement.marker.evaluate():
            _install(site, requirement.name, _version(requirement))
    return folder / "bin" / "python", site


def _pip(python: Path, index: Path, wanted: str) -> None:
    command = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check"]
    command += ["--python", str(python), "install", "-q", "--no-index", "--find-links", str(index)]
    done = subprocess.run([*command, wanted], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _names(site: Path) -> set[str]:
    found = importlib.metadata.distributions(path=[str(site)])
    return {one.metadata["Name"] for one in found if "triton" in one.metadata["Name"]}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_nothing_is_overwritten(flavour: str, tmp_path: Path, index: Path) -> None:
    """ROCm's and XPU's compilers would be gone, and a CPU machine download a GPU's for nothing."""
    python, site = _environment(tmp_path / "environment", flavour)
    _, _, owner = FLAVOURS[flavour]
    before = {path.name for path in site.iterdir()}
    _pip(python, index, "torch-specgd")
    assert _names(site) == ({owner} if owner else set())
    if owner:
        assert (site / "triton" / "__init__.py").read_text() == f"owner = '{owner}'\n"
    brought = {path.name.split("-")[0] for path in site.iterdir() if path.name not in before}
    assert brought == {"torch_specgd", "numpy"}


def test_a_requirement_by_name_would_overwrite(tmp_path: Path, index: Path) -> None:
    """Shows that the test above can fail, and why the extra is for machines without a GPU."""
    python, site = _environment(tmp_path / "environment", "ROCm")
    _pip(python, index, "torch-specgd[triton]")
    assert _names(site) == {"triton-rocm", "triton"}
    assert "the index" in (site / "triton" / "__init__.py").read_text()
