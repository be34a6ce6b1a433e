import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from gaia_fast import GaiaA
from gaia_fast.data.digits import held_out_digits
from gaia_fast.models import digits_resnet

DIGITS = ("--arch", "digits_resnet", "--preset", "digits")


def test_prints_the_plans(run: Callable[..., Result], digits_npz: Path) -> None:
    found = run("layers", digits_npz, *DIGITS, "--layers", "gaia-a=layer3,layer4", "--json", "out.json")
    assert found.exit_code == 0
    model = digits_resnet(pretrained=True)
    expected = str(GaiaA(model, layers=["layer3", "layer4"]).plan(held_out_digits()[0][:1]))
    assert expected in found.stdout
    assert "12 layers, 360 channels" in found.stdout
    with open("out.json") as file:
        plans = json.load(file)["plans"]
    assert list(plans) == ["gaia-a", "gaia-z"]
    assert plans["gaia-a"]["channels"] == 288
    assert plans["gaia-a"]["maps"][0] == {"name": "layer3.0.bn1", "channels": 32, "height": 8, "width": 8}
    assert (plans["gaia-a"]["head"], plans["gaia-a"]["last"]) == ("linear", "layer4")
    assert plans["gaia-z"]["engine"]["name"] == "hooks"


@pytest.mark.parametrize(
    ("options", "first_map"),
    [(("--size", "16"), "16x16"), (("--size", "16x24"), "16x24"), (("--preset", "cifar10"), "32x32")],
)
def test_size_without_an_image(run: Callable[..., Result], options: tuple[str, ...], first_map: str) -> None:
    found = run("layers", "--arch", "digits_resnet", "--method", "gaia-z", *options)
    assert found.exit_code == 0
    assert found.stdout.splitlines()[4].split() == ["bn1", "8", first_map]


def test_layers_of_one_method_replace_those_of_all(run: Callable[..., Result]) -> None:
    found = run("layers", *DIGITS, "--layers", "layer2", "--layers", "gaia-a=layer3", "--layers", "gaia-a=layer4,bn1")
    first, second = found.stdout.split("\n\n")
    assert "7 layers, 296 channels" in first
    assert "layer2" not in first
    assert "3 layers, 48 channels" in second


def test_untrained_networks_have_layers_too(run: Callable[..., Result]) -> None:
    found = run("layers", "--arch", "resnet18", "--num-classes", "3", "--preset", "cifar10", "--backend", "torch")
    assert found.exit_code == 0
    assert "backend  torch: asked for" in found.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "size of the input is unknown"),
        (("--size", "0"), "--size"),
        (("--size", "32x"), "--size"),
        (("picture.png", "--size", "32"), "not both"),
    ],
)
def test_wrong_usage(run: Callable[..., Result], options: tuple[str, ...], message: str) -> None:
    found = run("layers", "--arch", "digits_resnet", *options)
    assert found.exit_code == 2
    assert message in found.stderr


def test_image_that_cannot_be_read(run: Callable[..., Result]) -> None:
    with open("x.png", "w") as file:
        file.write("no image")
    found = run("layers", "x.png", *DIGITS)
    assert found.exit_code == 1
    assert "no image in x.png can be read" in found.stderr


def test_layer_that_is_not_there(run: Callable[..., Result]) -> None:
    found = run("layers", *DIGITS, "--layers", "layer9", "--layers", "layer4")
    assert found.exit_code == 1
    assert "no module named 'layer9'; did you mean" in found.stderr


def test_a_network_without_norms_is_told_what_to_inspect_and_shown_it(run: Callable[..., Result]) -> None:
    vgg = ("layers", "--model", "deployed:PlainVgg", "--size", "16", "--method", "gaia-z")
    found = run(*vgg)
    assert found.exit_code == 1
    assert "layers='convolutions', which is layers=['features.0', 'features.3', 'features.5']" in found.stderr
    found = run(*vgg, "--layers", "convolutions")
    assert [line.split() for line in found.stdout.splitlines()[3:]] == [
        ["layers", "convolutions"],
        ["layer", "channels", "map"],
        ["features.0", "8", "16x16"],
        ["features.3", "12", "8x8"],
        ["features.5", "10", "8x8"],
        ["3", "layers,", "30", "channels"],
    ]


def test_maps_of_tokens_are_shown_as_experimental(run: Callable[..., Result]) -> None:
    vit = ("layers", "--model", "deployed:VitLike", "--size", "16", "--layers", "token_maps")
    found = run(*vit, "--method", "gaia-z")
    assert "layers   token_maps: experimental, see docs/transformers.md" in found.stdout
    assert "blocks.0.norm1        12  17x1" in found.stdout
    found = run(*vit)
    assert found.exit_code == 1
    assert "fusion='inner' and 'top1' do without it" in found.stderr
