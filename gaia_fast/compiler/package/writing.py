"""Files that score without this package, and without Python: ONNX graphs and AOTInductor packages."""

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from gaia_fast.compiler.frontend.example_batch import export_arguments
from gaia_fast.compiler.onnx.conversion import check_size, missing, to_onnx
from gaia_fast.compiler.package.metadata import FORMATS, check_ending, read_metadata
from gaia_fast.compiler.program import Program, with_images_in
from gaia_fast.errors import ArgumentError, BackendError, CompilationError, GaiaError, first_line
from gaia_fast.files import replacing

__all__ = ["FORMATS", "check_format", "export", "read_metadata"]


def check_format(path: Path) -> None:
    """Raises ArgumentError unless the file's ending is one of `FORMATS`, its folder exists and itself is none."""
    check_ending(path)
    if path.is_dir():
        raise ArgumentError(f"{path} is a folder; give the name of a file")
    if not path.absolute().parent.is_dir():
        raise ArgumentError(f"the folder {path.absolute().parent} does not exist")


def computes_in(path: Path, dtype: torch.dtype) -> torch.dtype:
    """What a file for images in `dtype` computes in: another dtype where its runtime would not keep to it.

    On the CPU onnxruntime computes float16 in float32, and rounds to float16 at some operators and not at others: a
    number is then not equal to itself, and the gradient through a maximum goes astray.
    """
    return torch.float32 if path.suffix == ".onnx" and dtype == torch.float16 else dtype


def export(
    program: Program,
    path: Path,
    example: Tensor,
    dynamic: bool,
    metadata: Mapping[str, str],
    check: Callable[[Path], None] = lambda path: None,
) -> None:
    """Writes a program to a file: input "images" (N, C, H, W), outputs "logits" (N, C) and scores, each (N,) float32.

    Args:
        program: what the file will do, standing alone; see `without_recourse`.
        path: checked by `check_format`; ending in ".onnx" (onnxruntime, standard operators alone) or ".pt2" (an
            AOTInductor package, run by PyTorch's C++ library or `torch._inductor.aoti_load_package`).
        example: images, of which the first is enough; where the program computes in another dtype than theirs, the
            file takes them, and gives logits, in theirs.
        dynamic: whether the number of images is left open.
        metadata: put into the file, with "images", their sizes, null where any will do, and "dtype", theirs: a package
            reads past the end of images that do not fit. `read_metadata` reads it.
        check: called with the file before it takes its name; what it raises is raised, and nothing is written.

    Raises:
        BackendError: a package is missing. CompilationError: the program does not fit the format.
    """
    alone = with_images_in(example.dtype, program)
    sizes = [None if dynamic else example.shape[0], *example.shape[1:]]
    metadata = {**metadata, "images": json.dumps(sizes), "dtype": str(example.dtype).removeprefix("torch.")}
    write = _write_onnx if path.suffix == ".onnx" else _write_package
    if path.suffix == ".onnx" and (reason := missing()):
        raise BackendError(f"{path} cannot be written: {reason}")
    with replacing(path) as written:
        try:
            write(alone, written, example, dynamic, metadata)
        except GaiaError:
            raise
        except Exception as error:
            raise CompilationError(
                f"the program cannot be written to {path} ({first_line(error)}); {_NEEDS[path.suffix]}"
            ) from error
        check(written)


_NEEDS = {".onnx": "try .pt2", ".pt2": "AOTInductor needs a C++ compiler. Try .onnx"}


def _write_onnx(program: Program, path: Path, example: Tensor, dynamic: bool, metadata: Mapping[str, str]) -> None:
    import onnx

    model = to_onnx(program.graph, program.outputs, example, dynamic)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    check_size(model)
    onnx.save(model, path)


def _write_package(program: Program, path: Path, example: Tensor, dynamic: bool, metadata: Mapping[str, str]) -> None:
    arguments, sizes = export_arguments(example, dynamic)
    configuration = {"freezing": True, "aot_inductor.metadata": {"gaia_fast": json.dumps(dict(metadata))}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        exported = torch.export.export(program.graph, arguments, dynamic_shapes=sizes)
        torch._inductor.aoti_compile_and_package(exported, package_path=str(path), inductor_configs=configuration)
