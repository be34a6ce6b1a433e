"""What a model is like: compared, and put back; `test_invariants.py` has what detectors leave behind."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gaia_fast.evaluation.model_state import ModelState, equal_bits


class Keeping(nn.Module):
    """Writes an attribute, a list and a buffer in each pass; and holds things that no pass writes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.passes, self.seen, self.names = 0, list[Tensor](), ["a", "b"]
        self.by_name, self.kinds = {"a": 1}, {"x"}
        self.register_buffer("last", torch.zeros(2))
        self.register_buffer("table", torch.tensor([float("nan"), 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.seen.append(x)
        self.get_buffer("last").copy_(x[0])
        return self.fc(x)


def test_what_a_pass_writes_itself_is_no_change() -> None:
    model, x = Keeping().eval(), torch.ones(1, 2)
    state = ModelState(model, lambda: model(x))
    assert state.changes() == []
    assert len(state) == 2 + 2 + 2
    assert (model.passes, model.seen, model.get_buffer("last").tolist()) == (0, [], [0, 0])
    model(2 * x)
    assert state.changes() == []
    state.put_back()
    assert (model.passes, len(model.seen), model.get_buffer("last").tolist()) == (1, 1, [2, 2])  # still the model's
    state.restore()
    assert state.changes() == []
    assert (model.passes, model.seen, model.get_buffer("last").tolist()) == (0, [], [0, 0])


def test_what_any_of_several_passes_writes_is_the_model_s_own() -> None:
    """The last one makes all what it was."""
    model, x = nn.Linear(2, 2), torch.ones(1, 2)
    model.kind = "a"  # type: ignore[assignment]

    def becoming(kind: str) -> None:
        model.kind = kind  # type: ignore[assignment]
        model(x)

    state = ModelState(model, lambda: becoming("b"), lambda: becoming("a"))
    becoming("c")
    assert state.changes() == []
    state.restore()
    assert model.kind == "a"


def test_a_pass_that_fails_leaves_nothing() -> None:
    model = Keeping().eval()
    with pytest.raises(RuntimeError):
        ModelState(model, lambda: model(torch.ones(1, 2)), lambda: model(torch.ones(2, 3)))
    assert (model.passes, model.seen) == (0, [])


def test_what_has_changed_is_named_and_put_back() -> None:
    model, x = Keeping().eval(), torch.ones(1, 2)
    state = ModelState(model, lambda: model(x))
    weight: Any = model.fc.weight
    values, names = weight.detach().clone(), model.names
    with torch.no_grad():
        weight.add_(1)
        model.get_buffer("table")[1] = 2
    model.names.append("c")
    model.by_name["a"] = 2
    model.kinds.clear()
    del model.fc.bias
    assert sorted(state.changes()) == [
        "fc._parameters",
        "the model.by_name",
        "the model.kinds",
        "the model.names",
        "the values of fc.weight",
        "the values of table",
    ]
    state.put_back()
    assert state.changes() == []
    assert model.fc.weight is weight
    assert torch.equal(weight, values)
    assert model.fc.bias is not None
    assert model.names is names
    assert (model.names, model.by_name, model.kinds) == (["a", "b"], {"a": 1}, {"x"})


def test_gradients() -> None:
    model, x = Keeping().eval(), torch.ones(1, 2)
    model(x).sum().backward()
    grad = model.fc.weight.grad
    assert grad is not None
    before = grad.clone()
    state = ModelState(model, lambda: model(x))
    model(x).sum().backward()  # added in place
    model.fc.bias.grad = None
    assert state.changes() == ["fc.weight.grad", "fc.bias.grad"]
    state.put_back()
    assert state.changes() == []
    assert model.fc.weight.grad is grad
    assert torch.equal(grad, before)


def test_bits_not_values_are_compared() -> None:
    zero, nan = torch.zeros(2), torch.full((2,), float("nan"))
    assert equal_bits(nan, nan.clone())
    assert not equal_bits(zero, -zero)
    assert not equal_bits(zero, zero.double())
    assert not equal_bits(zero, zero[:1])
    assert equal_bits(torch.tensor(3), torch.tensor(3))
    assert equal_bits(torch.arange(6.0).view(2, 3).t(), torch.arange(6.0).view(2, 3).t().contiguous())
    assert equal_bits(torch.eye(2).to_sparse(), torch.eye(2).to_sparse())
