"""Programs that are kept in files: taken by a later process, to the last bit, and never by another model."""

import copy
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import Gaia, GaiaA, GaiaZ
from gaia_fast.compiler import preparation
from gaia_fast.compiler.ir.serialization import NotSerializableError
from gaia_fast.compiler.program_cache import KeptProgram
from gaia_fast.errors import ArgumentError, ProgramCacheWarning
from gaia_fast.inspection.fingerprint import Fingerprint
from gaia_fast.ops.convolution import measured
from gaia_fast.ops.convolution.packing import Algorithm
from gaia_fast.options import RuntimeOption

import zoo

CHANNELS_LAST = torch.channels_last


def with_choices() -> nn.Module:
    """A network with a convolution that several algorithms compute."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
    return zoo.Pooled(nn.Sequential(*layers), 16).eval()


def bits(detector: Gaia, x: Tensor) -> list[Tensor]:
    out = detector.score(x, return_matrix=True)
    return [out.logits, *out.scores.values(), *out.matrices.values()]


def no_capture(*_: Any, **__: Any) -> None:
    pytest.fail("the model was captured again")


@pytest.mark.parametrize("runtime", ["native", "eager", "onnxruntime"])
@pytest.mark.parametrize("name", ["strided_shortcut", "vgg_like", "dense_like", "group_norm", "smooth", "shared_norm"])
def test_a_kept_program_scores_as_the_first_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, runtime: RuntimeOption
) -> None:
    model, x = zoo.build(name), zoo.images(3, zoo.image_size(name))
    first = Gaia(model, engine="compiled", runtime=runtime).prepare(x, cache_dir=tmp_path / "kept")
    monkeypatch.setattr(preparation, "capture", no_capture)
    later = Gaia(copy.deepcopy(model), engine="compiled", runtime=runtime).prepare(x, cache_dir=tmp_path / "kept")
    for images in (x, x[:1], x.repeat(2, 1, 1, 1), x.contiguous(memory_format=CHANNELS_LAST)):
        for mine, theirs in zip(bits(later, images), bits(first, images), strict=True):
            assert torch.equal(mine, theirs)
    assert str(later.plan(x)) == str(first.plan(x))
    program, kept = (each.program(x) for each in (first, later))
    assert program is not None
    assert kept is not None
    assert isinstance(kept.program, KeptProgram)
    assert kept.program.digest == program.program.digest
    assert kept.program.graph.code == program.program.graph.code


def test_half_precision_and_one_fixed_number_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ForTwo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = zoo.build("parallel")

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.view(2, *x.shape[1:]))

    torch.manual_seed(0)
    cases: list[tuple[nn.Module, Tensor]] = [
        (zoo.build("parallel", torch.bfloat16), zoo.images(2, dtype=torch.bfloat16)),
        (ForTwo().eval(), zoo.images(2)),
    ]
    prepared = [GaiaA(model, engine="compiled", runtime="native").prepare(x, cache_dir=tmp_path) for model, x in cases]
    expected = [detector(x) for detector, (_, x) in zip(prepared, cases, strict=True)]
    monkeypatch.setattr(preparation, "capture", no_capture)
    for (model, x), score in zip(cases, expected, strict=True):
        later = GaiaA(model, engine="compiled", runtime="native").prepare(x, cache_dir=tmp_path)
        assert torch.equal(later(x), score)


@pytest.mark.parametrize("change", ["weight", "layers", "p", "size", "attribute", "hook"])
def test_what_differs_gets_a_program_of_its_own(tmp_path: Path, change: str) -> None:
    model, x = zoo.build("parallel"), zoo.images(2)
    GaiaZ(model, engine="compiled", runtime="eager").prepare(x, cache_dir=tmp_path)
    options: dict[str, Any] = {}
    if change == "weight":
        with torch.no_grad():
            next(model.parameters()).view(-1)[7] += 1
    elif change == "layers":
        options["layers"] = [name for name, each in model.named_modules() if isinstance(each, nn.BatchNorm2d)][:1]
    elif change == "p":
        options["p"] = 3.0
    elif change == "size":
        x = zoo.images(2, 24)
    elif change == "attribute":
        model.scaled_by = 2.0  # type: ignore[assignment]
    else:
        next(model.children()).register_forward_hook(lambda module, args, output: output * 2)
    GaiaZ(model, engine="compiled", runtime="eager", **options).prepare(x, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_program_that_does_not_fit_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the hash did not see: what is read is held to the reference."""
    model, x = zoo.build("parallel"), zoo.images(2)
    monkeypatch.setattr(Fingerprint, "digest", lambda self: "the same for all")
    GaiaZ(model, engine="compiled", runtime="native").prepare(x, cache_dir=tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.5)
    expected = GaiaZ(model, engine="hooks")
    with pytest.warns(ProgramCacheWarning, match="does not fit and is made anew"):
        detector = GaiaZ(model, engine="compiled", runtime="native").prepare(x, cache_dir=tmp_path)
    torch.testing.assert_close(detector(x), expected(x), rtol=1e-4, atol=0)
    assert len(list(tmp_path.iterdir())) == 1


def flipped(data: bytes) -> bytes:
    """One bit of a tensor."""
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


@pytest.mark.parametrize(
    "damage", [flipped, lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data[:9] * 40]
)
def test_a_damaged_file_is_replaced(tmp_path: Path, damage: Any) -> None:
    model, x = zoo.build("parallel"), zoo.images(2)
    score = GaiaZ(model, engine="compiled", runtime="native").prepare(x, cache_dir=tmp_path)(x)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert torch.equal(GaiaZ(model, engine="compiled", runtime="native").prepare(x, cache_dir=tmp_path)(x), score)
    assert len(file.read_bytes()) == len(whole)


def test_a_folder_that_takes_no_files_is_named(tmp_path: Path) -> None:
    model, x = zoo.build("parallel"), zoo.images(2)
    (tmp_path / "file").write_text("")
    detector = GaiaZ(model, engine="compiled", runtime="eager")
    with pytest.raises(ArgumentError, match=r"cache_dir='.*file' cannot be made"):
        detector.prepare(x, cache_dir=tmp_path / "file")


def test_what_was_timed_is_taken_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = with_choices(), zoo.images(2)
    first = GaiaZ(model, engine="compiled", runtime="native").prepare(x, tune="measure", cache_dir=tmp_path)
    assert measured.ANSWERS._known
    measured.ANSWERS.forget()
    monkeypatch.setattr(measured, "_seconds", lambda *_: pytest.fail("an algorithm was timed again"))
    later = GaiaZ(model, engine="compiled", runtime="native").prepare(x, tune="measure", cache_dir=tmp_path)
    assert torch.equal(later(x), first(x))


def test_a_folder_that_has_gone_costs_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = zoo.build("parallel"), zoo.images(2)
    detector = GaiaZ(model, runtime="eager", on_unprepared="prepare").prepare(x, cache_dir=tmp_path / "kept")
    shutil.rmtree(tmp_path / "kept")
    with pytest.warns(ProgramCacheWarning, match="is not kept in"):
        detector(zoo.images(2, 24))
    monkeypatch.setattr(preparation, "capture", no_capture)
    detector(zoo.images(1, 24))


def test_all_that_is_prepared_goes_where_it_was_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = zoo.build("parallel"), zoo.images(2)
    detector = GaiaZ(model, runtime="eager", on_unprepared="prepare").prepare(x)
    detector.prepare(x, tune="model", cache_dir=tmp_path)  # is kept, although there is a program
    assert len(list(tmp_path.iterdir())) == 1
    small = zoo.images(2, 24)
    detector(small)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(preparation, "capture", no_capture)
    twin = pickle.loads(pickle.dumps(detector))
    assert torch.equal(twin(small), detector(small))
    assert twin.plan(small).engine.name == "compiled"


def test_a_graph_that_cannot_be_kept_is_spoken_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(_: Any) -> Any:
        raise NotSerializableError("a strange thing is called")

    monkeypatch.setattr("gaia_fast.compiler.program_cache.to_data", cannot)
    with pytest.warns(ProgramCacheWarning, match="is not kept in .*: in its graph a strange thing is called"):
        GaiaZ(zoo.build("parallel"), runtime="eager").prepare(zoo.images(2), cache_dir=tmp_path)


class Remembering(nn.Module):
    """Counts calls, and keeps something for each size of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls, self.sizes = zoo.build("parallel"), 0, dict[int, int]()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.sizes.setdefault(len(x), self.calls)
        return self.inner(x)


def test_what_a_forward_pass_writes_is_no_part_of_the_model(tmp_path: Path) -> None:
    x = zoo.images(2)
    for calls in (0, 3):
        model = Remembering().eval()
        for _ in range(calls):
            model(zoo.images(5))
        detector = GaiaZ(model, engine="compiled", runtime="eager").prepare(x, cache_dir=tmp_path)
        assert detector.program(x) is not None  # it still holds after the batches that it was compared on


def test_what_the_first_process_timed_decides(tmp_path: Path) -> None:
    model, x = with_choices(), zoo.images(2)
    first = GaiaZ(model, engine="compiled", runtime="native").prepare(x, tune="measure", cache_dir=tmp_path)
    known = dict(measured.ANSWERS._known)
    assert known
    others = {key: next(each.value for each in Algorithm if each.value != value) for key, value in known.items()}
    measured.ANSWERS.take(others)
    later = GaiaZ(model, engine="compiled", runtime="native").prepare(x, tune="measure", cache_dir=tmp_path)
    assert {key: measured.ANSWERS.find(key) for key in known} == known
    assert torch.equal(later(x), first(x))
