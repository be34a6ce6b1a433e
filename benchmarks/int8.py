"""What 8-bit weights and activations would give: another score, told apart by its AUROC, and a faster prediction.

Run: .venv/bin/python benchmarks/int8.py quality FOLDER    (cifar10_test.npz, tinyimagenet_crop.npz, textures_crop.npz
                                                            with `x` uint8 (N, 32, 32, 3), and the WRN-40-2's weights)
     .venv/bin/python benchmarks/int8.py speed wrn_40_2 resnet50 --images 1 8

Quality: every convolution and the head read inputs and weights rounded to 8 bits (weights a scale for each output,
inputs one for each map, from the first 256 images), and their sums are not rounded: what a kernel reads in its 32-bit
accumulators, so that "positive" is defined. Gradients pass the rounding as if it were not there.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from runtimes import NETWORKS, create, in_onnxruntime, in_openvino, onnx_file
from torch import Tensor, nn

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.evaluation.metrics import ood_metrics
from gaia_fast.models import wrn_40_2

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CALIBRATION = 256


def images(path: Path, limit: int) -> tuple[Tensor, Tensor | None]:
    with np.load(path) as file:
        x = torch.from_numpy(file["x"][:limit]).permute(0, 3, 1, 2).float() / 255
        y = torch.from_numpy(file["y"][:limit]) if "y" in file else None
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1), y


class Rounded(nn.Module):
    """A linear layer that reads 8-bit weights and inputs."""

    def __init__(self, layer: nn.Module, largest: float) -> None:
        super().__init__()
        self.layer, self.scale = layer, largest / 127
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        flat = layer.weight.detach().flatten(1)
        scale = flat.abs().amax(1, keepdim=True) / 127
        layer.weight.data = (torch.round(flat / scale) * scale).view_as(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        rounded = torch.clamp(torch.round(x / self.scale), -127, 127) * self.scale
        out: Tensor = self.layer(x + (rounded - x).detach())
        return out


def in_int8(model: nn.Module, calibration: Tensor) -> nn.Module:
    """Returns a copy whose convolutions and head compute on 8-bit numbers."""
    model = copy.deepcopy(model)
    layers = {name: each for name, each in model.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)}
    largest: dict[str, float] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
            largest[name] = max(largest.get(name, 0.0), float(inputs[0].abs().max()))

        return hook

    handles = [each.register_forward_pre_hook(record(name)) for name, each in layers.items()]
    with torch.no_grad():
        model(calibration)
    for handle in handles:
        handle.remove()
    for name, layer in layers.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, Rounded(layer, largest[name]))
    return model


def scores(detector: GaiaA | GaiaZ, x: Tensor) -> tuple[Tensor, Tensor]:
    found = [detector.score(part) for part in x.split(100)]
    return torch.cat([each.logits for each in found]), torch.cat([each.score for each in found])


def quality(folder: Path, limit: int) -> None:
    from safetensors.torch import load_file

    model = wrn_40_2()
    model.load_state_dict(load_file(folder / "wrn_40_2_cifar10.safetensors"))
    own, labels = images(folder / "cifar10_test.npz", limit)
    assert labels is not None
    others = {name: images(folder / f"{name}_crop.npz", limit)[0] for name in ("tinyimagenet", "textures")}
    networks = {"float32": model.eval(), "int8": in_int8(model.eval(), own[:CALIBRATION]).eval()}
    print(
        "| score | network | accuracy | AUROC (FPR95) "
        + " | AUROC (FPR95) ".join(others)
        + " | ID scores, rank corr. |"
    )
    print("|---|---|---|---|---|---|")
    detectors: dict[str, Callable[[nn.Module], GaiaA | GaiaZ]] = {
        "GAIA-Z": lambda net: GaiaZ(net, engine="hooks"),
        "GAIA-Z, block3": lambda net: GaiaZ(net, layers=["block3"], engine="hooks"),
        "GAIA-A": lambda net: GaiaA(net, engine="hooks"),
    }
    for name, make in detectors.items():
        before: Tensor | None = None
        for kind, network in networks.items():
            detector = make(network)
            logits, inside = scores(detector, own)
            accuracy = float((logits.argmax(1) == labels).float().mean())
            cells = []
            for x in others.values():
                found = ood_metrics(inside, scores(detector, x)[1])
                cells.append(f"{found.auroc:.3f} ({found.fpr95_id_positive:.3f})")
            before = inside if before is None else before
            ranks = torch.stack([each.argsort().argsort().double() for each in (before, inside)])
            corr = float(torch.corrcoef(ranks)[0, 1])
            print(f"| {name} | {kind} | {accuracy:.3f} | {' | '.join(cells)} | {corr:.3f} |", flush=True)


class Noise:
    """What the quantiser calibrates on."""

    def __init__(self, name: str, x: Tensor) -> None:
        self._batches: Iterator[dict[str, Any]] = iter([{name: torch.randn_like(x).numpy()} for _ in range(4)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


def speed(name: str, count: int, rounds: int) -> None:
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    x = torch.randn(count, 3, NETWORKS[name][1], NETWORKS[name][1])
    with TemporaryDirectory() as folder:
        files = {"float32": onnx_file(create(name), x, folder), "int8": f"{folder}/int8.onnx"}
        quantize_static(
            files["float32"],
            files["int8"],
            Noise(onnx.load(files["float32"]).graph.input[0].name, x),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        runs: dict[str, Callable[[], Any]] = {}
        for kind, path in files.items():
            runs[f"onnxruntime {kind}"] = in_onnxruntime(path, x)
            runs[f"openvino {kind}"] = in_openvino(path, x)
        detector = GaiaZ(create(name), engine="compiled", runtime="native").prepare(x)
        runs["GAIA-Z, native, float32"] = lambda: detector.score(x)
        spent: dict[str, list[float]] = {each: [] for each in runs}
        for _ in range(rounds):
            for each, run in runs.items():
                run()
                start = time.perf_counter()
                run()
                spent[each].append((time.perf_counter() - start) * 1e3)
    times = ", ".join(f"{each} {statistics.median(times):.3g}" for each, times in spent.items())
    print(f"{name} B={count} threads={torch.get_num_threads()}: {times} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parts = parser.add_subparsers(dest="part", required=True)
    of_quality = parts.add_parser("quality")
    of_quality.add_argument("folder", type=Path)
    of_quality.add_argument("--limit", type=int, default=600)
    of_speed = parts.add_parser("speed")
    of_speed.add_argument("networks", nargs="+", choices=NETWORKS)
    of_speed.add_argument("--images", nargs="+", type=int, default=[1])
    of_speed.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    if given.part == "quality":
        quality(given.folder, given.limit)
    else:
        for name in given.networks:
            for count in given.images:
                speed(name, count, given.rounds)


if __name__ == "__main__":
    main()
