"""gaia_fast/_kernels.pyi, by which the package is type-checked, names what the extension has, and nothing else."""

import ast
from pathlib import Path
from types import ModuleType

import pytest

import gaia_fast
from gaia_fast.backends import kernels

STUB = ast.parse((Path(gaia_fast.__file__).parent / "_kernels.pyi").read_text())
CUDA = "cuda_obstacle", "cuda_channel_moments", "cuda_relu_backward_moments", "cuda_relu_forward_count"
CUDA_ONLY = {*CUDA, "cuda_frobenius", "cuda_count_and_score", "CUDA_LAYOUTS", "CUDA_COUNT_AND_SCORE_LIMITS"}


def declared(body: list[ast.stmt]) -> set[str]:
    named = {each.name for each in body if isinstance(each, (ast.FunctionDef, ast.ClassDef))}
    return named | {
        each.target.id for each in body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }


def public(of: ModuleType | type) -> set[str]:
    return {name for name in vars(of) if not name.startswith("_")}


@pytest.mark.skipif(kernels is None, reason="the extension is not built")
def test_the_stub_names_what_is_there() -> None:
    missing = CUDA_ONLY if not kernels.cuda_build() else set()
    assert declared(STUB.body) - missing == public(kernels)
    for each in STUB.body:
        if isinstance(each, ast.ClassDef):
            assert {name for name in declared(each.body) if name != "__init__"} == public(getattr(kernels, each.name))
