"""What is handed out: the sdist holds all that builds and tests the package, the wheel the package alone.

`make test` installs the wheel that it built from the sdist: that this can be done is shown by every other test.
"""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path, PurePosixPath

import pytest

import gaia_fast

ROOT = Path(__file__).parents[1]

# Of use in a git checkout alone.
NOT_IN_THE_SDIST = (".ci/", ".gitignore", ".pre-commit-config.yaml")
MADE = r"PKG-INFO|setup\.cfg|gaia_fast\.egg-info/.*"


def checked_out() -> set[str]:
    """The files of the checkout, those that are new among them, but none that git ignores."""
    try:
        found = [
            subprocess.run(["git", "ls-files", "-z", *of], capture_output=True, text=True, check=True, cwd=ROOT).stdout
            for of in (("--cached", "--others", "--exclude-standard"), ("--deleted",))
        ]
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this is no git checkout, so nothing says which files belong to it ({error})")
    there, deleted = (set(each.split("\0")) - {""} for each in found)
    return there - deleted


def test_the_sdist_holds_what_belongs_in_it_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("scikit_build_core", reason="scikit-build-core, which builds the sdist, is not installed")
    files = checked_out()
    tree = tmp_path / "tree"
    for name in files:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    for junk in ("gaia_fast/_kernels.cpython-311.so", "tests/__pycache__/cases.cpython-311.pyc", "build/lib/left.py"):
        (tree / junk).parent.mkdir(parents=True, exist_ok=True)
        (tree / junk).write_text("")
    build = "from scikit_build_core.setuptools.build_meta import build_sdist as build; build('dist')"
    built = subprocess.run([sys.executable, "-c", build], capture_output=True, text=True, timeout=120, cwd=tree)
    assert built.returncode == 0, built.stderr
    (sdist,) = (tree / "dist").iterdir()
    top = f"gaia_fast-{gaia_fast.__version__}"
    assert sdist.name == f"{top}.tar.gz"
    with tarfile.open(sdist) as archive:
        held = {str(PurePosixPath(each.name).relative_to(top)) for each in archive if each.isfile()}
    assert {name for name in held if not re.fullmatch(MADE, name)} == {
        name for name in files if not name.startswith(NOT_IN_THE_SDIST)
    }


def test_the_wheel_holds_the_package_and_nothing_else() -> None:
    try:
        installed = importlib.metadata.distribution("gaia-fast")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed here, only importable")
    if Path(str(installed.locate_file("gaia_fast"))) != Path(gaia_fast.__file__).parent:
        pytest.skip("what is tested here is not what is installed")
    held = {str(each) for each in installed.files or () if "__pycache__" not in each.parts}
    package = {
        str(path.relative_to(ROOT).as_posix())
        for path in (ROOT / "gaia_fast").rglob("*")
        if path.suffix in (".py", ".pyi", ".typed", ".safetensors", ".html", ".css", ".js")
    } | {"gaia_fast/py.typed"}
    about = {name for name in held if name.startswith(f"gaia_fast-{installed.version}.dist-info/")}
    command = {name for name in held if re.fullmatch(r"(\.\./)+bin/gaia-fast", name)}
    extension = {name for name in held if re.fullmatch(r"gaia_fast/_kernels\.[^/]+\.so", name)}
    assert held - about - command - extension == package
    assert len(extension) == len(command) == 1
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= {name.partition("/")[2] for name in about}


def test_the_version_is_that_of_the_package() -> None:
    try:
        installed = importlib.metadata.distribution("gaia-fast")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed here, only importable")
    assert installed.version == gaia_fast.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## (\S+)", changelog, re.MULTILINE)[1] == gaia_fast.__version__  # type: ignore[index]


def test_the_version_is_written_in_one_place() -> None:
    written = re.compile(rf"(?<![\d.]){re.escape(gaia_fast.__version__)}(?![\d.])")
    places = {
        str(path.relative_to(ROOT))
        for pattern in ("*.toml", "*.py", "CMakeLists.txt", "gaia_fast/**/*.py", "examples/**/*.txt", "cmake/*")
        for path in ROOT.glob(pattern)
        if re.search(rf"version.{{0,20}}{written.pattern}", path.read_text(), re.IGNORECASE)
    }
    assert places == {"gaia_fast/_version.py"}
