"""The machine code of GPU kernels, made and read without a GPU."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

ARCHITECTURES = (80, 90, 100)
TRITON_TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.uint8: "*u8",
}
ACCESS = re.compile(r"\b(LDG|STG|LDL|STL)((?:\.[A-Z0-9_]+)*)")


@dataclass
class Code:
    """What a kernel's machine code does to memory: the width in bits of every access in its text.

    Attributes:
        reciprocals: as an integer division needs one. A division in float32 does, too.
        registers: of a thread.
    """

    loads: Counter[int] = field(default_factory=Counter)
    stores: Counter[int] = field(default_factory=Counter)
    spills: int = 0
    reciprocals: int = 0
    registers: int = 0

    def read(self, line: str) -> None:
        self.reciprocals += "MUFU.RCP" in line
        for kind, modifiers in ACCESS.findall(line):
            parts = modifiers.split(".")
            width = next((int(part) for part in parts if part in ("64", "128")), 32)
            width = next((int(part[1:]) for part in parts if part in ("U8", "S8", "U16", "S16")), width)
            if kind in ("LDL", "STL"):
                self.spills += 1
            else:
                (self.loads if kind == "LDG" else self.stores)[width] += 1


def disassembled(file: Path) -> dict[tuple[str, int], Code]:
    """Returns the code of every kernel in `file`, a cubin or a library, by mangled name and architecture."""
    tool = _cuobjdump()
    text = subprocess.run([tool, "-sass", file], capture_output=True, text=True, check=True).stdout
    found: dict[tuple[str, int], Code] = {}
    architecture, current = 0, Code()
    for line in text.splitlines():
        if match := re.search(r"(?:arch = |\.target\s+)sm_(\d+)", line):
            architecture = int(match[1])
        elif match := re.search(r"Function : (\S+)", line):
            current = found.setdefault((match[1], architecture), Code())
        else:
            current.read(line)
    return found


def registers_of(file: Path) -> int:
    """Returns the registers of a thread of the one kernel in `file`."""
    text = subprocess.run([_cuobjdump(), "-res-usage", file], capture_output=True, text=True, check=True).stdout
    (found,) = re.findall(r"REG:(\d+)", text)
    return int(found)


def _cuobjdump() -> str:
    tool = shutil.which("cuobjdump")
    if tool is None:
        triton = pytest.importorskip("triton", reason="no cuobjdump on the path, and no triton package that has one")
        tool = str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    return tool


@dataclass(frozen=True)
class Launch:
    """A Triton kernel with the arguments of one launch."""

    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]


@contextmanager
def recorded(module: ModuleType, name: str) -> Iterator[list[Launch]]:
    """Launches of the kernel `name` of `module` are kept in a list instead of run."""
    kernel, launches = getattr(module, name), []

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *arguments, **options: launches.append(Launch(kernel, arguments, options))

    setattr(module, name, Recorder())
    try:
        yield launches
    finally:
        setattr(module, name, kernel)


def _integer(value: int) -> str:
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def compiled(launch: Launch, architecture: int, folder: Path) -> Code:
    """Returns the code that Triton makes for a launch: with what it would assume of these very arguments."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    names = launch.kernel.arg_names
    options = dict(launch.options)
    for index, name in enumerate(names):
        if index >= len(launch.arguments):
            signature[name] = "constexpr"
            constants[(index,)] = options.pop(name)
            continue
        value = launch.arguments[index]
        if isinstance(value, Tensor):
            signature[name] = TRITON_TYPES[value.dtype]
            aligned = value.data_ptr() % 16 == 0
        else:
            assert launch.kernel.params[index].do_not_specialize, f"a size or stride is compiled in: {name}"
            signature[name] = tuple(map(_integer, value)) if isinstance(value, tuple) else _integer(value)
            aligned = False
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    result = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(result.asm["cubin"])
    (code,) = disassembled(cubin).values()
    code.registers = registers_of(cubin)
    return code
