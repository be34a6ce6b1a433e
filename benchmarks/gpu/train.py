"""Trains a network of the paper on CIFAR-10, as it is done in the literature: 200 epochs of SGD, for Table 1.

    python benchmarks/gpu/train.py wrn_40_2 --data DATA --out weights      # minutes on a GPU, a night on a CPU
    gaia-fast reproduce table1 --data DATA --weights wrn_40_2_cifar10=weights/wrn_40_2_cifar10.safetensors

DATA holds CIFAR-10 as `gaia-fast reproduce` takes it. The set lies on the device, and is cropped and flipped there.
A run that was stopped goes on from the last epoch that it has kept.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from gaia_fast.data import PRESETS
from gaia_fast.data.presets import Preset
from gaia_fast.models import resnet34, wrn_40_2
from gaia_fast.reproduction.image_sets import IMAGE_SETS

MODELS = {"resnet34": resnet34, "wrn_40_2": wrn_40_2}
PIXELS = Preset("pixels", mean=(0.0,) * 3, std=(1.0,) * 3, crop=32)
PADDING = 4


def images_of(name: str, data: Path, limit: int | None) -> tuple[Tensor, Tensor]:
    """Pixels uint8 (N, 3, 32, 32) and labels (N,) of a set."""
    source = IMAGE_SETS[name].load(data, PIXELS)
    source = source.part(0, limit or len(source))
    assert source.labels is not None
    pictures = [np.asarray((source[index] * 255).round().byte()) for index in range(len(source))]
    return torch.from_numpy(np.stack(pictures)), source.labels


def normalised(pixels: Tensor) -> Tensor:
    preset = PRESETS["cifar10"]
    mean, std = (torch.tensor(each, device=pixels.device).view(1, 3, 1, 1) for each in (preset.mean, preset.std))
    return (pixels.float() / 255 - mean) / std


def augmented(pixels: Tensor) -> Tensor:
    """Cropped at random from a border of zeros, and flipped, image by image; (N, 3, 32, 32) normalised."""
    n, side = pixels.shape[0], pixels.shape[-1]
    padded = F.pad(normalised(pixels), (PADDING,) * 4)
    rows, columns = torch.randint(0, 2 * PADDING + 1, (2, n, 1), device=pixels.device)
    steps = torch.arange(side, device=pixels.device)
    columns = torch.where(torch.rand(n, 1, device=pixels.device) < 0.5, columns + steps, columns + steps.flip(0))
    image = torch.arange(n, device=pixels.device).view(n, 1, 1, 1)
    channel = torch.arange(3, device=pixels.device).view(1, 3, 1, 1)
    return padded[image, channel, (rows + steps)[:, None, :, None], columns[:, None, None, :]]


def accuracy(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        found = torch.cat([model(normalised(part)).argmax(1) for part in pixels.split(500)])
    return float((found == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=MODELS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the weights, and of what a run goes on from")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--limit", type=int, help="the first training images alone, to try it")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(asked.seed)
    x, y = (each.to(device) for each in images_of("cifar10_train", asked.data, asked.limit))
    test_x, test_y = (each.to(device) for each in images_of("cifar10", asked.data, asked.limit))
    model = MODELS[asked.network](num_classes=10).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward = torch.compile(model) if device.type == "cuda" else model
    optimiser = torch.optim.SGD(model.parameters(), asked.rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    batches = len(x) // asked.batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, asked.epochs * batches)

    asked.out.mkdir(parents=True, exist_ok=True)
    name = f"{asked.network}_cifar10"
    kept = asked.out / f"{name}.pt"
    first = 0
    if kept.exists():
        state = torch.load(kept, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        first = state["epochs"]
    for epoch in range(first, asked.epochs):
        model.train()
        start, total = time.perf_counter(), torch.zeros((), device=device)
        for part in torch.randperm(len(x), device=device)[: batches * asked.batch_size].split(asked.batch_size):
            images = augmented(x[part]).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = F.cross_entropy(forward(images), y[part])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.detach()
        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "schedule": schedule.state_dict()}
        torch.save({**state, "epochs": epoch + 1}, kept.with_suffix(".part"))
        kept.with_suffix(".part").replace(kept)
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}: loss {float(total) / batches:.4f}, {seconds:.1f} s", flush=True)
    weights = {key: value.contiguous().cpu() for key, value in model.state_dict().items()}
    save_file(weights, asked.out / f"{name}.safetensors")
    found = accuracy(model, test_x, test_y)
    recipe = {key: value for key, value in vars(asked).items() if key not in ("data", "out")}
    print(json.dumps({**recipe, "accuracy": found, "images": len(x), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
