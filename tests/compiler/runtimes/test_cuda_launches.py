"""How many kernels a program starts on a GPU, pinned: read off the code that PyTorch's compiler makes for one.

A number that has become smaller is to be written down here; one that has become larger, explained. Another release of
PyTorch may fuse otherwise.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache
from sys import maxsize

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from gaia_fast.compiler.frontend.capture import capture
from gaia_fast.compiler.ir.passes import Pass, clean_up
from gaia_fast.compiler.ir.rewriting import copy_of
from gaia_fast.compiler.pipeline import CAPTURED, cuda, cudnn, run_passes
from gaia_fast.compiler.program import build
from gaia_fast.compiler.sparsity import Sparsity, analyse
from gaia_fast.inspection.head import find_head
from gaia_fast.inspection.layers import inspected_layers
from gaia_fast.inspection.requests import Request
from gaia_fast.method import Method
from gaia_fast.models import resnet34
from gaia_fast.options import Measure

pytest.importorskip("triton", reason="the triton package, whose kernels the compiler writes, is not installed")

from cuda_launches import count, launches, operators
from graphs import rewritten


def resnet50() -> nn.Module:
    import torchvision_schemas  # noqa: F401  (before torchvision)

    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    return models.resnet50()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet34": (lambda: resnet34(10), 32),
    "resnet50": (resnet50, 224),
}
# Of GAIA-A the layers of the last two stages. The plain program is the same for any number of images. GAIA-Z's has one
# more, at its end; another where maps are beyond the cache, and the kernels that write them count: the mean behind the
# last one is no part of it then; and another for what a max-pooling chooses.
LAUNCHES = {
    ("resnet34", "plain", 1): 71,
    ("resnet34", "plain", 128): 71,
    ("resnet34", "gaia_z", 1): 72,
    ("resnet34", "gaia_z", 128): 73,
    ("resnet34", "gaia_a", 1): 110,
    ("resnet34", "gaia_a", 128): 110,
    ("resnet50", "plain", 1): 105,
    ("resnet50", "gaia_z", 1): 108,
    ("resnet50", "gaia_z", 128): 108,
    ("resnet50", "gaia_a", 1): 200,
}


@cache
def program(network: str, what: str) -> tuple[fx.GraphModule, torch.Tensor]:
    """A network with random weights, as a program, and an image for it."""
    make, size = NETWORKS[network]
    torch.manual_seed(0)
    model = make().eval()
    x = torch.randn(2, 3, size, size)
    if what == "gaia_a":
        method, names = Method(Measure.GAIA_A), ["layer3", "layer4"]
    else:
        method, names = Method(Measure.GAIA_Z), None
    request = Request(method, tuple(inspected_layers(model, names)))
    with torch.no_grad():
        head = find_head(model, x, None)
        captured = capture(model, x, list(request.layers), head)
        run_passes(CAPTURED, captured.graph)
        sparsity = None
        if what != "gaia_a":
            sparsity = [each if isinstance(each, Sparsity) else None for each in analyse(captured.graph.graph)]
        made = build(captured, [request], head, sparsity)
    graph = made.graph
    if what == "plain":
        graph = copy_of(graph)
        output = graph.graph.output_node()
        output.args = ((output.args[0][made.outputs.index("logits")],),)
        clean_up(graph)
    return graph, x[:1]


@pytest.mark.parametrize(("network", "what", "images"), LAUNCHES)
def test_launches(network: str, what: str, images: int) -> None:
    found = launches(*program(network, what), images)
    assert found.total() == LAUNCHES[network, what, images], "\n".join(
        f"{n:4} {name}" for name, n in found.most_common()
    )


# Operator by operator: without fused convolutions, with all of them fused, and with overflow looked for besides. The
# same for any number of images.
OPERATORS = {
    ("resnet34", "plain"): (124, 39, 45),
    ("resnet34", "gaia_z"): (73, 40, 46),
    ("resnet50", "plain"): (175, 57, 67),
    ("resnet50", "gaia_z"): (117, 67, 77),
}
COUNTED_AT_THE_END = cuda(1, maxsize)
FORMS: tuple[tuple[Pass, ...], ...] = (
    cuda(1, 0),
    (*COUNTED_AT_THE_END, *cudnn()),
    (*COUNTED_AT_THE_END, *cudnn(hides_overflow=True)),
)


@pytest.mark.parametrize(("network", "what"), OPERATORS)
def test_operators(network: str, what: str) -> None:
    graph, _ = program(network, what)
    found = [operators(rewritten(form, graph)) for form in FORMS]
    assert tuple(each.total() for each in found) == OPERATORS[network, what], found


@pytest.mark.parametrize(("network", "relus", "residuals", "left"), [("resnet34", 17, 16, 3), ("resnet50", 33, 16, 4)])
def test_convolutions_that_are_fused(network: str, relus: int, residuals: int, left: int) -> None:
    graph, _ = program(network, "plain")
    found = operators(rewritten(FORMS[1], graph))
    rest = {"resnet34": {}, "resnet50": {"max_pool2d_with_indices": 1}}[network]
    assert found == {
        "clone": 1,  # the images
        "cudnn_convolution_relu": relus,
        "cudnn_convolution_add_relu": residuals,
        "convolution": left,  # of shortcuts, whose biases are in the others
        "mean": 1,
        "addmm": 1,
        **rest,
    }


def test_which_operators_are_counted() -> None:
    def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        y = torch.conv2d(x, weight) + torch.conv2d(x, weight, bias)
        return y[:, 1:].flatten(1).max(1).values.reshape(x.shape[0], 1).expand(-1, 3).t().exp()

    traced = make_fx(run, tracing_mode="symbolic")(torch.randn(2, 3, 4, 4), torch.randn(4, 3, 1, 1), torch.randn(4))
    assert operators(traced) == {"convolution": 2, "bias": 1, "add": 1, "max": 1, "exp": 1}


def test_convolutions_are_given_their_layout() -> None:
    """No map is laid out anew: channels-last reaches every convolution."""
    found = launches(*program("resnet34", "plain"), 1)
    assert found["convolution"] == 36
    assert found["triton_poi_fused_clone"] == 1  # the images


def test_maps_beyond_the_cache_are_counted_as_they_are_written() -> None:
    """One kernel behind each convolution that makes a map: bias, residual and ReLU are in no other."""
    found = launches(*program("resnet34", "gaia_z"), 128)
    assert found["convolution"] == 36
    assert found["torch.ops.gaia_fast.relu_forward_count.default"] == 33
    others = [name for name in found if name.startswith("triton")]
    assert not [name for name in others if "relu" in name or "convolution" in name or "add" in name]


def test_what_max_poolings_choose_is_counted_by_their_indices() -> None:
    """ResNet-50's stem: the pooling, one map of a quarter of the size, and its sum in two steps."""
    found = launches(*program("resnet50", "gaia_z"), 1)
    assert sum(n for name, n in found.items() if "max_pool2d" in name) == 2
    assert not [name for name in found if "scatter" in name]


def test_what_is_counted() -> None:
    code = """
class Runner:
    def call(self, args):
        x, = args
        args.clear()
        with torch.cuda._DeviceGuard(0):
            buf0 = empty_strided_cuda((2, 3), (3, 1), torch.float32)
            raw_stream0 = get_raw_stream(0)
            triton_poi_fused_relu_0.run(x, buf0, 6, stream=raw_stream0)
            triton_poi_fused_relu_12.run(buf0, buf0, 6, stream=raw_stream0)
            buf1 = extern_kernels.convolution(buf0, _frozen_param0, stride=(1, 1))
            extern_kernels.addmm(buf1, x, x, out=buf0)
            buf2 = torch.ops.gaia_fast.frobenius.default(buf1)
            buf0.copy_(reinterpret_tensor(buf1, (2, 3), (3, 1), 0))
        return (buf2,)
"""
    expected = {
        "triton_poi_fused_relu": 2,
        "convolution": 1,
        "addmm": 1,
        "torch.ops.gaia_fast.frobenius.default": 1,
        "buf0.copy_": 1,
    }
    assert count(code) == Counter(expected)
