"""What comes back through one operator: the pattern of the gradient at what it reads, from that at its result.

Beside each rule stands what must be true for it to hold: of the graph, which is looked at here (`Unknown` else), or of
an image, which becomes a condition. All of them take for granted that sums of products of *general* weights are not
zero: trained or random ones are general, hand-made filters, whose values repeat, are not (`_general`). A rule may
promise too little, never too much.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, prod
from typing import Any

import torch
from torch import Tensor, fx

from gaia_fast.compiled.capture import MARK
from gaia_fast.compiled.fold import CONVOLUTIONS, constant_value
from gaia_fast.compiled.geometry import Geometry
from gaia_fast.compiled.nodes import pair, same_shape, same_size
from gaia_fast.compiled.sparsity.conditions import Above, Live, LiveGroups, OtherClass, Same
from gaia_fast.compiled.sparsity.density import Density, Unknown
from gaia_fast.compiled.sparsity.patterns import (
    Both,
    Chosen,
    Everywhere,
    NonZero,
    OfClasses,
    Open,
    Pattern,
    Reduced,
    Reshaped,
    Slice,
    Top1,
    Union,
    Windows,
    Within,
    Without,
)

aten = torch.ops.aten

# Readers to which no gradient belongs.
STOPS = {aten.sym_size.int, aten.zeros_like.default, aten.ones_like.default, aten.detach.default, aten.detach_.default}
_LINEAR = (aten.linear.default, aten.addmm.default, aten.mm.default)

Rule = Callable[[fx.Node, fx.Node, Density, bool], Density]


def through(user: fx.Node, node: fx.Node, behind: Density, thorough: bool) -> Density:
    """Returns the density of the gradient that comes back to `node` from `user`, which reads it.

    Args:
        user, node: a node of a captured graph, and one of its inputs.
        behind: the density of the gradient at the result of `user`.
        thorough: as in `analyse`.

    Raises:
        Unknown: no rule says what it is.
    """
    rule = _RULES.get(user.target)
    if rule is None:
        raise Unknown(f"{name_of(user)} may be flat where nothing tells")
    value, result = node.meta["val"], user.meta["val"]
    # Patterns and conditions are image by image: what moves images about has none.
    if isinstance(value, Tensor) and isinstance(result, Tensor) and not _same_images(value, result):
        raise Unknown(f"{name_of(user)} makes other images of the images")
    if isinstance(behind.pattern, OfClasses) and rule not in _IMAGE_BY_IMAGE:
        raise Unknown("whether a gradient comes back at all hangs on the top-1 class")
    return rule(user, node, behind, thorough)


@dataclass(frozen=True)
class Factor:
    """General weights that a gradient is multiplied by: those that read the channels [begin, end) of what they read.

    Weights of equal values are the same ones, whatever their names: a copy of a block cancels as the block itself does.

    Attributes:
        mixed: whether channels have a part in each other before the weights read them, so that all of these count.
    """

    weights: object
    begin: int = 0
    end: int = 2**31
    mixed: bool = False

    def overlaps(self, other: "Factor") -> bool:
        return self.weights == other.weights and self.begin < other.end and other.begin < self.end

    def of_channels(self, begin: int, end: int) -> "Factor":
        """The same, seen from some of the channels."""
        if self.mixed:
            return self
        return Factor(self.weights, self.begin + begin, min(self.begin + end, self.end))


def factors_through(user: fx.Node, node: fx.Node, behind: frozenset[Factor]) -> frozenset[Factor]:
    """Returns the first general weights on the paths from the logits to `node` through `user`, seen from `node`.

    Args:
        user, node: as in `through`.
        behind: what this returns for the result of `user`, over all its readers.
    """
    weight = _weight(user, node)
    if weight is not None and _general(weight):
        values = tuple(sorted(weight.shape)), float(weight.double().sum()), float(weight.abs().max())
        return frozenset([Factor(values)])
    if user.target is aten.cat.default and _along_channels(user) and sum(each is node for each in user.args[0]) == 1:
        return frozenset(each.of_channels(*_place(user, node)) for each in behind)
    if _keeps_channels(user, node):
        return behind
    return frozenset(Factor(each.weights, mixed=True) for each in behind)


def _keeps_channels(user: fx.Node, node: fx.Node) -> bool:
    """Whether each channel of an operator's result is made of that channel of a map alone."""
    rule = _RULES.get(user.target)
    return rule in _POOLINGS or (rule in _ENTRY_BY_ENTRY and same_shape(node, user))


def name_of(node: fx.Node) -> str:
    """An operator's name for messages."""
    return str(node.target).removeprefix("aten.")


def _same(user: fx.Node, node: fx.Node, behind: Density, thorough: bool) -> Density:
    """Copies and signs: entry by entry. Holds if nothing is broadcast."""
    if not same_shape(node, user):
        raise Unknown(f"{name_of(user)} spreads a map")
    return behind


def _sum(user: fx.Node, node: fx.Node, behind: Density, thorough: bool) -> Density:
    """Holds if the map is added once (x - x is flat), not times zero, and not broadcast (it gets a sum then)."""
    alpha = user.kwargs.get("alpha", 1)
    if sum(each is node for each in user.args) != 1 or not isinstance(alpha, (int, float)) or abs(alpha) <= 1e-9:
        raise Unknown(f"{name_of(user)} adds a map to itself, or not at all")
    return _same(user, node, behind, thorough)


def _dropout(user: fx.Node, node: fx.Node, behind: Density, thorough: bool) -> Density:
    """Holds if it does nothing: chance tells nothing."""
    if user.args[2]:
        raise Unknown(f"{name_of(user)} is left on")
    return behind


def _gate(low: float, high: float) -> Rule:
    """Units that are open between two bounds, which themselves are closed: ReLU, ReLU6."""

    def rule(user: fx.Node, node: fx.Node, behind: Density, thorough: bool) -> Density:
        return _opened(Open(user, low, high), behind)

    return rule


def _hardtanh(user: fx.Node, node: fx.Node, behind: Density, thorough: bool) -> Density:
    """As a ReLU6. Holds if the bounds are numbers."""
    low, high = [*user.args[1:], *(-1.0, 1.0)[len(user.args) - 1 :]][:2]
    return _opened(Open(user, float(low), float(high)), behind)


def _clamp(user: fx.Node, node: fx.Node, behind: Density, thorough: bool) -> Density:
    """Lets gradients through at its bounds too, so that its input tells, and not its output."""
    low, high = [*user.args[1:], None, None][:2]
    if not all(each is None or isinstance(each, (int, float)) for each in (low, high)):
        raise Unknown(f"{name_of(user)} has bounds made from the images")
    return _opened(Within(node, -inf if low is None else float(low), inf if high is None else float(high)), behind)


def _leaky_relu(user: fx.Node, node: fx.Node, behind: Density, thorough: bool) -> Density:
    """Holds if its slope is not zero, where it is a ReLU."""
    slope = user.args[1] if len(user.args) > 1 else 0.01
    if slope == 0:
        return _opened(Open(user), behind)
    if not isinstance(slope, (int, float)) or abs(slope) <= 1e-9:
        raise Unknown(f"{name_of(user)} has a slope that is zero, or nearly")
    return behind


def _sigmoid(user: fx.Node, node: fx.Node, behind: Density, thorough: bool) -> Density:
    """Flat where it is 0 or 1 to rounding. Holds for images of which no value is so small that products vanish."""
    opened = _opened(Open(user, 0.0, 1.0), behind)
    return Density(opened.pattern, opened.conditions | {Above(user, _smallest(user.meta["val"].dtype))})


def _opened(unit: Pattern, behind: Density) -> Density:
    if isinstance(behind.pattern, Everywhere) or behind.pattern == unit:
        return Density(unit, behind.conditions)
    return Density(Both(unit, behind.pattern), behind.conditions)


def _product(user: fx.Node, node: fx.Node, behind: Density, thorough: bool) -> Density:
    """Times a number, a constant, or another map that the gradient is multiplied by.

    Holds if the number is not zero; of another map, where it is not zero: sigmoids alone are taken, as factors (for
    images of which no value vanishes) or as what is multiplied (where the map beside it is not zero). What is broadcast
    gets the sum over what it was spread to.
    """
    others = [each for each in user.args[:2] if each is not node]
    if len(others) != 1:
        raise Unknown(f"{name_of(user)} multiplies a map by itself")
    (other,) = others
    value = other if isinstance(other, (int, float)) else constant_value(other)
    if value is not None:
        if user.target is aten.div.Tensor and user.args[0] is not node:
            raise Unknown(f"{name_of(user)} divides by a map")
        values = torch.as_tensor(value).double()
        if bool((values.abs() <= 1e-9).any()) or not bool(values.isfinite().all()):
            raise Unknown(f"{name_of(user)} multiplies by exact zeros")
        return _same(user, node, behind, thorough)
    if user.target is not aten.mul.Tensor:
        raise Unknown(f"{name_of(user)} by a value that may be zero")
    if other.target is aten.sigmoid.default:
        factor = Above(other, _smallest(other.meta["val"].dtype))
        return _same(user, node, Density(behind.pattern, behind.conditions | {factor}), thorough)
    if node.target is not aten.sigmoid.default:
        raise Unknown(f"{name_of(user)} by a map that may be zero")
    if not same_shape(other, user):
        raise Unknown(f"{name_of(user)} spreads both maps")
    products = _opened(NonZero(other), behind)
    if same_shape(node, user):
        return products
    shape, spread = node.meta["val"].shape, user.meta["val"].shape
    if len(shape) != len(spread):
        raise Unknown(f"{name_of(user)} adds axes to a map")
    axes = tuple(axis for axis in range(1, len(shape)) if not same_size(shape[axis], spread[axis]))
    return Density(Reduced(products.pattern, axes), products.conditions)


def _convolution(user: fx.Node, node: fx.Node, behind: Density, thorough: bool) -> Density:
    """Everything, if each window that reads a position has a channel that is not zero; else those windows' positions.

    Holds if weights are constants, general and not zero: channels of which a weight is zero show nothing. Of the rows
    of the logits, if no weight of the top-1 class is zero.
    """
    weight = _weight(user, node)
    if weight is None:
        raise Unknown(f"{name_of(user)} with weights made from the images")
    geometry = _geometry(user, node, weight)
    if not _general(weight):
        raise Unknown(f"{name_of(user)} has weights that repeat, which may add up to zero")
    covered = geometry.covers()
    zero = _vanishing(weight)
    if isinstance(behind.pattern, Top1):
        if geometry.groups != 1 or not covered:
            raise Unknown(f"{name_of(user)} is grouped, or skips positions, and makes the logits")
        return _from_logits(user, behind, zero.flatten(1).any(1))
    if geometry.groups == 1 and covered:
        if isinstance(behind.pattern, Everywhere) and not zero.all(0).any():
            return behind
        if not isinstance(behind.pattern, Everywhere):
            live = _thin(behind.pattern, zero.flatten(1).any(1))
            if live is not None:
                return Density(Everywhere(), behind.conditions | {Live(live, geometry, thorough)})
    if geometry.groups == 1 and bool(zero.flatten(1).any(1).all()):
        raise Unknown(f"{name_of(user)} has weights that are exactly zero")
    unusable = tuple(zero.flatten(1).any(1).nonzero().flatten().tolist())
    if isinstance(behind.pattern, Everywhere):
        if not covered or unusable:
            raise Unknown(f"{name_of(user)} skips positions, or has weights that are exactly zero")
        return behind
    windows = Windows(behind.pattern, geometry)
    if not unusable:
        return Density(windows, behind.conditions)
    # As long as nothing hangs on the channels that have such weights.
    same = Same(windows, Windows(Without(behind.pattern, unusable), geometry))
    return Density(windows, behind.conditions | {same})


def _linear(user: fx.Node, node: fx.Node, behind: Density, thorough: bool) -> Density:
    """As a convolution of one window. Holds if there is one vector an image, or nothing is zero behind it."""
    weight = _weight(user, node)
    if weight is None or user.kwargs:
        raise Unknown(f"{name_of(user)} with weights made from the images")
    if not _general(weight):
        raise Unknown(f"{name_of(user)} has weights that repeat, which may add up to zero")
    zero = _vanishing(weight)
    if isinstance(behind.pattern, Everywhere):
        if bool(zero.all(0).any()):
            raise Unknown(f"{name_of(user)} has inputs whose weights are all exactly zero")
        return behind
    if node.meta["val"].ndim != 2:
        raise Unknown(f"{name_of(user)} has several vectors an image, some of them zero in places")
    if isinstance(behind.pattern, Top1):
        return _from_logits(user, behind, zero.any(1))
    live = _thin(behind.pattern, zero.any(1))
    if live is None:
        raise Unknown(f"{name_of(user)} has weights that are exactly zero")
    return Density(Everywhere(), behind.conditions | {LiveGroups(live, 1)})


def _from_logits(user: fx.Node, behind: Density, zero: Tensor) -> Density:
    """What the weights of the top-1 class make of its row: everything, where none of them (K,) is zero.

    Of a part of the rows, for the images whose class is among them: `analyse` joins the parts.
    """
    rows = behind.pattern
    assert isinstance(rows, Top1)
    classes = tuple((zero.nonzero().flatten() + rows.begin).tolist())
    if len(classes) == rows.end - rows.begin:
        raise Unknown(f"{name_of(user)} has weights that are exactly zero for every class")
    conditions = behind.conditions | ({OtherClass(rows.logits, classes)} if classes else set())
    return Density(Everywhere() if rows.of_all else OfClasses(rows.logits, rows.begin, rows.end), conditions)


def _group_norm(user: fx.Node, node: fx.Node, behind: Density, thorough: bool) -> Density:
    """Each entry's gradient has a part of every other's of its group, through their mean and variance.

    Holds for images of which each group has an entry that is not zero, in a channel with a factor; and if a group has
    more than two entries (of two nothing but signs is left), and, where the gradient is not zero anywhere, more than
    one channel (the same gradient at all positions is taken out with the mean).
    """
    factors = user.args[2] if len(user.args) > 2 else None
    value, groups = node.meta["val"], int(user.args[1])
    gamma = constant_value(factors)
    if user.args[0] is not node or (factors is not None and gamma is None):
        raise Unknown(f"{name_of(user)} with factors made from the images")
    channels = int(value.shape[1]) // groups
    if channels * prod(int(size) for size in value.shape[2:]) <= 2:
        raise Unknown(f"{name_of(user)} has groups of one or two entries")
    zero = torch.zeros(int(value.shape[1]), dtype=torch.bool) if gamma is None else _vanishing(gamma)
    if isinstance(behind.pattern, Everywhere):
        if channels == 1 or bool(zero.reshape(groups, -1).all(1).any()):
            raise Unknown(f"{name_of(user)} may take out all that comes to a group")
        return behind
    unusable = tuple(zero.nonzero().flatten().tolist())
    pattern = Without(behind.pattern, unusable) if unusable else behind.pattern
    return Density(Everywhere(), behind.conditions | {LiveGroups(pattern, groups)})


def _concatenation(user: fx.Node, node: fx.Node, behind: Density, thorough: bool) -> Density:
    """The slice of it. Holds along the channels, or where nothing is zero, and if the map stands there once."""
    tensors = user.args[0]
    if sum(each is node for each in tensors) != 1:
        raise Unknown(f"{name_of(user)} takes a map twice")
    if isinstance(behind.pattern, Everywhere):
        return behind
    if not _along_channels(user):
        raise Unknown(f"{name_of(user)} is not along the channels")
    begin, end = _place(user, node)
    rows = behind.pattern
    if isinstance(rows, Top1):
        return Density(Top1(rows.logits, rows.begin + begin, rows.begin + end, rows.positions), behind.conditions)
    return Density(Slice(behind.pattern, begin, end), behind.conditions)


def _along_channels(user: fx.Node) -> bool:
    axis = user.args[1] if len(user.args) > 1 else 0
    return axis in (1, 1 - user.meta["val"].ndim)


def _place(user: fx.Node, node: fx.Node) -> tuple[int, int]:
    """Which channels of a concatenation a map becomes."""
    begin = 0
    for each in user.args[0]:
        if each is node:
            break
        begin += int(each.meta["val"].shape[1])
    return begin, begin + int(node.meta["val"].shape[1])


def _max_pool(user: fx.Node, node: fx.Node, behind: Density, thorough: bool) -> Density:
    """The positions that the windows chose, of those windows that are not zero."""
    return Density(Chosen(user, behind.pattern), behind.conditions)


def _first_item(user: fx.Node, node: fx.Node, behind: Density, thorough: bool) -> Density:
    """Holds for what max-pooling returns beside its choices."""
    if user.args[1] != 0 or node.target is not aten.max_pool2d_with_indices.default:
        raise Unknown(f"{name_of(node)} may be flat where nothing tells")
    return behind


def _mean(user: fx.Node, node: fx.Node, behind: Density, thorough: bool) -> Density:
    """Everything if everything behind it; of the logits, the row. Holds if all positions count."""
    if isinstance(behind.pattern, (Everywhere, OfClasses)):
        return behind
    if user.target is aten.mean.dim and not all(axis % node.meta["val"].ndim > 1 for axis in user.args[1]):
        raise Unknown(f"{name_of(user)} over channels that are zero in places")
    return _whole_row(user, node, behind) or _refused(f"{name_of(user)} over a map that is zero in places")


def _avg_pool(user: fx.Node, node: fx.Node, behind: Density, thorough: bool) -> Density:
    """As a convolution of each channel by itself. Holds if windows read every position, or where they do."""
    value, result = node.meta["val"].shape, user.meta["val"].shape
    kernel = pair(user.args[1])
    stride = pair(user.args[2]) if len(user.args) > 2 and user.args[2] else kernel
    padding = pair(user.args[3]) if len(user.args) > 3 else (0, 0)
    channels, size, out = int(value[1]), pair(value[2:]), pair(result[2:])
    geometry = Geometry(kernel, stride, padding, (1, 1), channels, channels, size, out)
    if isinstance(behind.pattern, (Everywhere, Top1)):
        if not geometry.covers():
            raise Unknown(f"{name_of(user)} skips positions")
        return behind if isinstance(behind.pattern, Everywhere) else _whole_row(user, node, behind) or behind
    return Density(Windows(behind.pattern, geometry), behind.conditions)


def _whole_row(user: fx.Node, node: fx.Node, behind: Density) -> Density | None:
    """The row of the top-1 class over all positions of a node; None of any other pattern."""
    rows = behind.pattern
    if not isinstance(rows, Top1):
        return None
    positions = tuple(int(size) for size in node.meta["val"].shape[2:])
    return Density(Top1(rows.logits, rows.begin, rows.end, positions), behind.conditions)


def _moved(user: fx.Node, node: fx.Node, behind: Density, thorough: bool) -> Density:
    """Holds if nothing is zero, wherever it goes."""
    if isinstance(behind.pattern, Everywhere):
        return behind
    raise Unknown(f"{name_of(user)} moves the entries of a map that is zero in places")


def _reshaped(user: fx.Node, node: fx.Node, behind: Density, thorough: bool) -> Density:
    """Holds if nothing is zero, or if axes of size 1 behind the channels are all that is added or dropped."""
    if isinstance(behind.pattern, (Everywhere, OfClasses)):
        return behind
    before, after = (tuple(int(size) for size in each.meta["val"].shape[1:]) for each in (node, user))
    if not before or not after or before[0] != after[0] or prod(before[1:]) != 1 or prod(after[1:]) != 1:
        return _moved(user, node, behind, thorough)
    return _whole_row(user, node, behind) or Density(Reshaped(behind.pattern, before), behind.conditions)


def _selected(user: fx.Node, node: fx.Node, behind: Density, thorough: bool) -> Density:
    """As a reshaping. Holds if the axis has one entry, and is not that of the images."""
    axis = user.args[1] % node.meta["val"].ndim
    if axis == 0 or not same_size(node.meta["val"].shape[axis], 1):
        raise Unknown(f"{name_of(user)} leaves entries out")
    return _reshaped(user, node, behind, thorough)


def _refused(why: str) -> Density:
    raise Unknown(why)


def _thin(pattern: Pattern, unusable: Tensor) -> Pattern | None:
    """A part of a pattern that is enough to show that something is there, and cheaper to look at.

    `unusable` are the channels whose weights have exact zeros: the longest run of others is looked at; None if none.
    """
    while isinstance(pattern, Union):
        pattern = next((each for each in pattern.of if isinstance(each, Open)), pattern.of[0])
    if not bool(unusable.any()):
        return pattern
    runs, begin = [], 0
    for index in [*unusable.nonzero().flatten().tolist(), len(unusable)]:
        runs.append((index - begin, begin))
        begin = index + 1
    length, begin = max(runs)
    return Slice(pattern, begin, begin + length) if length else None


def _weight(user: fx.Node, node: fx.Node) -> Tensor | None:
    """The constant weight (outputs, ...) by which a convolution or linear operator multiplies a node; else None."""
    if user.target in CONVOLUTIONS:
        return constant_value(user.args[1]) if user.args[0] is node else None
    if user.target not in _LINEAR:
        return None
    index, at = (1, 2) if user.target is aten.addmm.default else (0, 1)
    weight = constant_value(user.args[at]) if user.args[index] is node else None
    # (outputs, inputs), as the linear operator has it and the products have not.
    return weight if weight is None or user.target is aten.linear.default else weight.t()


_LOOKED_AT = 4096


def _general(weight: Tensor) -> bool:
    """Whether weights are such as training leaves them: hand-made filters have few values, again and again.

    Sums of products with those may be zero for some images and not for others: a blurred map taken from itself, a
    Laplacian over what is the same everywhere.
    """
    values = weight.detach().flatten()[:_LOOKED_AT].abs()
    values = values[values != 0]
    return values.numel() > 0 and 2 * values.unique().numel() > min(values.numel(), 512)


def _vanishing(weight: Tensor) -> Tensor:
    """Which weights are zero, or so small that a product with them may be."""
    return weight.abs() <= _smallest(weight.dtype)


def _smallest(dtype: torch.dtype) -> float:
    """The square root of the smallest normal number: products of larger ones do not underflow."""
    return float(torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).tiny) ** 0.5


def _same_images(value: Tensor, result: Tensor) -> bool:
    return value.ndim > 0 and result.ndim > 0 and same_size(value.shape[0], result.shape[0])


def _geometry(user: fx.Node, node: fx.Node, weight: Tensor) -> Geometry:
    if weight.ndim != 4 or not isinstance(user.meta["val"], Tensor):
        raise Unknown(f"{name_of(user)} is not over two axes")
    defaults: list[Any] = [None, None, None, [1, 1], [0, 0], [1, 1], 1]
    if user.target is aten.convolution.default:
        _, _, _, stride, padding, dilation, transposed, _, groups = user.args
        if transposed:
            raise Unknown(f"{name_of(user)} is transposed")
    else:
        given = list(user.args)
        stride, padding, dilation, groups = (given + defaults[len(given) :])[3:]
    value, result = node.meta["val"].shape, user.meta["val"].shape
    return Geometry(
        pair(weight.shape[2:]),
        pair(stride),
        pair(padding),
        pair(dilation),
        int(groups),
        int(value[1]),
        (int(value[2]), int(value[3])),
        (int(result[2]), int(result[3])),
    )


_RULES: dict[Any, Rule] = {
    **dict.fromkeys((aten.neg.default, aten.clone.default, aten.alias.default, aten.contiguous.default, MARK), _same),
    **dict.fromkeys((aten.add.Tensor, aten.sub.Tensor), _sum),
    **dict.fromkeys((aten.dropout.default, aten.feature_dropout.default), _dropout),
    **dict.fromkeys((aten.relu.default, aten.relu_.default), _gate(0.0, inf)),
    aten.relu6.default: _gate(0.0, 6.0),
    aten.hardtanh.default: _hardtanh,
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.leaky_relu.default: _leaky_relu,
    aten.sigmoid.default: _sigmoid,
    **dict.fromkeys((aten.mul.Tensor, aten.div.Tensor), _product),
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    **dict.fromkeys(_LINEAR, _linear),
    aten.group_norm.default: _group_norm,
    aten.cat.default: _concatenation,
    aten.max_pool2d_with_indices.default: _max_pool,
    operator.getitem: _first_item,
    **dict.fromkeys((aten.mean.dim, aten.adaptive_avg_pool2d.default), _mean),
    aten.avg_pool2d.default: _avg_pool,
    **dict.fromkeys(
        (
            aten.view.default,
            aten.reshape.default,
            aten.flatten.using_ints,
            aten._unsafe_view.default,
            aten.permute.default,
            aten.transpose.int,
            aten.squeeze.dim,
            aten.squeeze.dims,
            aten.unsqueeze.default,
        ),
        _reshaped,
    ),
    aten.select.int: _selected,
    aten.channel_shuffle.default: _moved,
}
_ENTRY_BY_ENTRY = (
    *(_same, _sum, _product, _dropout, _hardtanh, _clamp, _leaky_relu, _sigmoid),
    *(_RULES[each] for each in (aten.relu.default, aten.relu6.default)),
)
_POOLINGS = (_max_pool, _first_item, _avg_pool)
# Rules that hold for an image whatever it is that comes back to all of it, be it nothing.
_IMAGE_BY_IMAGE = (_same, _sum, _mean, _reshaped)
