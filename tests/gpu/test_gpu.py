"""What only a GPU shows: streams, devices, graphs. The tests of tests/ops run there too, on every backend."""

import gc
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import GaiaA, GaiaZ, backends, models, ops
from gaia_fast.errors import CompilationError, InputError, NonFiniteError
from gaia_fast.ops.check_results import check_results, pieces_of
from gaia_fast.ops.copy_and_check import copy_and_check, parts_of
from gaia_fast.ops.count_and_score import scratch_size
from gaia_fast.ops.tiling import tiling_for
from gaia_fast.options import BackendOption, RuntimeOption
from gaia_fast.reference import copy_in, relative_error

import zoo

BACKENDS = [name for name in ("triton", "cuda") if backends.available()[name]]
if not torch.cuda.is_available():
    pytest.skip("torch sees no CUDA device here", allow_module_level=True)

each_backend = pytest.mark.parametrize("backend", BACKENDS)
WIDTHS, AREAS = [3, 5], [0.5, 0.25]


def everything(g: Tensor, backend: BackendOption) -> tuple[Tensor, ...]:
    y, nonzero = ops.relu_forward_count(g, backend=backend)
    grad_in, moments = ops.relu_backward_moments(g, y, backend=backend)
    columns = ops.channel_moments(grad_in, backend=backend)
    score = ops.frobenius(columns[2][:, :8].contiguous(), WIDTHS, AREAS, backend=backend)
    return y, nonzero, grad_in, moments, columns, score


def assert_all_equal(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_both_backends_run_on_the_gpu() -> None:
    assert BACKENDS == ["triton", "cuda"], {name: each.reason for name, each in backends.available().items()}


@each_backend
def test_the_callers_stream_on_the_gpu(backend: BackendOption) -> None:
    """The map is filled late, on a stream of its own: kernels on another stream would read what was there before."""
    g = torch.randn(64, 64, 56, 56, device="cuda")
    expected = everything(g, backend)
    target = torch.zeros_like(g)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)
        target.copy_(g)
        got = everything(target, backend)
        torch.cuda.current_stream().synchronize()
    assert_all_equal(got, expected)


@each_backend
def test_captured_in_a_graph_on_the_gpu(backend: BackendOption) -> None:
    for shape in ((2, 8, 7, 7), (2, 8, 112, 112)):  # one program a channel, and several
        g = torch.randn(shape, device="cuda")
        everything(g, backend)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = everything(g, backend)
        for _ in range(2):
            g.copy_(torch.randn(shape, device="cuda"))
            graph.replay()
            assert_all_equal(captured, everything(g, backend))


@each_backend
@pytest.mark.parametrize(
    ("shape", "dtype", "layout"),
    [
        ((1, 64, 32, 32), torch.bfloat16, torch.channels_last),
        ((1, 8, 112, 112), torch.float32, torch.contiguous_format),
    ],
)
def test_streams_at_once_on_the_gpu(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, backend: BackendOption
) -> None:
    """Several programs share a channel: those of one stream must not be taken for those of another, nor of a graph."""
    g = torch.randn(shape, device="cuda", dtype=dtype).contiguous(memory_format=layout)
    assert tiling_for(g).splits > 1
    expected = everything(g, backend)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = everything(g, backend)
    streams = [torch.cuda.Stream() for _ in range(4)]
    found: list[tuple[Tensor, ...]] = []
    for _ in range(50):
        graph.replay()
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(everything(g, backend))
    torch.cuda.synchronize()
    for each in (captured, *found):
        assert_all_equal(each, expected)


@each_backend
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_counts_and_scores_of_a_graph_on_the_gpu(layout: torch.memory_format, backend: BackendOption) -> None:
    """Hundreds of blocks that end in any order, again and again with one scratch."""
    sizes = ((64, 32), (128, 16), (256, 8), (512, 7), (3, 5))

    def drawn() -> list[Tensor]:
        normal = (torch.randn(8, k, size, size, device="cuda", dtype=torch.bfloat16) for k, size in sizes)
        return [(each - 1).relu().to(memory_format=layout) for each in normal]

    maps, sums = drawn(), [torch.rand(8, 7, device="cuda")]
    layers, windows = [0, 1, 2, 3, 4, 5, 0], [0, 1, 3, 1, 0, 1, 2, 1, 3, 4, 0, 2]
    areas = [1 / size**2 for _, size in sizes] + [1.0, 1 / 1024]
    shapes = [(k, size, size) for k, size in sizes]
    scratch = torch.zeros(8, scratch_size(shapes, windows), dtype=torch.int32, device="cuda")

    def run(backend: str) -> tuple[Tensor, ...]:
        return ops.count_and_score(maps, sums, layers, areas, windows=windows, scratch=scratch, backend=backend)

    run(backend)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run(backend)
    for _ in range(100):
        for each, new in zip(maps, drawn(), strict=True):
            each.copy_(new)
        graph.replay()
        packed, live, score = run("torch")
        assert torch.equal(got[0], packed)
        assert torch.equal(got[1], live)
        torch.testing.assert_close(got[2], score, rtol=1e-6, atol=0)
        assert not scratch.any()


@each_backend
def test_other_devices_than_the_current_gpu(backend: BackendOption) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    g = torch.randn(2, 8, 7, 7, device="cuda:1")
    with torch.cuda.device(0):
        got = everything(g, backend)
        assert torch.cuda.current_device() == 0
    assert all(each.device == g.device for each in got)
    with torch.cuda.device(1):
        assert_all_equal(got, everything(g, backend))


@each_backend
@pytest.mark.parametrize("make", [GaiaZ, GaiaA])
def test_detectors_on_the_gpu(make: type[GaiaA] | type[GaiaZ], backend: BackendOption) -> None:
    torch.manual_seed(0)
    model = models.resnet18(num_classes=10).eval().cuda()
    x = torch.randn(4, 3, 32, 32, device="cuda")
    plain = make(model, backend="torch", engine="hooks").score(x).score
    torch.testing.assert_close(make(model, backend=backend).score(x).score, plain, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("runtime", ["eager", "inductor", "cudagraph", "auto"])
@pytest.mark.parametrize("make", [GaiaZ, GaiaA])
def test_compiled_runtimes_on_the_gpu(
    make: type[GaiaA] | type[GaiaZ], runtime: RuntimeOption, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = models.resnet18(num_classes=10).eval().cuda().to(dtype)
    batches = [torch.randn(4, 3, 32, 32, device="cuda", dtype=dtype) for _ in range(3)]
    compiled = make(model, engine="compiled", runtime=runtime).prepare(batches[0])
    kept = [compiled.score(x).score for x in batches]
    exact, eager = make(copy_in(model, torch.float64), engine="hooks"), make(model, engine="hooks")
    for x, score in zip(batches, kept, strict=True):  # a later call must not write into an earlier result
        truth = exact.score(x.double()).score
        # TF32 and bfloat16 round otherwise in another order; a pattern or an adjoint that is wrong is further off.
        allowed = max(1e-2, 2 * relative_error(eager.score(x).score, truth))
        assert relative_error(score, truth) <= allowed


each_graph = pytest.mark.parametrize("runtime", ["inductor", "cudagraph"])
each_detector = pytest.mark.parametrize("make", [GaiaZ, GaiaA])


@each_detector
def test_auto_records_on_the_gpu(make: type[GaiaA] | type[GaiaZ]) -> None:
    x = torch.randn(2, 3, 32, 32, device="cuda")
    plan = make(models.resnet18(num_classes=10).eval().cuda(), engine="compiled").plan(x)
    assert plan.runtime is not None
    assert plan.runtime.name == "cudagraph"


@each_graph
@each_detector
def test_any_number_of_images_on_the_gpu(make: type[GaiaA] | type[GaiaZ], runtime: RuntimeOption) -> None:
    """Filled up, split, and, under "cudagraph", operator by operator."""
    torch.manual_seed(0)
    model = models.resnet18(num_classes=10).eval().cuda().double()
    x = torch.randn(40, 3, 32, 32, device="cuda", dtype=torch.float64)
    compiled = make(model, engine="compiled", runtime=runtime).prepare(x[:2]).prepare(x[:4])
    expected = make(model, engine="hooks", backend="torch").score(x)
    for images in (1, 2, 3, 4, 5, 9, 32, 33, 40):
        found = compiled.score(x[:images])
        torch.testing.assert_close(found.score, expected.score[:images], rtol=1e-6, atol=0)
        torch.testing.assert_close(found.logits, expected.logits[:images], rtol=1e-9, atol=1e-12)


@each_graph
@pytest.mark.parametrize("images", [2, 40])
def test_a_write_past_pytorch_is_seen_on_the_gpu(runtime: RuntimeOption, images: int) -> None:
    torch.manual_seed(0)
    model = models.resnet18(num_classes=10).eval().cuda()
    x = torch.randn(images, 3, 32, 32, device="cuda")
    compiled = GaiaZ(model, engine="compiled", runtime=runtime).prepare(x[:2])
    before = compiled(x)
    model.get_parameter("layer4.0.conv1.weight").data.abs_()  # moves scores by 7 %, far beyond what is compared
    truth = GaiaZ(model, engine="hooks", backend="torch")(x)
    torch.testing.assert_close(compiled(x), truth, rtol=1e-2, atol=0)
    assert not torch.allclose(before, truth, rtol=1e-2)


@each_graph
@pytest.mark.parametrize("images", [3, 40])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_pixels_on_the_gpu(value: float, images: int, runtime: RuntimeOption) -> None:
    x = torch.randn(images, 3, 16, 16, device="cuda")
    compiled = GaiaZ(zoo.build("strided_shortcut").cuda(), engine="compiled", runtime=runtime).prepare(x[:2])
    x[1, 2, 15, 15] = value
    with pytest.raises(InputError, match="images 1 of the batch"):
        compiled(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_convolutions_are_fused_where_they_are_right_on_the_gpu(dtype: torch.dtype) -> None:
    """All is said of each; what overflows is not hidden; and cuDNN's setting is as it was."""
    torch.manual_seed(0)
    model = models.resnet18(num_classes=10).eval().cuda().to(dtype)
    x = torch.randn(4, 3, 32, 32, device="cuda", dtype=dtype)
    before = torch.backends.cudnn.benchmark
    compiled = GaiaZ(model, engine="compiled", runtime="cudagraph").prepare(x)
    assert torch.backends.cudnn.benchmark == before
    runtime = compiled.plan(x).runtime
    assert runtime is not None
    print(dtype, runtime.why)
    assert "of 17 convolutions fused" in runtime.why
    expected = compiled(x)
    bad = x.clone()
    bad[1] *= torch.finfo(dtype).max / 8
    with pytest.raises(NonFiniteError, match="images 1 of"):
        compiled(bad)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-3, atol=0)


@each_graph
def test_closed_windows_on_the_gpu(runtime: RuntimeOption) -> None:
    model, good, bad = zoo.sometimes_closed()
    model, good, bad = model.cuda().double(), good.cuda().double(), bad.cuda().double()
    compiled = GaiaZ(model, engine="compiled", runtime=runtime).prepare(good)
    x = torch.cat([good[:1], bad, good[1:]])
    torch.testing.assert_close(compiled(x), GaiaZ(model, engine="hooks", backend="torch")(x), rtol=1e-4, atol=0)


class Flattened(nn.Module):
    """A head that reads a map position by position: in another order where the channels come last."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*zoo.conv_norm(3, 8), nn.ReLU(), *zoo.conv_norm(8, 4, stride=2), nn.ReLU())
        self.fc = nn.Linear(4 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x).flatten(1))


@each_detector
def test_a_map_that_is_flattened_on_the_gpu(make: type[GaiaA] | type[GaiaZ]) -> None:
    torch.manual_seed(0)
    model = Flattened().eval().cuda().double()
    x = torch.randn(5, 3, 16, 16, device="cuda", dtype=torch.float64)
    compiled = make(model, engine="compiled", runtime="cudagraph").prepare(x)
    torch.testing.assert_close(compiled(x), make(model, engine="hooks", backend="torch")(x), rtol=1e-6, atol=0)


def test_what_cannot_be_recorded_runs_eagerly_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr("gaia_fast.compiler.runtimes.cudagraph.Recorded", refused)
    model, x = zoo.build("strided_shortcut").cuda(), torch.randn(2, 3, 16, 16, device="cuda")
    plan = GaiaZ(model, engine="compiled").plan(x)
    assert plan.runtime is not None
    assert plan.runtime.name == "eager"
    assert "capturing" in plan.runtime.why
    with pytest.raises(CompilationError, match="runtime='eager'"):
        GaiaZ(model, engine="compiled", runtime="cudagraph").prepare(x)


def test_a_graph_on_a_stream_of_the_callers_on_the_gpu() -> None:
    model = models.resnet18(num_classes=10).eval().cuda()
    x = torch.randn(4, 3, 32, 32, device="cuda")
    compiled = GaiaZ(model, engine="compiled", runtime="cudagraph").prepare(x)
    expected = compiled(x)
    late = torch.zeros_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)
        late.copy_(x)
        got = compiled(late)
        torch.cuda.current_stream().synchronize()
    assert torch.equal(got, expected)


@each_graph
@pytest.mark.parametrize("make", [GaiaZ, GaiaA])
def test_a_graph_keeps_what_it_reads_on_the_gpu(make: type[GaiaA] | type[GaiaZ], runtime: RuntimeOption) -> None:
    """The compiler forgets its programs, and all memory that is free is overwritten: the graph's weights stay."""
    model = models.resnet18(num_classes=10).eval().cuda()
    x = torch.randn(4, 3, 32, 32, device="cuda")
    compiled = make(model, engine="compiled", runtime=runtime).prepare(x)
    expected = compiled(x)
    torch._dynamo.reset()
    gc.collect()
    junk = [torch.full((size,), torch.nan, device="cuda") for size in (64, 4096, 147456, 2359296) for _ in range(60)]
    assert torch.equal(compiled(x), expected)
    assert len(junk) == 240


def test_a_graph_is_recorded_beside_other_threads_on_the_gpu() -> None:
    """Another thread allocates and copies all the while, as a service that goes on scoring does."""
    model = models.resnet18(num_classes=10).eval().cuda()
    x = torch.randn(4, 3, 32, 32, device="cuda")
    compiled = GaiaZ(model, engine="compiled", runtime="cudagraph").prepare(x)
    stop = threading.Event()

    def busy() -> float:
        total, size = 0.0, 0
        while not stop.is_set():
            size = size % 64 + 1
            total += float(torch.ones(size * 2**20, device="cuda").sum())
        return total

    with ThreadPoolExecutor(1) as other:
        going_on = other.submit(busy)
        try:
            compiled.prepare(x[:3])
        finally:
            stop.set()
        assert going_on.result() > 0
    torch.testing.assert_close(compiled(x[:3]), compiled(x)[:3], rtol=1e-2, atol=0)


@each_graph
@each_detector
def test_a_max_pool_on_the_gpu(make: type[GaiaA] | type[GaiaZ], runtime: RuntimeOption) -> None:
    model = zoo.build("vgg_like", torch.float64).cuda()
    x = zoo.images(5, dtype=torch.float64).cuda()
    compiled = make(model, engine="compiled", runtime=runtime).prepare(x)
    for images in (x, x.flip(-1), -x):
        expected = make(model, engine="reference").score(images)
        torch.testing.assert_close(compiled.score(images).score, expected.score, rtol=1e-6, atol=0)


@each_graph
def test_a_second_gpu_records_its_own_graph(runtime: RuntimeOption) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    for device in ("cuda:0", "cuda:1"):
        torch.manual_seed(0)
        model = models.resnet18(num_classes=10).eval().to(device)
        x = torch.randn(2, 3, 32, 32, device=device)
        compiled = GaiaZ(model, engine="compiled", runtime=runtime).prepare(x)
        expected = GaiaZ(model, engine="hooks", backend="torch")
        for images in (x.flip(-1), x):
            torch.testing.assert_close(compiled(images), expected(images), rtol=1e-2, atol=0)


def waits(run: Callable[[], object]) -> int:
    """How often PyTorch sees the host wait for the GPU, events apart."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(each.message) for each in seen)


@each_detector
def test_hooks_wait_once_for_the_gpu(make: type[GaiaA] | type[GaiaZ]) -> None:
    detector = make(models.resnet18(num_classes=10).eval().cuda(), engine="hooks")
    x = torch.randn(4, 3, 32, 32, device="cuda")
    detector(x)
    assert waits(lambda: detector(x)) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_detector
def test_a_graph_waits_for_an_event_alone_on_the_gpu(make: type[GaiaA] | type[GaiaZ], dtype: torch.dtype) -> None:
    detector = make(models.resnet18(num_classes=10).eval().cuda().to(dtype), engine="compiled", runtime="cudagraph")
    x = torch.randn(4, 3, 32, 32, device="cuda", dtype=dtype)
    detector.prepare(x)
    detector(x)
    assert waits(lambda: detector(x)) == 0


@each_backend
def test_results_are_told_by_a_graph_on_the_gpu(backend: BackendOption) -> None:
    x = torch.randn(4, 3, 40, 40, device="cuda")
    images, finite = torch.empty_like(x), torch.ones((4, parts_of(x)), dtype=torch.uint8, device="cuda")
    weights = torch.randn(1000, device="cuda")
    memory = [weights.view(torch.uint8)[:256], weights.view(torch.uint8)[3000:3064]]
    expected, pieces = torch.cat(memory), pieces_of(memory)
    counts, told = torch.zeros(3, dtype=torch.int64, device="cuda"), torch.zeros(2, dtype=torch.int64, pin_memory=True)

    def end() -> Tensor:
        logits = images.flatten(1)[:, :10]
        return check_results(
            logits, [logits[:, 0]], None, [], finite, memory, expected, pieces, counts, told, backend=backend
        )

    copy_and_check(x, images, finite, backend=backend)
    end()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answers = end()
    assert told.tolist() == [0, 1]
    bad = x.clone()
    bad[2, 2, 39, 39] = torch.nan
    failures = 0
    for launch, each in enumerate((x, bad, x, bad.flip(0), x, x), start=2):
        if launch == 7:
            weights.data[760] += 1  # among the last bytes that are compared
        copy_and_check(each, images, finite, backend=backend)
        graph.replay()
        torch.cuda.current_stream().record_event().synchronize()
        failures += not bool(each.isfinite().all()) or launch == 7
        assert told.tolist() == [failures, launch]
        assert torch.equal(answers, each.flatten(1).isfinite().all(1))
        assert torch.equal(images.isnan(), each.isnan())


def test_threads_share_a_graph_on_the_gpu() -> None:
    """Some with images that are none, on streams of their own."""
    model = models.resnet18(num_classes=10).eval().cuda()
    batches = [torch.randn(4, 3, 32, 32, device="cuda") for _ in range(4)]
    compiled = GaiaZ(model, engine="compiled", runtime="cudagraph").prepare(batches[0])
    expected = [compiled(x) for x in batches]
    batches[3][1, 0, 0, 0] = torch.nan
    torch.cuda.synchronize()

    def work(index: int) -> int:
        refused = 0
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(100):
                try:
                    assert torch.equal(compiled(batches[index]), expected[index])
                except InputError:
                    refused += 1
        return refused

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(4))) == [0, 0, 0, 100]
