"""Which maps are inspected, and where the head is found."""

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.errors import LayerError
from gaia_fast.inspection.head import find_head
from gaia_fast.inspection.layers import inspected_layers

from zoo import Pooled, build, conv_norm, image_size, images


def names(model: nn.Module, layers: list[str] | None = None) -> list[str]:
    return [layer.name for layer in inspected_layers(model, layers)]


def test_every_norm_by_default() -> None:
    assert names(build("strided_shortcut")) == ["stem.1", "residual.1", "residual.4", "shortcut.1"]
    assert len(names(build("resnet34"))) == 36
    assert len(names(build("wrn_40_2"))) == 37
    assert names(build("group_norm")) == ["trunk.1", "trunk.4"]


def test_a_container_stands_for_the_norms_below_it() -> None:
    model = build("resnet34")
    assert names(model, ["layer3", "layer4"]) == [n for n in names(model) if n.startswith(("layer3", "layer4"))]
    assert names(model, ["layer4.0.shortcut"]) == ["layer4.0.shortcut.1"]


def test_names_are_taken_in_the_model_s_order_and_once() -> None:
    assert names(build("strided_shortcut"), ["residual", "stem.1", "residual.1"]) == [
        "stem.1",
        "residual.1",
        "residual.4",
    ]


def test_a_module_without_norms_below_is_inspected_itself() -> None:
    assert names(build("vgg_like"), ["features.0", "pool"]) == ["features.0", "pool"]


def test_one_name_may_come_as_a_string() -> None:
    assert names(build("resnet34"), "layer4.2") == ["layer4.2.bn1", "layer4.2.bn2"]  # type: ignore[arg-type]


def test_an_unknown_name_lists_near_matches() -> None:
    with pytest.raises(LayerError, match="no module named 'layer5'.*'layer4'"):
        inspected_layers(build("resnet34"), ["layer5"])
    with pytest.raises(LayerError, match="no module named ''"):
        inspected_layers(build("resnet34"), [""])
    with pytest.raises(LayerError, match="it has: 'features'"):
        inspected_layers(build("vgg_like"), ["xyzzy"])


def test_nothing_to_inspect() -> None:
    bare = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    with pytest.raises(LayerError, match="has no normalisation layer"):
        GaiaZ(bare)
    with pytest.raises(LayerError, match="inspects nothing"):
        GaiaZ(bare, layers=[])
    assert GaiaZ(bare, layers=["0"])(images(2, 8)).shape == (2,)


def test_a_layer_asked_for_must_give_a_map() -> None:
    with pytest.raises(LayerError, match=r"'classifier.0' gives a Tensor of shape \(2, 16\)"):
        GaiaZ(build("vgg_like"), layers=["classifier.0"])(images(2))


def test_a_layer_asked_for_must_be_called() -> None:
    model = build("vgg_like")
    model.spare = nn.BatchNorm2d(3).eval()
    assert len(GaiaZ(model).plan(images(1)).maps) == 2  # by default, what is not called is not inspected
    for engine in ("hooks", "reference"):
        with pytest.raises(LayerError, match="layers 'spare' made no feature map"):
            GaiaZ(model, layers=["features", "spare"], engine=engine)(images(1))
    with pytest.raises(LayerError, match="layers 'spare' made no feature map"):
        GaiaZ(model, layers=["features", "spare"]).plan(images(1))


def test_norms_that_give_no_map_are_passed_over_by_default() -> None:
    class GroupsOfVectors(Pooled):
        def __init__(self) -> None:
            super().__init__(nn.Sequential(*conv_norm(3, 4)), 4)
            self.flat = nn.GroupNorm(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.flat(self.trunk(x).mean((2, 3))))

    plan = GaiaZ(GroupsOfVectors().eval()).plan(images(2))
    assert [each.name for each in plan.maps] == ["trunk.1"]


def test_a_norm_called_twice_is_two_layers() -> None:
    plan = GaiaZ(build("shared_norm")).plan(images(2))
    assert [(each.name, each.height) for each in plan.maps] == [("norm", 16), ("norm (call 2)", 8)]


@pytest.mark.parametrize(
    ("name", "head", "last"),
    [
        ("resnet34", "linear", "layer4"),  # the authors pool by a function: A_last is stage 4's output
        ("wrn_40_2", "fc", "pool"),  # ... and by a module here: A_last is 1x1
        ("small_bit", "head.conv", "before_head"),
        ("vgg_like", "classifier.3", "pool"),
        ("convolution_head", "head", "trunk"),
        ("dense_like", "fc", "final"),
    ],
)
def test_the_head_and_a_last(name: str, head: str, last: str) -> None:
    with torch.no_grad():
        found = find_head(build(name), images(1, image_size(name)), None)
    assert (found.name, found.last_name) == (head, last)


def test_the_head_of_the_authors_three_networks_by_shape() -> None:
    """Whatever the module is called: A_last has 4x4, 1x1 and 1x1 positions."""
    for name, size in (("resnet34", 4), ("wrn_40_2", 1), ("small_bit", 1)):
        model, x = build(name), images(1, image_size(name))
        with torch.no_grad():
            found = find_head(model, x, None)
            shapes: list[torch.Size] = []
            handle = found.last_module.register_forward_hook(lambda _, __, out, shapes=shapes: shapes.append(out.shape))
            model(x)
            handle.remove()
        assert shapes[-1][2:] == (size, size)


class Copied(Pooled):
    """Its logits are a copy of the head's, unless there is one image: one row is contiguous also as a column."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).t().contiguous().t()


class CopiedForOne(Copied):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(1, 3, 16, 16))


def test_a_head_of_one_image_is_one_of_more() -> None:
    x = images(2)
    for batch in (x, x[:1]):
        with pytest.raises(LayerError, match="no linear or 1x1-convolution module of Copied returns the logits"):
            find_head(Copied(nn.Sequential(*conv_norm(3, 4), nn.ReLU()), 4).eval(), batch, None)
    assert find_head(CopiedForOne(nn.Sequential(*conv_norm(3, 4), nn.ReLU()), 4).eval(), x[:1], None).name == "fc"


class Scaled(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 10


def test_a_head_that_cannot_be_found_can_be_named() -> None:
    model, x = Scaled(nn.Sequential(*conv_norm(3, 4), nn.ReLU()), 4).eval(), images(2)
    with pytest.raises(LayerError, match="returns the logits themselves.*'fc'"):
        GaiaA(model)(x)
    by_name, by_module = GaiaA(model, head="fc")(x), GaiaA(model, head=model.fc)(x)
    assert torch.equal(by_name, by_module)


def test_a_head_that_does_not_exist_or_is_not_called() -> None:
    model = build("vgg_like")
    with pytest.raises(LayerError, match="no module named 'clasifier.3'.*'classifier.3'"):
        GaiaA(model, head="clasifier.3")
    with pytest.raises(LayerError, match="is not a module of"):
        GaiaA(model, head=nn.Linear(3, 2))(images(1))
    model.spare = nn.Linear(2, 2)
    with pytest.raises(LayerError, match="'spare' was not called"):
        GaiaA(model.eval(), head="spare")(images(1))
