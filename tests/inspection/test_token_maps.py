"""Maps of tokens: which axis is that of the channels, what is scored, and what is refused."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaia_fast import Gaia, GaiaA, GaiaZ
from gaia_fast.errors import CompilationError, LayerError, ModelError
from gaia_fast.inspection.stages import resolved
from gaia_fast.options import EngineOption, FusionOption
from gaia_fast.reference import relative_error

from deployed import OF_TOKENS, ConvNextLike, EitherLayerNorm, LayerNorm2d, OwnLayerNorm, SwinLike, VitLike, built
from zoo import build, images

ENGINES = ["hooks", "reference", "compiled"]


def options(engine: EngineOption) -> Any:
    return {"engine": engine, "runtime": "native"} if engine == "compiled" else {"engine": engine}


def by_hand(model: nn.Module, names: list[str], x: Tensor, of: str) -> list[Tensor]:
    """The abnormality of each map, (N, C): autograd on copies of the norms' outputs, channels last."""
    seen: list[Tensor] = []
    phi: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        seen.append(output)
        return output.clone()

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(keep) for name in names]
    handles.append(modules["head"].register_forward_pre_hook(lambda _, args: phi.append(args[0])))
    logits = model(x)
    for handle in handles:
        handle.remove()
    target = logits.max(1).values.sum() if of == "gaia-z" else phi[0].sum()
    gradients = torch.autograd.grad(target, seen)
    positions = [tuple(range(1, g.ndim - 1)) for g in gradients]
    if of == "gaia-z":
        return [(g != 0).to(g.dtype).mean(axes) for g, axes in zip(gradients, positions, strict=True)]
    return [g.mean(axes).abs() for g, axes in zip(gradients, positions, strict=True)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", OF_TOKENS)
def test_scores_are_what_autograd_gives_with_channels_last(name: str, engine: EngineOption) -> None:
    make, names = OF_TOKENS[name]
    model, x = built(make), images(3)
    double = copy.deepcopy(model).double()
    cases: tuple[tuple[Any, str, dict[str, str]], ...] = ((GaiaZ, "gaia-z", {}), (GaiaA, "gaia-a", {"fusion": "inner"}))
    for detector, of, more in cases:
        expected = by_hand(double, names, x.double(), of)
        truth = torch.cat(expected, 1).norm(dim=1)
        found = detector(model, layers="token_maps", **more, **options(engine)).score(x, return_matrix=True)
        assert relative_error(found.score, truth) < 1e-5
        for row, each in enumerate(expected):
            torch.testing.assert_close(found.matrix[:, row, : each.shape[1]], each.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OF_TOKENS)
def test_all_maps_of_tokens_are_those_of_the_norms_by_name(name: str) -> None:
    make, names = OF_TOKENS[name]
    model, x = built(make), images(3)
    assert torch.equal(GaiaZ(model, layers="token_maps")(x), GaiaZ(model, layers=names)(x))


def test_positions_are_all_axes_between_images_and_channels() -> None:
    """The class token is one of them."""
    plan = GaiaZ(built(VitLike), layers="token_maps").plan(images(2))
    assert [(each.channels, each.height, each.width) for each in plan.maps] == [(12, 17, 1)] * 5
    assert "layers   token_maps: experimental, see docs/transformers.md" in str(plan)
    plan = GaiaZ(built(SwinLike), layers="token_maps").plan(images(2))  # a norm of vectors is passed over
    assert [(each.name, each.channels, each.height, each.width) for each in plan.maps] == [
        ("stage.0", 10, 4, 4),
        ("norm", 14, 4, 4),
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_hidden_units_may_be_named(engine: EngineOption) -> None:
    """What a linear layer gives before a ReLU, here in place, is what GAIA-Z was made for."""
    model, x = built(VitLike), images(2)
    found = GaiaZ(model, layers=["blocks.0.mlp.0"], **options(engine)).score(x, return_matrix=True)
    hidden: list[Tensor] = []
    handle = model.get_submodule("blocks.0.mlp.1").register_forward_hook(lambda *args: hidden.append(args[2] > 0))
    model(x)
    handle.remove()
    assert found.matrix is not None
    torch.testing.assert_close(found.matrix[:, 0], hidden[0].float().mean(1))
    assert 0 < float(found.matrix.mean()) < 1


@pytest.mark.parametrize("engine", ENGINES)
def test_maps_that_are_written_in_place_count_as_they_were(engine: EngineOption) -> None:
    class Written(VitLike):
        def forward(self, x: Tensor, *, by_hand: bool = False) -> Tensor:
            tokens = self.proj(x).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
            y = self.norm(tokens)
            y = y * 2 if by_hand else y.mul_(2)
            y[:, 0].add_(1.0)
            return self.head((F.relu(y) if by_hand else F.relu_(y)).mean(1))

    model, x = built(Written), images(3)
    found = GaiaZ(model, layers=["norm"], **options(engine)).score(x, return_matrix=True)
    model.forward = partial(model.forward, by_hand=True)
    (expected,) = by_hand(model, ["norm"], x, "gaia-z")
    assert found.matrix is not None
    assert torch.equal(found.matrix[:, 0], expected)
    assert 0 < float(expected.mean()) < 1


def test_several_scores_at_once_and_an_empty_batch() -> None:
    model, x = built(VitLike), images(3)
    both = Gaia(model, scores=("gaia-z", "gaia-a", "msp"), layers="token_maps", fusion="inner")
    found = both.score(x)
    assert torch.equal(found.scores["gaia-z"], GaiaZ(model, layers="token_maps")(x))
    assert torch.equal(found.scores["gaia-a"], GaiaA(model, layers="token_maps", fusion="inner")(x))
    assert GaiaZ(model, layers="token_maps")(x[:0]).shape == (0,)


def test_never_by_default_where_there_are_norms_of_maps() -> None:
    model, x = built(lambda: ConvNextLike(LayerNorm2d)), images(2)
    assert "block.0" not in [each.name for each in GaiaZ(model).plan(x).maps]
    assert [each.name for each in GaiaZ(model, layers="token_maps").plan(x).maps] == ["block.0"]
    assert [each.name for each in GaiaZ(model, layers=["stem", "block.0"]).plan(x).maps] == ["stem.1", "block.0"]


def test_a_network_without_tokens_has_none() -> None:
    with pytest.raises(LayerError, match="VggLike has no norm over the last axis"):
        GaiaZ(build("vgg_like"), layers="token_maps")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fusion", ["division", "output"])
@pytest.mark.parametrize("make", [VitLike, SwinLike])
def test_gaia_a_has_no_output_component_where_the_head_reads_tokens(
    make: Any, fusion: FusionOption, engine: EngineOption
) -> None:
    model, x = built(make), images(2)
    with pytest.raises(LayerError, match=r"'head' reads the tokens of '\w+'.*fusion='inner' and 'top1'"):
        GaiaA(model, layers="token_maps", fusion=fusion, **options(engine)).score(x)
    plan = GaiaA(model, layers="token_maps", fusion="top1", **options(engine)).plan(x)
    assert (plan.head, plan.last) == (None, None)  # "top1" needs neither


def test_a_container_of_tokens_is_refused_with_the_norms_in_it() -> None:
    with pytest.raises(
        LayerError, match=r"'blocks.0' gives a Tensor of shape \(2, 17, 12\).*layers=\['blocks.0.norm1'"
    ):
        GaiaZ(built(VitLike), layers=["blocks.0"])(images(2))
    # Four axes, and they are not those of a feature map.
    double = nn.Sequential(nn.LayerNorm(10), nn.Linear(10, 10))
    model = built(SwinLike)
    model.stage = double.eval()
    model.norm, model.last = nn.LayerNorm(10).eval(), nn.Linear(10, 6).eval()
    with pytest.raises(LayerError, match=r"'stage' gives a map .* channels may come last.*layers=\['stage.0'\]"):
        GaiaZ(model, layers=["stage"])(images(2))


class OwnForward(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_axes_that_look_alike_are_refused() -> None:
    """Four channels, of four columns: nothing tells which axis is which."""
    trunk = nn.Sequential(nn.Conv2d(3, 4, 4, 4), OwnForward(4), nn.ReLU())
    model = nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    with pytest.raises(LayerError, match=r"'0.1' gives a map of shape \(2, 4, 4, 4\), whose channels may be"):
        GaiaZ(model, layers=["0.1"])(images(2))
    (found,) = GaiaZ(model, layers=["0.1"]).plan(images(2, 32)).maps  # there they are told by their size
    assert (found.channels, found.height, found.width) == (4, 8, 8)


def test_tokens_before_images_are_refused() -> None:
    class TokensFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj, self.attn = nn.Conv2d(3, 4, 4, 4), nn.MultiheadAttention(4, 2)
            self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.proj(x).flatten(2).permute(2, 0, 1)
            return self.head(self.norm(tokens + self.attn(tokens, tokens, tokens)[0]).mean(0))

    for layers in ("token_maps", ["norm"]):
        with pytest.raises(ModelError, match="'attn' is a MultiheadAttention with batch_first=False"):
            GaiaZ(TokensFirst().eval(), layers=layers)


class TokensFirst(nn.Module):
    """Maps (T, N, C) of 16 tokens, and attention by hand."""

    def __init__(self, images: int = 0) -> None:
        super().__init__()
        self.proj, self.norm, self.head = nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6), nn.Linear(6, 5)
        self.images = images

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.proj(x).flatten(2).permute(2, 0, 1)
        if self.images:
            tokens = tokens.view(16, self.images, 6)
        y = self.norm(tokens)
        weights = torch.softmax(torch.einsum("tnc,snc->nts", y, y), -1)
        return self.head(torch.einsum("nts,snc->tnc", weights, y).mean(0))


@pytest.mark.parametrize("made_for", [0, 16])
def test_as_many_images_as_tokens_are_no_tokens(made_for: int) -> None:
    model = built(lambda: TokensFirst(made_for))
    with pytest.raises(LayerError, match="'norm' gives a map of tokens with as many tokens as there are images, 16"):
        GaiaZ(model, layers="token_maps")(images(16))
    with pytest.raises(LayerError, match="first axis is not known to be that of the images; name other layers"):
        resolved(["norm"], model, images(16))
    with pytest.raises(LayerError, match="first axis is not known to be that of the images"):
        GaiaZ(model, layers=["norm"])(images(16))


def test_as_many_images_as_tokens_are_seen_as_fewer_images_are() -> None:
    vit, swin = built(VitLike), built(SwinLike)
    x = images(17)
    torch.testing.assert_close(
        GaiaZ(vit, layers="token_maps")(x)[:3], GaiaZ(vit, layers="token_maps")(x[:3]), rtol=1e-6, atol=0
    )
    assert resolved("token_maps", vit, x) == OF_TOKENS["vit"][1]
    assert resolved(["stage.0"], swin, images(4)) == ["stage.0"]
    assert resolved("token_maps", swin, images(4)) == OF_TOKENS["swin"][1]


@pytest.mark.parametrize("rows", [8, 10])
@pytest.mark.parametrize("make", [OwnLayerNorm, EitherLayerNorm])
def test_a_norm_that_says_its_channels_come_last_gives_tokens(make: Any, rows: int) -> None:
    """ConvNeXt's own, also where it has as many channels as there are rows."""
    model, x = built(lambda: ConvNextLike(LayerNorm2d)), images(3, 2 * rows)
    assert isinstance(model, ConvNextLike)
    norm = make(10, "channels_last").eval()
    norm.load_state_dict(model.block[0].state_dict())
    plain = GaiaZ(model, layers=["block.0"])(x)
    model.block[0] = norm
    detector = GaiaZ(model, layers=["block.0"])
    assert torch.equal(detector(x), plain)
    assert [(each.channels, each.height, each.width) for each in detector.plan(x).maps] == [(10, rows, rows)]
    assert torch.equal(GaiaZ(model, layers="token_maps")(x), plain)


@pytest.mark.parametrize("engine", ["hooks", "reference"])
def test_a_norm_that_runs_beside_its_calls_is_seen(engine: EngineOption) -> None:
    class Twice(VitLike):
        def forward(self, x: Tensor) -> Tensor:
            tokens = self.norm.forward(F.relu(self.norm(self.proj(x).flatten(2).transpose(1, 2))))
            return self.head(tokens.mean(1))

    with pytest.raises(ModelError, match="the layers 'norm' ran in a thread of the model's own, or by their `forward`"):
        GaiaZ(built(Twice), layers=["norm"], engine=engine)(images(2))


def test_onnx_has_no_attention_backwards_and_names_it() -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (see `make test`)")
    detector = GaiaZ(built(VitLike), layers="token_maps", engine="compiled", runtime="onnxruntime")
    with pytest.raises(CompilationError, match=r"cannot be written as ONNX: .*scaled_dot_product.*_backward"):
        detector.prepare(images(2))
