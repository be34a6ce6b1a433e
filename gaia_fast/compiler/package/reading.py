"""Exported files, ready to run: what a user of one would write, for checks and examples."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gaia_fast.compiler.package.metadata import accepted
from gaia_fast.errors import ArgumentError, BackendError, first_line


def load(path: str | Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Returns a function of images (N, C, H, W), on the CPU for ".onnx", that gives the logits and
    each score, in the order in which they were asked for.

    A ".pt2" file is a program of machine code: loading it runs it, with all rights of the user. Load only what you
    trust; `read_metadata` is safe for any.

    Raises:
        ArgumentError, BackendError: as `read_metadata`; also where its runtime cannot load the file. The function
            raises InputError for images of other sizes or dtype than the file was exported for.

    Example:
        >>> from gaia_fast import GaiaA
        >>> from gaia_fast.data.digits import held_out_digits
        >>> from gaia_fast.models import digits_resnet
        >>> from tempfile import TemporaryDirectory
        >>> x, labels = held_out_digits()
        >>> with TemporaryDirectory() as folder:
        ...     path = GaiaA(digits_resnet(pretrained=True)).export(f"{folder}/model.onnx", x[:4])
        ...     logits, score = load(path)(x[:3])
        >>> logits.shape, score.shape
        (torch.Size([3, 10]), torch.Size([3]))
    """
    path = Path(path)
    images = accepted(path)
    try:
        run = _onnx_runner(path) if path.suffix == ".onnx" else _package_runner(path)
    # Of another processor or version, or damaged: each runtime has its own ways to say so.
    except Exception as error:
        raise ArgumentError(f"{path} cannot be loaded here ({first_line(error)}); export it again, here") from error

    def checked(x: Tensor) -> tuple[Tensor, ...]:
        images.check(x)
        try:
            return run(x.detach().contiguous())  # a package does not look at strides
        except Exception as error:
            raise BackendError(f"{path} failed on images of shape {tuple(x.shape)}: {first_line(error)}") from error

    return checked


def _onnx_runner(path: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: tuple(torch.from_numpy(each) for each in session.run(None, {"images": x.cpu().numpy()}))


def _package_runner(path: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    package = torch._inductor.aoti_load_package(str(path))

    def run(x: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(package(x))

    return run
