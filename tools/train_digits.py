"""Trains the demo's network on scikit-learn's digits and writes the weights that ship with the package.

    python tools/train_digits.py [OUT]

Seeded: the same machine and torch version give the same file. Takes less than a minute on one thread.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from gaia_fast.data.digits import held_out_digits, training_digits
from gaia_fast.files import replacing
from gaia_fast.models import digits_resnet

OUT = Path(__file__).parents[1] / "gaia_fast" / "models" / "digits_resnet.safetensors"
SEED, EPOCHS, BATCH, PEAK_RATE = 0, 40, 64, 0.1
TURN, SHIFT = 0.15, 0.1  # most of a rotation in radians, most of a shift as a share of half the side


def jitter(x: Tensor) -> Tensor:
    """The images, each rotated and shifted a little; what enters at the edges is the paper's colour."""
    angle = torch.empty(len(x)).uniform_(-TURN, TURN)
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = angle.cos()
    theta[:, 0, 1], theta[:, 1, 0] = -angle.sin(), angle.sin()
    theta[:, :, 2].uniform_(-SHIFT, SHIFT)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def accuracy(model: torch.nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    with torch.inference_mode():
        return float((model(x).argmax(1) == y).float().mean())


def main(out: Path) -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    x, y = training_digits()
    held_out = held_out_digits()
    model = digits_resnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=PEAK_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = EPOCHS * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    for epoch in range(EPOCHS):
        model.train()
        for chosen in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
            loss = F.cross_entropy(model(jitter(x[chosen])), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: loss {loss.item():.4f}, held-out accuracy {accuracy(model, *held_out):.4f}")
    share = accuracy(model, *held_out)
    # One entry only: safetensors writes several in an order that changes from run to run.
    with replacing(out) as written:
        save_file(model.state_dict(), written, metadata={"held_out_accuracy": f"{share:.4f}"})
    print(f"{out}: {out.stat().st_size / 1024:.0f} kB, held-out accuracy {share:.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
