import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import gaia_fast
from gaia_fast import backends
from gaia_fast.errors import ArgumentError, BackendError, GaiaError, MissingKernelsWarning

from cases import HALVES_AND_FLOAT, TARGETS

CPU = torch.device("cpu")
CUDA = torch.device("cuda")

# Python puts the working folder on its path: the package must be found there as this process found it.
HERE = Path(gaia_fast.__file__).parents[1]


@pytest.mark.parametrize("name", backends.BACKENDS)
def test_every_backend_is_among_the_targets(name: str) -> None:
    here = backends.available()[name]
    if not here:
        pytest.skip(f"no test of backend {name}: {here.reason}")
    assert name in {target.backend for target in TARGETS}


def test_available_names_every_backend_with_a_reason() -> None:
    here = backends.available()
    assert tuple(here) == backends.BACKENDS
    assert here["torch"]
    for name, each in here.items():
        assert bool(each) is each.available
        assert len(each.reason) > 10, name
    assert torch.__version__ in here["torch"].reason


def test_the_reason_of_cpu_names_the_level() -> None:
    for target in TARGETS:
        if target.level is not None:
            with target.active():
                assert backends.available()["cpu"].reason.endswith(f"level {target.level}")


def test_levels_are_best_first_and_baseline_is_always_there() -> None:
    if backends.kernels is None:
        pytest.skip(backends.available()["cpu"].reason)
    levels = backends.kernels.cpu_levels()
    assert levels == [level for level in ("v4", "v3", "baseline") if level in levels]
    assert levels[-1] == "baseline"


def test_an_unknown_level_is_refused_and_changes_nothing() -> None:
    if backends.kernels is None:
        pytest.skip(backends.available()["cpu"].reason)
    before = backends.kernels.cpu_level()
    with pytest.raises(ValueError, match=r"'v9' does not run here; choose from: .*baseline"):
        backends.kernels.set_cpu_level("v9")
    assert backends.kernels.cpu_level() == before


@pytest.mark.parametrize("dtype", HALVES_AND_FLOAT, ids=str)
def test_maps_on_the_cpu_get_the_kernels(dtype: torch.dtype) -> None:
    for requested in ("auto", "cpu"):
        assert backends.choose(requested, CPU, dtype).name == "cpu"
    assert backends.choose("cpu", CPU, dtype).why == "asked for"
    assert "C++" in backends.choose("auto", CPU, dtype).why


def test_torch_is_had_for_the_asking() -> None:
    for device in (CPU, CUDA):
        choice = backends.choose("torch", device, torch.float64)
        assert (choice.name, choice.why) == ("torch", "asked for")


@pytest.mark.parametrize(
    ("device", "dtype", "obstacle"),
    [
        (CPU, torch.float64, r"torch\.float64"),
        (CPU, torch.float8_e4m3fn, r"torch\.float8_e4m3fn"),
        (torch.device("meta"), torch.float32, "meta"),
        (torch.device("cuda", 1), torch.float32, "cuda:1"),
    ],
    ids=str,
)
def test_what_the_kernels_cannot_take(device: torch.device, dtype: torch.dtype, obstacle: str) -> None:
    with pytest.raises(BackendError, match=f"^backend='cpu' cannot run here: .*{obstacle}"):
        backends.choose("cpu", device, dtype)
    if device.type != "cuda":
        choice = backends.choose("auto", device, dtype)
        assert choice.name == "torch"
        assert obstacle.replace("\\", "") in choice.why


@pytest.mark.parametrize(
    ("missing", "dtype", "expected", "said"),
    [
        ([], torch.float32, "cuda", "fastest"),
        (["cuda"], torch.bfloat16, "triton", "no cuda here"),
        (["cuda", "triton"], torch.float16, "torch", "no triton here"),
        (["triton"], torch.float64, "torch", "torch.float64"),
    ],
    ids=str,
)
def test_maps_on_a_gpu_get_the_fastest_kernels(
    missing: list[str], dtype: torch.dtype, expected: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cuda", "triton"):
        reason = f"no {name} here" if name in missing else ""
        here = backends._Kernels(partial(str, reason), str, lambda: "cuda")
        monkeypatch.setitem(backends._COMPILED, name, here)
    choice = backends.choose("auto", CUDA, dtype)
    assert choice.name == expected
    assert said in choice.why


def test_a_device_that_no_kernel_was_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    here = backends._Kernels(str, str, lambda: "cuda", lambda device: "built for sm_90" if device.index == 1 else "")
    monkeypatch.setitem(backends._COMPILED, "cuda", here)
    assert backends.choose("auto", torch.device("cuda:0"), torch.float32).name == "cuda"
    with pytest.raises(BackendError, match="built for sm_90"):
        backends.choose("cuda", torch.device("cuda:1"), torch.float32)


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_forcing_what_is_not_there(name: str) -> None:
    here = backends.available()[name]
    if here:
        pytest.skip(f"backend {name} runs here: {here.reason}")
    with pytest.raises(BackendError) as caught:
        backends.choose(name, CUDA, torch.float32)
    assert str(caught.value) == f"backend={name!r} cannot run here: {here.reason}"


@pytest.mark.parametrize("name", ["CPU", "c++", "Auto", " cpu", "numpy"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ArgumentError, match=r"does not exist; choose from .*'auto'.*'torch'.*'cpu'") as caught:
        backends.choose(name, CPU, torch.float32)
    assert isinstance(caught.value, GaiaError)
    assert isinstance(caught.value, ValueError)


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "kernels", None)
    monkeypatch.setattr(backends, "_kernels_missing", "the file is gone")
    assert backends.available()["cpu"] == backends.Availability(False, "the file is gone")
    with pytest.raises(BackendError, match="'cpu' cannot run here: the file is gone"):
        backends.choose("cpu", CPU, torch.float32)
    with pytest.warns(MissingKernelsWarning, match="the file is gone"):
        choice = backends.choose("auto", CPU, torch.float32)
    assert choice.name == "torch"
    assert "the file is gone" in choice.why


REPORT = """
import torch
from gaia_fast import backends
here = backends.available()["cpu"]
print(bool(here), here.reason)
print(backends.choose("auto", torch.device("cpu"), torch.float32).name)
backends.choose("cpu", torch.device("cpu"), torch.float32)
print("forced")
"""


def report(level: str) -> subprocess.CompletedProcess[str]:
    """Returns what a fresh process says of its backends with GAIA_FAST_CPU_LEVEL set to `level`."""
    environment = {**os.environ, "GAIA_FAST_CPU_LEVEL": level}
    return subprocess.run(
        [sys.executable, "-c", REPORT], env=environment, capture_output=True, text=True, timeout=60, cwd=HERE
    )


def test_the_environment_forces_a_level() -> None:
    if backends.kernels is None:
        pytest.skip(backends.available()["cpu"].reason)
    levels = backends.kernels.cpu_levels()
    for asked, expected in ((levels[-1], levels[-1]), ("", levels[0])):
        child = report(asked)
        assert child.returncode == 0, child.stderr
        first, *others = child.stdout.splitlines()
        assert first == f"True C++ kernels, instruction-set level {expected}"
        assert others == ["cpu", "forced"]


def test_a_level_that_does_not_run_here_is_an_error_with_its_reason() -> None:
    if backends.kernels is None:
        pytest.skip(backends.available()["cpu"].reason)
    child = report("v9")
    assert child.returncode != 0
    assert "forced" not in child.stdout
    said = child.stdout + child.stderr
    assert "'v9' does not run here; choose from: " in said
    assert "BackendError" in child.stderr or "ImportError" in child.stderr


WARNED = """
import sys
sys.modules["gaia_fast._kernels"] = None
import warnings
from gaia_fast import GaiaA, GaiaZ, errors, models
warnings.simplefilter(sys.argv[1], errors.MissingKernelsWarning)
for detector in (GaiaZ, GaiaA, GaiaZ):
    detector(models.digits_resnet().eval())
"""


def test_a_detector_without_the_extension_warns_once() -> None:
    said = []
    for action in ("default", "ignore"):
        environment = {k: v for k, v in os.environ.items() if k not in ("GAIA_FAST_CPU_LEVEL", "PYTHONWARNINGS")}
        command = [sys.executable, "-c", WARNED, action]
        child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=HERE)
        assert child.returncode == 0, child.stderr
        said.append(child.stderr)
    assert "MissingKernelsWarning: PyTorch's slower operators take the place of this package's kernels: " in said[0]
    assert said[0].count("Warning:") == 1
    assert said[1] == ""


def test_the_extension_is_built() -> None:
    """Without it every test of the C++ kernels would be missing, not failing."""
    assert backends.available()["cpu"], backends.available()["cpu"].reason
