"""What GAIA tells on the maps of tokens of a transformer, beside a network of the paper's kind: docs/transformers.md.

    python benchmarks/token_maps.py --results benchmarks/results/token-maps.json

Trains two small vision transformers (torchvision's) on scikit-learn's digits, one with GELU and one with ReLU, seeded;
the ResNet is the one that ships with the package. OOD sets are those of the package's demo. A quarter of an hour on
a busy core.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from conftest import machine
from torch import Tensor, nn
from torch.nn import functional as F

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.data.digits import OOD_PICTURES, held_out_digits, ood_set, training_digits
from gaia_fast.evaluation.metrics import ood_metrics
from gaia_fast.logit_scores import logit_score
from gaia_fast.models import digits_resnet
from gaia_fast.options import FusionOption

import torchvision_schemas  # noqa: F401  (before torchvision)

SEED, BATCH, PEAK_RATE, SHIFT = 0, 64, 2e-3, 3
BLOCKS, WIDTH = 4, 48


def transformer(activation: type[nn.Module]) -> nn.Module:
    """A vision transformer of 8x8 patches of 4x4 pixels, and a class token."""
    from torchvision.models import VisionTransformer

    model = VisionTransformer(32, 4, BLOCKS, 4, WIDTH, 2 * WIDTH, num_classes=10)
    for block in model.encoder.layers:
        block.mlp[1] = activation()
    return model


def trained(model: nn.Module, epochs: int) -> nn.Module:
    """Trains on the digits, each batch shifted by a few pixels."""
    x, y = training_digits()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=epochs * (len(x) // BATCH))
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            down, right = torch.randint(0, 2 * SHIFT + 1, (2,)).tolist()
            padded = F.pad(x[chosen], [SHIFT] * 4, mode="replicate")
            loss = F.cross_entropy(model(padded[..., down : down + 32, right : right + 32]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def rows(
    network: str,
    model: nn.Module,
    layers: dict[str, list[str] | str | None],
    fusions: Sequence[FusionOption] = ("inner",),
) -> list[dict[str, object]]:
    """For each score and choice of layers: the AUROC on each OOD set; for GAIA-Z also the share of non-zeros."""
    x, y = held_out_digits()
    ood = {name: ood_set(name) for name in OOD_PICTURES}
    with torch.inference_mode():
        logits = {name: model(images) for name, images in {"": x, **ood}.items()}
    accuracy = float((logits[""].argmax(1) == y).float().mean())
    found = []

    def add(score: str, where: str, of: dict[str, Tensor], **more: object) -> None:
        auroc = {name: ood_metrics(of[""], of[name]).auroc for name in ood}
        average = sum(auroc.values()) / len(auroc)
        found.append({"network": network, "accuracy": accuracy, "score": score, "layers": where, **more})
        auroc = {name: round(value, 4) for name, value in auroc.items()}
        found[-1] |= {"auroc": auroc, "average": round(average, 4)}
        print(json.dumps(found[-1]), flush=True)

    add("MSP", "", {name: logit_score("msp", each) for name, each in logits.items()})
    for where, names in layers.items():
        detector = GaiaZ(model, layers=names)
        channels = detector.plan(x[:1]).channels
        scored = {name: detector.score(images, return_matrix=True) for name, images in {"": x, **ood}.items()}
        shares = {
            name or "digits": round(float(each.matrix.double().sum((1, 2)).mean()) / channels, 4)
            for name, each in scored.items()
            if each.matrix is not None
        }
        add("GAIA-Z", where, {name: each.score for name, each in scored.items()}, nonzero=shares)
        for fusion in fusions:
            gaia_a = GaiaA(model, layers=names, fusion=fusion)
            add(f"GAIA-A, {fusion}", where, {name: gaia_a(images) for name, images in {"": x, **ood}.items()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--results", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = rows("ResNet, ReLU", digits_resnet(pretrained=True), {"norms": None}, ("inner", "division"))
    for name, activation in (("ViT, GELU", nn.GELU), ("ViT, ReLU", nn.ReLU)):
        torch.manual_seed(SEED)
        hidden = [f"encoder.layers.encoder_layer_{index}.mlp.0" for index in range(BLOCKS)]
        layers: dict[str, list[str] | str | None] = {"LayerNorms": "token_maps", "hidden units": hidden}
        found += rows(name, trained(transformer(activation), asked.epochs), layers)
    if asked.results is not None:
        asked.results.write_text(json.dumps({**machine(), "epochs": asked.epochs, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
