"""Programs kept in files, so that a process that comes later need not capture, record and time them again.

A file is found by a hash of all that a program hangs on, and what is read from it is held to the reference before it is
used: one that does not fit is made anew. Nothing of a file is run as code but a graph of known operators.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, fx

from gaia_fast import timing_cache
from gaia_fast._version import __version__
from gaia_fast.backends import Choice
from gaia_fast.compiler.ir.results import ResultNames
from gaia_fast.compiler.ir.serialization import NotSerializableError, from_data, to_data
from gaia_fast.compiler.program import Program
from gaia_fast.errors import ArgumentError, ProgramCacheWarning, first_line
from gaia_fast.files import replacing
from gaia_fast.measurement import FeatureMap

_FORMAT = "1"
_KEY = "gaia_fast program"
_ONNX = "onnx"  # the name of a tensor of bytes; those of constants are numbers


@dataclass(frozen=True)
class Entry:
    """A program as it is kept.

    Attributes:
        program, dynamic, derivations, runtime: as in `Prepared`.
        timings: what was timed when it was prepared; see `timing_cache.recorded`.
        onnx: the ONNX graph that its runtime takes, if it takes one.
        native: the program of runtime "native", as plain data and constants, where there is no more to it.
    """

    program: Program
    dynamic: bool
    derivations: tuple[tuple[str, ...], ...]
    runtime: Choice
    timings: Mapping[str, Mapping[str, Any]]
    onnx: bytes | None = None
    native: tuple[Mapping[str, Any], Mapping[str, Tensor]] | None = None


class KeptProgram(Program):
    """A program whose graph is read when it is first asked for: what runs may need none."""

    def __init__(
        self,
        read: Callable[[], fx.GraphModule],
        digest: str,
        outputs: tuple[str, ...],
        results: tuple[ResultNames, ...],
        maps: tuple[tuple[FeatureMap, ...], ...],
    ) -> None:
        vars(self).update(outputs=outputs, results=results, maps=maps, preconditions=(), digest=digest, _read=read)

    @cached_property
    def graph(self) -> fx.GraphModule:
        return vars(self)["_read"]()


class ProgramCache:
    """Programs in a folder, which is made if need be.

    Raises:
        ArgumentError: it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder = folder.expanduser()
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArgumentError(
                f"cache_dir={str(folder)!r} cannot be made ({error.strerror}); name a folder"
            ) from error
        self.folder = folder

    def load(self, hangs_on: Sequence[Any]) -> Entry | None:
        """Returns what is kept under a key; None for nothing, or for a file that cannot be read."""
        path = self._path(hangs_on)
        if not path.is_file():
            return None
        try:
            return _read(path)
        # Whatever damaged bytes make it trip over: the program is made again, and the file replaced.
        except Exception:
            return None

    def store(self, hangs_on: Sequence[Any], entry: Entry) -> None:
        """Keeps a program under a key, whole or not at all. Warns where it cannot: the program itself is fine."""
        try:
            self._store(self._path(hangs_on), entry)
        except NotSerializableError as error:
            _warn(f"the program is not kept in {self.folder}: in its graph {error}")
        except (ArgumentError, OSError) as error:
            _warn(f"the program is not kept in {self.folder}: {first_line(error)}")

    def _store(self, path: Path, entry: Entry) -> None:
        graph, constants = to_data(entry.program.graph)
        tensors = _Tensors()
        native = None
        if entry.native is not None:
            native = {"data": entry.native[0], "tensors": tensors.add_all(entry.native[1])}
        program = entry.program
        kept = {
            "graph": graph,
            "constants": tensors.add_all(constants),
            "native": native,
            "digest": program.digest,
            "outputs": program.outputs,
            "results": [each._asdict() for each in program.results],
            "maps": [[asdict(each) for each in maps] for maps in program.maps],
            "dynamic": entry.dynamic,
            "derivations": entry.derivations,
            "runtime": [entry.runtime.name, entry.runtime.why],
            "timings": entry.timings,
        }
        if entry.onnx is not None:
            tensors.by_name[_ONNX] = torch.frombuffer(bytearray(entry.onnx), dtype=torch.uint8)
        kept["content"] = _digest(save(tensors.by_name))
        with replacing(path) as written:
            written.write_bytes(save(tensors.by_name, {_KEY: json.dumps(kept)}))

    def _path(self, hangs_on: Sequence[Any]) -> Path:
        of = [_FORMAT, __version__, torch.__version__, timing_cache.machine(), *hangs_on]
        return self.folder / f"{hashlib.sha256(json.dumps(of).encode()).hexdigest()[:32]}.safetensors"


class _Tensors:
    """Tensors under numbers; what is in several places of a program is kept once."""

    def __init__(self) -> None:
        self.by_name: dict[str, Tensor] = {}
        self._known: dict[Any, str] = {}

    def add_all(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Returns for each where it is: its number, strides and device."""
        return {name: [self._add(each), list(each.stride()), str(each.device)] for name, each in tensors.items()}

    def _add(self, tensor: Tensor) -> str:
        place = tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride()
        known = self._known.get(place) if tensor.numel() else None
        if known is None:
            known = self._known[place] = str(len(self.by_name))
            # The format takes no two that lie in one memory, and none with gaps.
            self.by_name[known] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        return known


def _read(path: Path) -> Entry:
    # All of it, at once: what lies in a mapped file changes with the file.
    data = path.read_bytes()
    kept = json.loads(json.loads(_header(data))["__metadata__"][_KEY])
    if kept["content"] != _digest(data):
        raise ValueError("the tensors are not those that were written")
    read = load(data)

    def tensors(places: Mapping[str, Any]) -> dict[str, Tensor]:
        return {name: _laid_out(read[of], strides, on) for name, (of, strides, on) in places.items()}

    program = KeptProgram(
        lambda: from_data(kept["graph"], tensors(kept["constants"])),
        kept["digest"],
        tuple(kept["outputs"]),
        tuple(ResultNames(**each) for each in kept["results"]),
        tuple(tuple(FeatureMap(**each) for each in maps) for maps in kept["maps"]),
    )
    native = kept["native"]
    return Entry(
        program,
        kept["dynamic"],
        tuple(map(tuple, kept["derivations"])),
        Choice(*kept["runtime"]),
        kept["timings"],
        bytes(read[_ONNX].numpy()) if _ONNX in read else None,
        None if native is None else (native["data"], tensors(native["tensors"])),
    )


def _header(data: bytes) -> bytes:
    """The JSON that a file of safetensors begins with, behind its length."""
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


def _digest(data: bytes) -> str:
    """A hash of the tensors of a file of safetensors."""
    return hashlib.blake2b(data[8 + int.from_bytes(data[:8], "little") :], digest_size=16).hexdigest()


def _warn(message: str) -> None:
    warnings.warn(message, ProgramCacheWarning, stacklevel=2)


def _laid_out(value: Tensor, strides: Sequence[int], device: str) -> Tensor:
    """A constant as it lay in memory: algorithms, and so the last bit, may hang on it."""
    if list(value.stride()) == list(strides) and device == "cpu":
        return value
    if 0 in strides:  # expanded
        return value.to(device)
    return torch.empty_strided(value.shape, strides, dtype=value.dtype, device=device).copy_(value)
