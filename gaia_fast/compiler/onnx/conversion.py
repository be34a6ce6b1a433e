"""The program as an ONNX graph of standard operators, in the form that onnxruntime runs fastest."""

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, fx, nn

from gaia_fast import extras
from gaia_fast.compiler.frontend.example_batch import export_arguments
from gaia_fast.compiler.ir.rewriting import copy_of
from gaia_fast.compiler.pipeline import ONNX, run_passes
from gaia_fast.errors import CompilationError, first_line

if TYPE_CHECKING:
    import onnx

Conversion: TypeAlias = Callable[[], "onnx.ModelProto"]  # of one program; raises what `to_onnx` does

LARGEST = 2**31 - 1  # bytes of a file: a message of protobuf holds no more


def missing() -> str:
    """Why ONNX graphs cannot be made and run here; empty where they can."""
    return extras.missing("onnx")


def to_onnx(
    graph: fx.GraphModule,
    outputs: tuple[str, ...],
    example: Tensor,
    dynamic: bool,
    preprocessing: nn.Module | None = None,
    any_size: bool = False,
) -> "onnx.ModelProto":
    """Converts a program, with PyTorch's own exporter.

    Args:
        graph: from images, "images", to the outputs.
        outputs: their names.
        example: what goes in, of which the first is enough: images, or what is preprocessed.
        dynamic: whether the number of images is left open.
        preprocessing: what makes the graph's images; None where they go in.
        any_size: whether height and width of what goes in are left open.

    Raises:
        CompilationError: PyTorch knows no ONNX operators for a part of it.
    """
    arguments, sizes = export_arguments(example, dynamic, any_size)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            module: nn.Module = run_passes(ONNX, copy_of(graph))
            converted = torch.onnx.export(
                module if preprocessing is None else nn.Sequential(preprocessing, module),
                arguments,
                dynamo=True,
                dynamic_shapes=sizes,
                input_names=["images"],
                output_names=list(outputs),
                verbose=False,
            )
    except Exception as error:
        cause: BaseException = error  # the innermost one names the operator
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise CompilationError(
            f"the program cannot be written as ONNX: {first_line(cause)}; use another runtime or format"
        ) from error
    assert converted is not None
    return converted.model_proto


def from_bytes(written: bytes) -> "onnx.ModelProto":
    """Returns the graph that `SerializeToString` made bytes of."""
    import onnx

    return onnx.load_model_from_string(written)


def check_size(models: Sequence["onnx.ModelProto"]) -> None:
    """Raises CompilationError if the weights do not fit into one file: beside it, they would be lost from it."""
    size = sum(each.ByteSize() for model in models for each in model.graph.initializer)
    if size > LARGEST:
        raise CompilationError(
            f"the program's weights take {size} bytes, and an ONNX file holds at most {LARGEST}; use .pt2"
        )
