import torchvision_schemas  # noqa: F401  isort: skip  before OpenOOD

import importlib
import pickle
import sys
from collections.abc import Iterator
from copy import deepcopy
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.data.digits import held_out_digits
from gaia_fast.errors import ArgumentError, BackendError, LayerError, ModelError
from gaia_fast.models import digits_resnet

import openood_stand_in
from docstring_examples import check_examples

OURS = "gaia_fast.integrations.openood"
KINDS = {"GAIAZPostprocessor": GaiaZ, "GAIAAPostprocessor": GaiaA}


def why_not_the_library() -> str | None:
    """Why OpenOOD cannot be imported here; None where it can."""
    try:
        importlib.import_module("openood.postprocessors")
    except Exception as error:
        return f"OpenOOD cannot be imported: {error!r}"
    return None


def forget(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for name in [name for name in sys.modules if name in packages or name.startswith(tuple(f"{p}." for p in packages))]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture(params=["stand-in", "OpenOOD"])
def postprocessors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, over the library or what stands in for it; both move batches to a GPU, which may not be here."""
    if request.param == "stand-in":
        forget(monkeypatch, "openood", OURS)
        for name, module in openood_stand_in.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    elif (reason := why_not_the_library()) is not None:
        pytest.skip(reason)
    else:
        forget(monkeypatch, OURS)
    monkeypatch.setattr(Tensor, "cuda", lambda self, *_, **__: self)
    yield importlib.import_module(OURS)
    sys.modules.pop(OURS, None)  # the classes of one base are not left to who wants the other


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return digits_resnet(pretrained=True)


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    x, labels = held_out_digits()
    return x[:24], labels[:24]


@pytest.fixture
def loader(images: tuple[Tensor, Tensor]) -> list[dict[str, Tensor]]:
    x, labels = images
    return [{"data": x[at : at + 10], "label": labels[at : at + 10]} for at in range(0, len(x), 10)]


@pytest.mark.parametrize("name", KINDS)
def test_inference_gives_predictions_and_scores_with_their_sign_turned(
    postprocessors: ModuleType, name: str, net: nn.Module, images: tuple[Tensor, Tensor], loader: Any
) -> None:
    postprocessor = getattr(postprocessors, name)()
    postprocessor.setup(net, {"train": loader}, {"val": loader})
    pred, conf, label = postprocessor.inference(net, loader, progress=False)
    scored = [KINDS[name](net).score(batch["data"]) for batch in loader]
    np.testing.assert_array_equal(conf, -torch.cat([each.score for each in scored]).numpy())
    np.testing.assert_array_equal(pred, torch.cat([each.logits for each in scored]).argmax(1).numpy())
    np.testing.assert_array_equal(label, images[1].numpy())
    assert conf.shape == (24,)
    assert pred.dtype == label.dtype == int
    assert not postprocessor.APS_mode
    assert not postprocessor.hyperparam_search_done


def test_larger_confidence_is_in_distribution(
    postprocessors: ModuleType, net: nn.Module, images: tuple[Tensor, Tensor]
) -> None:
    postprocessor = postprocessors.GAIAZPostprocessor()
    _, inside = postprocessor.postprocess(net, images[0])
    _, outside = postprocessor.postprocess(net, torch.rand_like(images[0]))
    assert inside.mean() > outside.mean()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", KINDS)
def test_under_the_decorators_of_the_library_and_with_frozen_weights(
    postprocessors: ModuleType, name: str, mode: Any, net: nn.Module, images: tuple[Tensor, Tensor]
) -> None:
    frozen = deepcopy(net).requires_grad_(False)
    _, expected = getattr(postprocessors, name)().postprocess(net, images[0])
    with mode():
        _, found = getattr(postprocessors, name)().postprocess(frozen, images[0].clone())
    assert torch.equal(found, expected)
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in frozen.modules())
    assert all(each.grad is None and not each.requires_grad for each in frozen.parameters())


def test_the_detector_is_kept_for_a_network_and_follows_it(
    postprocessors: ModuleType, net: nn.Module, images: tuple[Tensor, Tensor]
) -> None:
    postprocessor = postprocessors.GAIAZPostprocessor()
    first = postprocessor.gaia(net)
    assert postprocessor.gaia(nn.DataParallel(net)) is first  # the network inside
    _, expected = postprocessor.postprocess(net, images[0])
    _, found = postprocessor.postprocess(nn.DataParallel(net), images[0])
    assert torch.equal(found, expected)

    other = deepcopy(net)
    with torch.no_grad():
        for each in other.parameters():
            each.mul_(0.5)
    _, found = postprocessor.postprocess(other, images[0])
    assert postprocessor.gaia(other) is not first
    assert torch.equal(found, -GaiaZ(other)(images[0]))


def test_a_search_sets_layers_and_norm(
    postprocessors: ModuleType, net: nn.Module, images: tuple[Tensor, Tensor], loader: Any
) -> None:
    postprocessor = postprocessors.GAIAZPostprocessor(APS_mode=True)
    assert postprocessor.APS_mode
    assert postprocessor.get_hyperparam() == [None, 2.0]
    searched = openood_stand_in.search(postprocessor, net, loader, loader)
    assert [None, 2.0] in searched  # the paper's
    assert postprocessor.get_hyperparam() == searched[-1] == ["last_stage", 4.0]
    _, conf = postprocessor.postprocess(net, images[0])
    assert torch.equal(conf, -GaiaZ(net, layers="last_stage", p=4.0)(images[0]))
    with pytest.raises(ValueError, match="zip"):
        postprocessor.set_hyperparam(["last_stage"])


def test_options_of_the_config_and_of_the_caller(
    postprocessors: ModuleType, net: nn.Module, images: tuple[Tensor, Tensor]
) -> None:
    """A config gives None for what is not in it, as the library's does."""
    given = SimpleNamespace(
        APS_mode=True, postprocessor_args={"p": 1.5, "fusion": "inner"}, postprocessor_sweep={"p": [1, 3]}
    )
    postprocessor = postprocessors.GAIAAPostprocessor(SimpleNamespace(postprocessor=given), p=3.0)
    assert postprocessor.APS_mode
    assert postprocessor.args_dict == {"p": [1, 3]}
    _, conf = postprocessor.postprocess(net, images[0])
    assert torch.equal(conf, -GaiaA(net, fusion="inner", p=3.0)(images[0]))
    bare = SimpleNamespace(postprocessor=SimpleNamespace(postprocessor_args=None, postprocessor_sweep=None))
    postprocessor = postprocessors.GAIAAPostprocessor(bare)
    assert postprocessor.options == {}
    assert not postprocessor.APS_mode


def test_a_config_that_raises_for_what_it_has_not(postprocessors: ModuleType) -> None:
    """A dictionary with attributes, as that of the library's releases."""

    class Config(dict[str, Any]):
        def __getattr__(self, name: str) -> Any:
            return self[name]

    assert postprocessors.GAIAZPostprocessor(Config()).options == {}
    given = Config(postprocessor=Config(postprocessor_args=Config(p=3.0)))
    assert postprocessors.GAIAZPostprocessor(given).options == {"p": 3.0}


def test_what_is_wrong_is_said(postprocessors: ModuleType, net: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ArgumentError, match=r"GaiaZ has no option 'fusion'"):
        postprocessors.GAIAZPostprocessor(fusion="inner")
    swept = SimpleNamespace(postprocessor=SimpleNamespace(postprocessor_sweep={"temperature": [1]}))
    with pytest.raises(ArgumentError, match=r"postprocessor_sweep: GaiaA has no option 'temperature'"):
        postprocessors.GAIAAPostprocessor(swept)
    with pytest.raises(LayerError, match="nowhere"):
        postprocessors.GAIAZPostprocessor(layers=["nowhere"]).postprocess(net, images[0])
    with pytest.raises(ModelError, match="dict"):
        postprocessors.GAIAZPostprocessor().postprocess({"backbone": net}, images[0])
    with pytest.raises(ModelError, match="training mode"):
        postprocessors.GAIAZPostprocessor().postprocess(deepcopy(net).train(), images[0])


@pytest.mark.parametrize("name", KINDS)
def test_the_example_runs(postprocessors: ModuleType, name: str) -> None:
    check_examples(getattr(postprocessors, name))


def test_pickled_with_its_options(postprocessors: ModuleType, net: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    postprocessor = postprocessors.GAIAZPostprocessor(layers=["layer4"])
    _, expected = postprocessor.postprocess(net, images[0])
    again = pickle.loads(pickle.dumps(postprocessor))
    assert torch.equal(again.postprocess(net, images[0])[1], expected)


def test_without_openood_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, "openood", OURS)
    monkeypatch.setitem(sys.modules, "openood", None)
    with pytest.raises(BackendError, match=r"pip install git\+https://github.com/Jingkang50/OpenOOD"):
        importlib.import_module(OURS)
