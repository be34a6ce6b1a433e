"""Files that score without this package, and without Python: ONNX graphs and AOTInductor packages."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gaia_fast.compiler.frontend.example_batch import export_arguments
from gaia_fast.compiler.onnx.conversion import check_size, missing, to_onnx
from gaia_fast.compiler.onnx.image_sizes import by_size
from gaia_fast.compiler.package.metadata import FORMATS, check_ending, model_name, read_metadata
from gaia_fast.compiler.package.preprocessing import Preprocessing
from gaia_fast.compiler.program import Program, with_images_in
from gaia_fast.data.presets import Preset, preset_record
from gaia_fast.errors import ArgumentError, BackendError, CompilationError, GaiaError, first_line
from gaia_fast.files import replacing

__all__ = ["FORMATS", "check_format", "export", "read_metadata"]


def check_format(path: Path) -> None:
    """Checks all of a file to be written that can be known before there is a program.

    Raises:
        ArgumentError: its ending is none of `FORMATS`, its folder does not exist, or itself is one.
        BackendError: a package is missing.
    """
    check_ending(path)
    if path.is_dir():
        raise ArgumentError(f"{path} is a folder; give the name of a file")
    if not path.absolute().parent.is_dir():
        raise ArgumentError(f"the folder {path.absolute().parent} does not exist")
    if path.suffix == ".onnx" and (reason := missing()):
        raise BackendError(f"{path} cannot be written: {reason}")


def computes_in(path: Path, dtype: torch.dtype) -> torch.dtype:
    """What a file for images in `dtype` computes in: another dtype where its runtime would not keep to it.

    On the CPU onnxruntime computes float16 in float32, and rounds to float16 at some operators and not at others: a
    number is then not equal to itself, and the gradient through a maximum goes astray.
    """
    return torch.float32 if path.suffix == ".onnx" and dtype == torch.float16 else dtype


class Sized(NamedTuple):
    """A program for images of one size.

    Attributes:
        program: what the file will do with them, standing alone; see `without_recourse`.
        example: images of the size, of which the first is enough; where the program computes in another dtype than
            theirs, the file takes them, and gives logits, in theirs.
        dynamic: whether their number is left open.
    """

    program: Program
    example: Tensor
    dynamic: bool

    @property
    def shape(self) -> list[int | None]:
        """(N, C, H, W), None where any number will do."""
        return [None if self.dynamic else self.example.shape[0], *self.example.shape[1:]]


def export(
    sized: Sequence[Sized],
    path: Path,
    metadata: Mapping[str, str],
    preset: Preset | None = None,
    check: Callable[[Path], None] = lambda path: None,
) -> None:
    """Writes a program to a file: input "images" (N, C, H, W), outputs "logits" (N, C), scores, each (N,) float32, and
    behind them decisions, each (N,) bool.

    Args:
        sized: one program for each size of images that the file is for, with the same outputs.
        path: checked by `check_format`; ending in ".onnx" (onnxruntime, standard operators alone) or ".pt2" (an
            AOTInductor package, run by PyTorch's C++ library or `torch._inductor.aoti_load_package`). Of several sizes,
            a package holds the first as the model "model", any other as `model_name` says.
        metadata: put into the file, with "images", their sizes, null where any will do, a list of such lists for
            several; and "dtype", theirs: a package reads past the end of images that do not fit. `read_metadata` reads
            it.
        preset: what the file does first to uint8 RGB pictures (N, 3, H, W), which are its "images" then, of any size
            where it resizes or crops; then of one program alone. Goes into the metadata as "preprocessing".
        check: called with the file before it takes its name; what it raises is raised, and nothing is written.

    Raises:
        CompilationError: the program does not fit the format.
    """
    preprocessing = None
    shapes, dtype = [each.shape for each in sized], str(sized[0].example.dtype).removeprefix("torch.")
    metadata = dict(metadata)
    if preset is not None:
        (each,) = sized
        preprocessing = Preprocessing(preset, each.example.dtype, each.example.device)
        dtype, metadata["preprocessing"] = "uint8", preset_record(preset)
        if preprocessing.any_size:
            shapes = [[*each.shape[:2], None, None]]
    metadata |= {"images": json.dumps(shapes[0] if len(shapes) == 1 else shapes), "dtype": dtype}
    write = _write_onnx if path.suffix == ".onnx" else _write_package
    with replacing(path) as written:
        try:
            write(sized, preprocessing, written, metadata)
        except GaiaError:
            raise
        except Exception as error:
            raise CompilationError(
                f"the program cannot be written to {path} ({first_line(error)}); {_NEEDS[path.suffix]}"
            ) from error
        check(written)


_NEEDS = {".onnx": "try .pt2", ".pt2": "AOTInductor needs a C++ compiler. Try .onnx"}


def _write_onnx(
    sized: Sequence[Sized], preprocessing: Preprocessing | None, path: Path, metadata: Mapping[str, str]
) -> None:
    import onnx

    models = []
    for each in sized:
        alone = with_images_in(each.example.dtype, each.program)
        example, any_size = _input(each, preprocessing)
        models.append(to_onnx(alone.graph, alone.outputs, example, each.dynamic, preprocessing, any_size))
    check_size(models)
    model = models[0] if len(models) == 1 else by_size(models, [tuple(each.example.shape[2:]) for each in sized])
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path)


def _write_package(
    sized: Sequence[Sized], preprocessing: Preprocessing | None, path: Path, metadata: Mapping[str, str]
) -> None:
    configuration: dict[str, Any] = {
        "freezing": True,
        "aot_inductor.metadata": {"gaia_fast": json.dumps(dict(metadata))},
    }
    exported = []
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for each in sized:
            alone = with_images_in(each.example.dtype, each.program).graph
            example, any_size = _input(each, preprocessing)
            arguments, sizes = export_arguments(example, each.dynamic, any_size)
            module = alone if preprocessing is None else nn.Sequential(preprocessing, alone)
            exported.append(torch.export.export(module, arguments, dynamic_shapes=sizes))
        if len(exported) == 1:
            torch._inductor.aoti_compile_and_package(
                exported[0], package_path=str(path), inductor_configs=configuration
            )
            return
        from torch._inductor.package.package import package_aoti

        configuration["aot_inductor.package"] = True
        files: dict[str, Any] = {}
        for each, program in zip(sized, exported, strict=True):
            name = model_name([tuple(other.shape) for other in sized], tuple(each.shape))
            files[name] = torch._inductor.aot_compile(
                program.module(), program.example_inputs[0], options=configuration
            )
        package_aoti(str(path), files)


def _input(sized: Sized, preprocessing: Preprocessing | None) -> tuple[Tensor, bool]:
    """What goes into a program when it is exported, and whether height and width are left open."""
    example = sized.example
    if preprocessing is None:
        return example, False
    n, _, h, w = example.shape
    # Other sizes than the images': the exporters take equal ones for a promise.
    taken = (n, 3, 2 * h + 37, 2 * w + 59) if preprocessing.any_size else (n, 3, h, w)
    return torch.zeros(taken, dtype=torch.uint8, device=example.device), preprocessing.any_size
