"""`config.pbtxt`: what Triton Inference Server is told of a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gaia_fast._version import __version__
from gaia_fast.compiler.package.metadata import accepted
from gaia_fast.errors import ArgumentError
from gaia_fast.loading import load

# What an instance scores at once: more makes a CPU no faster, and the first of them wait for the last.
MAX_BATCH_SIZE = 32
# How long requests wait for company.
QUEUE_DELAY_MICROSECONDS = 1000
# What waits beyond that, or longer than that, is refused.
QUEUE_SIZE, QUEUE_MICROSECONDS = 128, 5_000_000

_TYPES = {
    torch.float16: "TYPE_FP16",
    torch.float32: "TYPE_FP32",
    torch.float64: "TYPE_FP64",
    torch.uint8: "TYPE_UINT8",
    torch.bool: "TYPE_BOOL",
}


@dataclass(frozen=True)
class TensorConfig:
    """An input or output.

    Attributes:
        name: as in the exported file.
        data_type: such as "TYPE_FP32".
        dims: without that of the batch, where the server makes batches; -1 where any size will do.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]

    def text(self, more: str = "") -> str:
        """As an entry of "input" or "output"."""
        dims = ", ".join(map(str, self.dims))
        return f'  {{\n    name: "{self.name}"\n    data_type: {self.data_type}\n    dims: [ {dims} ]\n{more}  }}'


@dataclass(frozen=True)
class Interface:
    """What a client of the server sees of an exported file.

    Attributes:
        images: the input.
        outputs: those of the file, in its order; scores and decisions with a dimension of 1.
        batches: whether the file takes any number of images.
        on_gpu: where it runs.
    """

    images: TensorConfig
    outputs: tuple[TensorConfig, ...]
    batches: bool
    on_gpu: bool

    @classmethod
    def of(cls, path: Path, size: Sequence[int]) -> "Interface":
        """Looks at an exported file, and runs it once.

        Args:
            path: the file.
            size: height and width of images, or pictures, that it takes.

        Raises:
            ArgumentError: images or outputs of a dtype that the server's Python backend has not.
            GaiaError: as `gaia_fast.load`.
        """
        detector = load(path)
        given = accepted(path, detector.metadata)
        number, channels = given.sizes[0][0], given.sizes[0][1]
        assert channels is not None  # never left open
        blank = torch.zeros((number or 1, channels, *size), dtype=given.dtype, device=given.device)
        # A dimension in which the sizes differ is left open; the exported file refuses what is none of them.
        dims = [each[0] if len(set(each)) == 1 else None for each in zip(*given.sizes, strict=True)]
        batch = () if number is None else (number,)
        return cls(
            TensorConfig(
                "images", _type(path, given.dtype), (*batch, *(-1 if each is None else each for each in dims[1:]))
            ),
            tuple(
                TensorConfig(name, _type(path, found.dtype), (*batch, *(found.shape[1:] or (1,))))
                for name, found in detector.outputs(blank).items()
            ),
            number is None,
            given.device == "cuda",
        )

    def text(self) -> str:
        """The part of config.pbtxt that says so: every version of a model has the same."""
        # Else requests of another size would end a batch.
        ragged = "    allow_ragged_batch: true\n" if self.batches and -1 in self.images.dims else ""
        outputs = ",\n".join(each.text() for each in self.outputs)
        return f"input [\n{self.images.text(ragged)}\n]\noutput [\n{outputs}\n]\n"


def config_text(name: str, interface: Interface) -> str:
    """Returns config.pbtxt, in protobuf's text format, for a model of that name."""
    batching = f"""
# Requests are scored together; one that finds the queue full, or has waited too long in it, is refused.
dynamic_batching {{
  max_queue_delay_microseconds: {QUEUE_DELAY_MICROSECONDS}
  default_queue_policy {{
    max_queue_size: {QUEUE_SIZE}
    timeout_action: REJECT
    default_timeout_microseconds: {QUEUE_MICROSECONDS}
  }}
}}
"""
    return f"""\
# Written by gaia-fast {__version__}. Change what follows the outputs as you like: a later export leaves it alone.
name: "{name}"
backend: "python"
max_batch_size: {MAX_BATCH_SIZE if interface.batches else 0}
{interface.text()}{batching if interface.batches else ""}
# The highest version is served.
version_policy: {{ latest {{ num_versions: 1 }} }}

instance_group [ {{ kind: {"KIND_GPU" if interface.on_gpu else "KIND_CPU"} count: 1 }} ]

# Of each instance, on the CPU; 0: as many as PyTorch takes by itself. More instances: fewer threads each.
parameters {{ key: "threads" value {{ string_value: "0" }} }}
"""


def _type(path: Path, dtype: torch.dtype) -> str:
    if dtype not in _TYPES:
        raise ArgumentError(
            f"{path} has images or outputs in {dtype}, which Triton's Python backend cannot take; export the model in "
            "float32, model.float()"
        )
    return _TYPES[dtype]
