from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.compiler.ir.passes import DUMP, Pass
from gaia_fast.compiler.ir.rewriting import copy_of
from gaia_fast.compiler.ir.types import untyped
from gaia_fast.compiler.pipeline import CAPTURED, FOLD_NORMS, ONNX, cuda, native
from gaia_fast.errors import CompilationError

import zoo
from graphs import captured, fold

aten = torch.ops.aten
NAMES = ["strided_shortcut", "dense_like", "plain_norm", "small_bit", "parallel"]


def tensors_without_type(module: fx.GraphModule) -> list[fx.Node]:
    """Written anew: every node that gives a tensor when the graph runs."""
    images = next(node for node in module.graph.nodes if node.op == "placeholder")
    found = []

    class Look(fx.Interpreter):  # type: ignore[misc]
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, Tensor) and n.op != "output" and not isinstance(n.meta.get("val"), Tensor):
                found.append(n)
            return value

    channels, height, width = images.meta["val"].shape[1:]
    with torch.no_grad():
        Look(module).run(
            torch.randn(2, channels, height, width), *[None] * (len(module.graph.find_nodes(op="placeholder")) - 1)
        )
    return found


@pytest.mark.parametrize("make", [GaiaZ, GaiaA])
@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_has_a_type_after_every_pass(name: str, make: type[GaiaZ] | type[GaiaA]) -> None:
    x = zoo.images(2, zoo.image_size(name))
    found = make(zoo.build(name), engine="compiled", runtime="eager").prepare(x).program(x)
    assert found is not None
    sequences: list[Sequence[Pass]] = [[], native(), ONNX, cuda(2)]
    for passes in sequences:
        module = copy_of(found.program.graph)
        assert not tensors_without_type(module)
        for each in passes:
            module = each(module)
            assert not tensors_without_type(module), each


def test_what_a_pass_adds_is_typed_and_what_nothing_reads_goes() -> None:
    def add(module: fx.GraphModule) -> None:
        output = module.graph.output_node()
        (logits,) = output.all_input_nodes
        with module.graph.inserting_before(output):
            module.graph.call_function(aten.neg.default, (logits,))  # nobody reads it
            output.replace_input_with(logits, module.graph.call_function(aten.abs.default, (logits,)))

    module = captured(zoo.build("parallel"), zoo.images(2)).graph
    Pass("add", add)(module)
    (last,) = module.graph.output_node().all_input_nodes
    assert last.target is aten.abs.default
    assert last.meta["val"].shape == last.args[0].meta["val"].shape
    assert not [node for node in module.graph.nodes if node.target is aten.neg.default]
    assert (module(zoo.images(2))[0] >= 0).all()


def test_a_pass_whose_requirements_were_not_run_is_refused() -> None:
    module = captured(zoo.build("parallel"), zoo.images(2)).graph
    with pytest.raises(CompilationError, match=r"'fold norms' requires \['fold constants'\]"):
        FOLD_NORMS(module)


def test_a_node_without_a_type_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = captured(zoo.build("parallel"), zoo.images(2)).graph
    monkeypatch.setattr("gaia_fast.compiler.ir.passes.infer_types", lambda module: None)

    def add(module: fx.GraphModule) -> None:
        output = module.graph.output_node()
        (logits,) = output.all_input_nodes
        with module.graph.inserting_before(output):
            output.replace_input_with(logits, module.graph.call_function(aten.abs.default, (logits,)))

    with pytest.raises(CompilationError, match="'add' leaves .* without a type"):
        Pass("add", add)(module)
    assert [str(node.target) for node in untyped(module)] == ["aten.abs.default"]


def test_a_graph_can_be_seen_after_every_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = captured(zoo.build("strided_shortcut"), zoo.images(2)).graph
    monkeypatch.setenv(DUMP, str(tmp_path / "passes"))
    fold(module)
    names = [each.name for each in sorted((tmp_path / "passes").iterdir())]
    assert names == [f"{i:03}-{each.name.replace(' ', '-')}.txt" for i, each in enumerate(CAPTURED)]
    first, *_, last = [(tmp_path / "passes" / name).read_text() for name in names]
    assert "_native_batch_norm" in first
    assert "_native_batch_norm" not in last
    assert "torch.float32" in last
