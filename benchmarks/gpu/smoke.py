"""The first minute: whether kernels, a CUDA graph and a second input give what the reference gives; else nothing that
follows means much. Each check that fails is named at once, and the others are made all the same."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from gaia_fast import GaiaA, GaiaZ
from gaia_fast.files import write_text
from gaia_fast.models import resnet18
from gaia_fast.options import RuntimeOption

from gpu import calls
from gpu.graph_timing import Call, is_lost, wait


def kernel(make: Callable[[str], Call | None], backend: str) -> None:
    """A kernel against the reference, both on the same numbers."""
    found = []
    for name in (backend, "torch"):
        torch.manual_seed(1)
        call = make(name)
        found.append(None if call is None else call())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-4)


def one_map(name: str, backend: str) -> Call:
    return calls.KERNELS[name].make(calls.MapKind((64, 16, 16), torch.float32, "channels_last").make(2), backend)


def norm(backend: str) -> Call:
    return calls.frobenius(3, backend)[0]


def whole_end(backend: str) -> Call | None:
    found = calls.count_and_score(2, torch.float32, backend)
    return None if found is None else found[0]


def program(make: type[GaiaA] | type[GaiaZ], runtime: RuntimeOption) -> None:
    """A small network's program, prepared, and then given another input."""
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # noise images score alike: to a thousandth, as TF32 rounds
    model = resnet18(num_classes=10).eval().to(calls.DEVICE)
    x, other = torch.randn(2, 2, 3, 32, 32, device=calls.DEVICE)
    found = make(model, engine="compiled", runtime=runtime).prepare(x).score(other)
    expected = make(model, engine="reference").score(other)
    torch.testing.assert_close(found.score, expected.score, rtol=5e-4, atol=0)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-3, atol=1e-3)


def checks() -> dict[str, Callable[[], None]]:
    found: dict[str, Callable[[], None]] = {}
    makes: dict[str, Callable[[str], Call | None]] = {name: partial(one_map, name) for name in calls.KERNELS}
    makes |= {"frobenius": norm, "count_and_score": whole_end}
    for backend in calls.BACKENDS:
        found |= {f"{name}, {backend}": partial(kernel, make, backend) for name, make in makes.items()}
    for detector in (GaiaZ, GaiaA):
        found[f"{detector.__name__}, a CUDA graph, another input"] = partial(program, detector, "cudagraph")
    return found


def run(named: dict[str, Callable[[], None]], results: dict[str, str]) -> bool:
    """Makes each check of which there is no result yet: "passed", or what was wrong. False where the device is lost."""
    for name in [name for name in named if name not in results]:
        try:
            named[name]()
            wait()
            results[name] = "passed"
        except Exception as error:
            results[name] = f"{type(error).__name__}: {str(error)[:500]}"
            print(f"SMOKE TEST FAILED: {name}: {results[name]}", flush=True)
            if is_lost():
                return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the checks, as JSON")
    parser.add_argument("--seconds", type=float, help="not looked at")
    parser.add_argument("--go-on", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    begin = time.monotonic()
    results: dict[str, str] = json.loads(arguments.out.read_text())["checks"] if arguments.go_on else {}
    goes_on = run(checks(), results)
    write_text(arguments.out, json.dumps({"checks": results}, indent=1) + "\n")
    if not goes_on:
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, __file__, "--out", str(arguments.out), "--go-on"])
    passed = sum(each == "passed" for each in results.values())
    print(f"smoke test: {passed} of {len(results)} checks passed, {time.monotonic() - begin:.0f} s")
    return 0 if passed == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
