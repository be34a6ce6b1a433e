"""What the compiled engine makes of networks that other people wrote; docs/architectures.md is written from this.

`GAIA_FAST_WRITE_DOCS=1 pytest tests/compiler/test_architectures.py` writes the table anew.
"""

import copy
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from gaia_fast import GaiaA, GaiaZ, models, reference
from gaia_fast.compiler.runtimes import make_runner
from gaia_fast.errors import CompilationError
from gaia_fast.inspection.proposals import convolutions
from gaia_fast.reference import Reference, relative_error

import zoo
from architectures import create

DOCUMENT = Path(__file__).parents[2] / "docs" / "architectures.md"
WRITE = os.environ.get("GAIA_FAST_WRITE_DOCS") == "1"

BUILT_IN = ["resnet18", "resnet34", "wrn_40_2", "digits_resnet"]
TORCHVISION = [
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "vgg11_bn",
    "densenet121",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "googlenet",
    "inception_v3",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "efficientnet_b0",
    "convnext_tiny",
    "vgg11",
]
TIMM = [
    "seresnet18",
    "resnetv2_50x1_bit",
    "resnetrs50",
    "regnety_002",
    "mobilenetv3_small_050",
    "hrnet_w18_small",
    "dla34",
    "cspresnet50",
    "legacy_xception",
    "repvgg_a0",
    "resnet26d",
    "ecaresnet26t",
    "skresnet18",
    "selecsls42b",
    "convnext_atto",
    "convnextv2_atto",
    "test_nfnet",
]
# Without norms: inspected are the convolutions before an activation.
WITHOUT_NORMS = ("torchvision/vgg11", "timm/test_nfnet")
NAMES = [
    *(f"gaia_fast/{name}" for name in BUILT_IN),
    "gaia_fast/BiT-S, narrow",
    *(f"torchvision/{name}" for name in TORCHVISION),
    *(f"timm/{name}" for name in TIMM),
]

INTRODUCTION = """# Architectures

What the compiled engine does for each network, with random weights and noise for images. The test that writes this
table (`tests/compiler/test_architectures.py`) compares every score with the float64 reference: GAIA-A to 1e-5 and
GAIA-Z to 1e-4, or twice what plain PyTorch is itself off by where that is more (under runtime "native", whose Winograd
convolutions round more, four times), or twice what weights do to the score that are off by as much as float32 rounds (a
unit that XX
GAIA-Z: "forward" are maps whose densities are counted in the forward pass; "adjoint" those whose gradient is computed,
with the commonest reason (in float64 where float32 rounds a unit of the example to zero). What is counted forward with
random weights may need the adjoint with trained ones, and the other way round: `print(detector.plan(images))` says it
for yours.

| network | input | maps | GAIA-A | GAIA-Z | why not forward |
|---|---|---|---|---|---|
"""

# name -> the row of the table, as the tests of this session find it.
ROWS: dict[str, str] = {}

# One of each family of rules; `-m architectures` runs the others, and so does CI, which selects nothing.
USUAL = ("gaia_fast/digits_resnet", "torchvision/vgg11_bn", "torchvision/mobilenet_v3_small", "timm/seresnet18")


def build(name: str) -> nn.Module:
    library, architecture = name.split("/")
    if library != "gaia_fast":
        return create(name)
    torch.manual_seed(0)
    if architecture.startswith("BiT"):
        return zoo.build("small_bit")
    return models.ARCHITECTURES[architecture]().eval()


def size_of(name: str) -> int:
    if name.startswith("gaia_fast/"):
        return 8 if "digits" in name else 32
    return 96 if "inception" in name or "xception" in name else 64


@pytest.fixture(scope="module", autouse=True)
def document() -> Iterator[None]:
    yield
    if WRITE:  # rows of networks that were not run stay
        lines = DOCUMENT.read_text().splitlines() if DOCUMENT.exists() else []
        rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")} | ROWS
        DOCUMENT.write_text(INTRODUCTION + "".join(f"{rows[name]}\n" for name in NAMES if name in rows))


def sensitivity(
    method: Callable[..., Reference], double: nn.Module, x: torch.Tensor, truth: torch.Tensor, rounding: float
) -> float:
    """By how much a score changes with weights that are off by `rounding`: a unit may open."""
    changes = []
    for seed in range(6):
        torch.manual_seed(seed)
        disturbed = copy.deepcopy(double)
        with torch.no_grad():
            for weight in disturbed.parameters():
                weight.mul_(1 + rounding * torch.randn_like(weight))
        changes.append(relative_error(method(disturbed, x.double()).score, truth))
    return max(changes)


def native_error(compiled: GaiaA | GaiaZ, x: torch.Tensor, truth: torch.Tensor) -> float:
    """The same program on the package's own kernels: the largest relative error, of images that need no hooks."""
    prepared = compiled.program(x)
    assert prepared is not None
    program = prepared.program
    found = dict(zip(program.outputs, make_runner("native", program, x, True)(x), strict=True))
    holds = (found["preconditions"] > 0).all(1) if "preconditions" in found else torch.ones(len(x), dtype=torch.bool)
    return relative_error(found["score"][holds], truth[holds])


@pytest.mark.parametrize(
    "name", [name if name in USUAL else pytest.param(name, marks=pytest.mark.architectures) for name in NAMES]
)
def test_compiled_scores_equal_the_reference(name: str) -> None:
    model, size = build(name), size_of(name)
    channels = 3 if name.startswith("timm/convnext") else next(iter(model.parameters())).shape[1]
    x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))
    double = copy.deepcopy(model).double()
    layers = convolutions(model) if name in WITHOUT_NORMS else None
    derivations = {}
    for detector, method, limit in ((GaiaZ, reference.gaia_z, 1e-4), (GaiaA, reference.gaia_a, 1e-5)):
        compiled = detector(model, layers=layers, engine="compiled", runtime="eager")
        compiled.prepare(x)
        derivations[detector] = compiled.plan(x).derivations
        method = partial(method, layers=layers)
        truth = method(double, x.double()).score
        plain = relative_error(method(model, x).score, truth)
        error = relative_error(compiled(x), truth)
        assert error <= max(limit, 2 * plain) or error <= 2 * sensitivity(method, double, x, truth, 1e-6)
        error = native_error(compiled, x, truth)  # F(4 x 4, 3 x 3) rounds more
        assert error <= max(limit, 4 * plain) or error <= 2 * sensitivity(method, double, x, truth, 4e-6)

    assert set(derivations[GaiaA]) == {"adjoint"}
    # A unit that float32 rounds to zero on some processors.
    if any("counts differently" in each for each in derivations[GaiaZ]):
        compiled = GaiaZ(double, layers=layers, engine="compiled", runtime="eager")
        compiled.prepare(x.double())
        derivations[GaiaZ] = compiled.plan(x.double()).derivations
    whys = Counter(each.partition(", ")[2] for each in derivations[GaiaZ] if each.startswith("adjoint"))
    forward, adjoint = len(derivations[GaiaZ]) - sum(whys.values()), sum(whys.values())
    counted = " + ".join(f"{n} {what}" for n, what in ((forward, "forward"), (adjoint, "adjoint")) if n)
    why = whys.most_common(1)[0][0] if whys else ""
    ROWS[name] = f"| {name} | {size}x{size} | {len(derivations[GaiaZ])} | adjoint | {counted} | {why} |"
    if not WRITE:
        assert ROWS[name] in DOCUMENT.read_text(), "docs/architectures.md is of another version; see above"


class Branching(nn.Module):
    """Looks at its images to decide what to do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        if y.sum() > 0:  # which no graph can hold
            y = y + 1
        return self.fc(torch.relu(y).mean((2, 3)))


def test_a_model_that_is_no_graph_is_refused_with_its_line_and_scored_by_hooks() -> None:
    model, x = Branching().eval(), torch.randn(2, 3, 8, 8)
    with pytest.raises(CompilationError, match=rf"Branching cannot be compiled: .* at {__file__}:\d+: .*hooks"):
        GaiaZ(model, engine="compiled").prepare(x)
    detector = GaiaZ(model).prepare(x)
    plan = detector.plan(x)
    assert plan.engine.name == "hooks"
    assert "not compiled: Branching cannot be compiled" in plan.engine.why
    assert torch.equal(detector(x), GaiaZ(model, engine="hooks")(x))
