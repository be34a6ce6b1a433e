import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import gaia_fast
from gaia_fast import backends, versions
from gaia_fast.cli import main
from gaia_fast.extras import EXTRAS
from gaia_fast.options import Runtime

HERE = Path(gaia_fast.__file__).parents[1]


def test_the_first_line_is_the_version_alone_and_the_same_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    gaia_fast.show_versions()
    printed = capsys.readouterr().out
    assert printed.splitlines()[:2] == [f"gaia-fast {gaia_fast.__version__}", ""]
    assert CliRunner().invoke(main, ["--version"]).output == printed


def test_every_backend_runtime_and_optional_package_is_told() -> None:
    found = versions.versions()
    assert tuple(found["backends"]) == backends.BACKENDS
    assert tuple(found["runtimes"]) == Runtime.values()
    optional = {name.replace("_", "-") for names in EXTRAS.values() for name in names}
    assert optional <= found["packages"].keys()
    assert found["packages"]["torch"] == torch.__version__
    assert all(text for section in found.values() for text in section.values())
    assert "not to be found out" not in str(found)
    for name, each in backends.available().items():
        assert found["backends"][name].startswith("no: ") is not each.available
        assert each.reason in found["backends"][name]


def test_the_levels_in_use_that_run_and_that_were_built() -> None:
    if backends.kernels is None:
        pytest.skip(backends.available()["cpu"].reason)
    built = backends.kernels.built_cpu_levels()
    assert built == [level for level in ("v4", "v3", "baseline") if level in built]
    assert [level for level in built if level in backends.kernels.cpu_levels()] == backends.kernels.cpu_levels()
    before = backends.kernels.cpu_level()
    backends.kernels.set_cpu_level("baseline")
    try:
        text = versions.versions()["kernels"]["C++"]
    finally:
        backends.kernels.set_cpu_level(before)
    assert text.startswith("instruction-set level baseline; ")
    assert text.endswith(f"built were {', '.join(built)}")


def test_missing_packages_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    packages = versions.versions()["packages"]
    assert packages["pyarrow"] == "no: pip install 'gaia-fast[parquet]'"
    assert packages["onnx"] == "no: pip install 'gaia-fast[onnx]' or pip install 'gaia-fast[openvino]'"


def test_broken_packages_and_an_extension_that_does_not_import_are_told(tmp_path: Path) -> None:
    for name, raised in {"onnxruntime": "OSError", "openvino": "RuntimeError", "triton": "SyntaxError"}.items():
        (tmp_path / f"{name}.py").write_text(f"raise {raised}('{name} is broken')")
        (tmp_path / f"{name}-9.dist-info").mkdir()  # without any metadata
    found = subprocess.run(
        [sys.executable, "-m", "gaia_fast", "--version"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,  # before all else on its path; where the package is may have the real ones
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), str(HERE)]),
            "GAIA_FAST_CPU_LEVEL": "v9",
        },
    )
    assert found.returncode == 0, found.stderr
    lines = {line.split()[0]: line for line in found.stdout.splitlines() if line.startswith("  ")}
    assert found.stdout.startswith(f"gaia-fast {gaia_fast.__version__}\n")
    assert "change GAIA_FAST_CPU_LEVEL" in lines["C++"]
    assert "change GAIA_FAST_CPU_LEVEL" in lines["native"]
    for name in ("onnx", "openvino"):
        if not gaia_fast.extras.missing(name):
            assert f"{EXTRAS[name][-1]} is broken" in found.stdout
