"""An exported file of gaia_fast, as a model of Triton Inference Server's Python backend.

`gaia-fast export --triton DIR` puts a copy of this beside the file. It needs gaia_fast in the server's Python:
pip install 'gaia-fast[onnx]'.
"""

from __future__ import annotations  # the server gives pb_utils its classes only when this has been imported

import json
from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path

import torch
import triton_python_backend_utils as pb_utils
from torch import Tensor

import gaia_fast
from gaia_fast.errors import ArgumentError, InputError


class TritonPythonModel:
    """Scores images; by this name the server finds it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the exported file that lies beside this one.

        Args:
            args: what the server tells of the instance: "model_config", "model_instance_kind" and so on.

        Raises:
            ArgumentError: there is no such file, or it is for another kind of instance; the server shows the message.
        """
        config = json.loads(args["model_config"])
        path = _exported_file()
        self._device = _device(path, args)
        threads = int(config.get("parameters", {}).get("threads", {}).get("string_value", 0))
        if threads > 0:
            torch.set_num_threads(threads)
        self._detector = gaia_fast.load(path)
        self._batches = config["max_batch_size"] > 0

    @torch.inference_mode()
    def execute(self, requests: Sequence[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        """Scores the images of requests, those of one size in one call.

        Returns:
            A response to each, in their order: the file's outputs, or the error of a request that cannot be scored.
        """
        responses: dict[int, pb_utils.InferenceResponse] = {}
        groups: dict[Hashable, dict[int, Tensor]] = defaultdict(dict)
        for place, request in enumerate(requests):
            if request.is_cancelled():
                cancelled = pb_utils.TritonError("the client took the request back", pb_utils.TritonError.CANCELLED)
                responses[place] = pb_utils.InferenceResponse(error=cancelled)
                continue
            try:
                images = _images(request)
            except InputError as error:
                responses[place] = _failed(error)
                continue
            alone = None if self._batches and len(images) > 0 else place
            groups[alone, images.dtype, images.shape[1:]][place] = images
        for group in groups.values():
            responses.update(zip(group, self._responses(list(group.values())), strict=True))
        return [responses[place] for place in range(len(requests))]

    def finalize(self) -> None:
        """Lets go of the program, when the server unloads the model."""
        del self._detector

    def _responses(self, requested: Sequence[Tensor]) -> list[pb_utils.InferenceResponse]:
        """Scores the images of several requests together, and where that fails of each alone."""
        try:
            outputs = self._detector.outputs(torch.cat(list(requested)).to(self._device))
        except Exception as error:
            if len(requested) == 1:
                return [_failed(error)]
            return [response for images in requested for response in self._responses([images])]
        numbers = [len(images) for images in requested]
        parts = {name: _as_rows(output).cpu().split(numbers) for name, output in outputs.items()}
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(name, part[k].numpy()) for name, part in parts.items()])
            for k in range(len(requested))
        ]


def _exported_file() -> Path:
    paths = [Path(__file__).with_name(name) for name in ("model.onnx", "model.pt2")]
    found = [path for path in paths if path.is_file()]
    if len(found) != 1:
        raise ArgumentError(f"one of {paths[0]} and {paths[1].name} is to be there, and {len(found)} are: export again")
    return found[0]


def _device(path: Path, args: dict[str, str]) -> torch.device:
    """The device of the instance. Each is a process of its own, so that it can be the process's device."""
    device = gaia_fast.read_metadata(path).get("device", "cpu")
    wanted = "GPU" if device == "cuda" else "CPU"
    if args["model_instance_kind"] != wanted:
        raise ArgumentError(
            f"{path} runs on {device}, and the instance {args['model_instance_name']} is of kind "
            f"{args['model_instance_kind']}: set instance_group [ {{ kind: KIND_{wanted} }} ] in config.pbtxt"
        )
    if device != "cuda":
        return torch.device(device)
    torch.cuda.set_device(int(args["model_instance_device_id"]))
    return torch.device(device, torch.cuda.current_device())


def _images(request: pb_utils.InferenceRequest) -> Tensor:
    tensor = pb_utils.get_input_tensor_by_name(request, "images")
    if tensor is None:
        raise InputError('the request has no input "images"')
    try:
        return torch.from_numpy(tensor.as_numpy())
    except TypeError as error:  # text, or a kind of number that PyTorch has not
        raise InputError(f'the input "images" cannot be images: {error}') from error


def _as_rows(output: Tensor) -> Tensor:
    """One row an image: a dimension beside the batch's is the least that the server can be told of."""
    return output if output.ndim > 1 else output.unsqueeze(1)


def _failed(error: Exception) -> pb_utils.InferenceResponse:
    code = pb_utils.TritonError.INVALID_ARG if isinstance(error, InputError) else pb_utils.TritonError.INTERNAL
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))
