"""Both operations on maps of any shape, strides and dtype, as hypothesis finds them."""

import torch
from hypothesis import example, given
from hypothesis import strategies as st

from gaia_fast.ops import channel_moments, relu_backward_moments

from cases import CHANNELS_LAST, NCHW, Layout, Target, activation, gradient, norm_scale
from tolerance import assert_moments, assert_same_bits

shapes = st.tuples(st.integers(0, 3), st.integers(0, 70), st.integers(0, 12), st.integers(0, 12))
small = st.integers(0, 3)
layouts = st.one_of(
    st.sampled_from([NCHW, CHANNELS_LAST]),
    st.builds(
        Layout,
        name=st.just("drawn"),
        order=st.permutations(range(4)).map(tuple),
        pad=st.tuples(*[st.tuples(small, small)] * 4),
        step=st.tuples(*[st.integers(1, 2)] * 4),
        expand=st.sets(st.integers(0, 3), max_size=3).map(lambda dims: tuple(sorted(dims))),
        offset=small,
    ),
)
dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
seeds = st.integers(0, 2**31)


@given(shapes, layouts, dtypes, seeds)
@example((1, 65, 1, 1), CHANNELS_LAST, torch.bfloat16, 0)
def test_channel_moments(target: Target, shape: tuple[int, ...], layout: Layout, dtype: torch.dtype, seed: int) -> None:
    g = gradient(shape, dtype, target.device, layout, seed)
    moments = channel_moments(g.tensor, backend=target.backend)
    assert_moments(moments, g.tensor)
    g.assert_untouched("g")
    # |sum| <= abs_sum <= count * largest; no more non-zeros than positions; the sign of g does not matter to them.
    slack = 1 + 2.0**-16
    assert bool((moments[0].abs() <= moments[1] * slack).all())
    if g.tensor.numel():
        assert bool((moments[1] <= moments[2] * g.tensor.abs().amax((2, 3)).float() * slack).all())
    assert bool((moments[2] <= shape[2] * shape[3]).all())
    assert_same_bits(
        channel_moments(g.tensor.neg(), backend=target.backend)[1:],
        channel_moments(g.tensor.clone(), backend=target.backend)[1:],
        "moments of -g",
    )


@given(shapes, layouts, layouts, dtypes, seeds, st.booleans(), st.booleans())
def test_relu_backward_moments(
    target: Target,
    shape: tuple[int, ...],
    g_layout: Layout,
    y_layout: Layout,
    dtype: torch.dtype,
    seed: int,
    masked: bool,
    scaled: bool,
) -> None:
    g = gradient(shape, dtype, target.device, g_layout, seed)
    y = activation(shape, dtype, target.device, y_layout, seed + 1)
    scale = norm_scale(shape[1], dtype, target.device) if scaled else None
    grad_in, moments = relu_backward_moments(g.tensor, y.tensor if masked else None, scale, backend=target.backend)
    passed = g.tensor.masked_fill(y.tensor <= 0, 0.0) if masked else g.tensor
    assert_moments(moments, passed)
    expected = passed if scale is None else (passed.float() * scale.view(1, -1, 1, 1)).to(dtype)
    assert_same_bits(grad_in, expected, "grad_in")
    g.assert_untouched("g")
    y.assert_untouched("y")
