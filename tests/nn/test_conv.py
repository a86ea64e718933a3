import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.nn.conv import PaddedConv3d, PaddedConvTranspose3d, Padding, pad3d, padding_amounts

NUMPY = {"replicate": "edge", "zeros": "constant", "reflect": "reflect", "circular": "wrap"}
MODES = st.sampled_from(list(NUMPY))


@pytest.mark.parametrize(
    ("kernel", "stride", "amounts"), [(3, 1, (1, 1)), (4, 2, (1, 1)), (4, 1, (2, 1)), (1, 1, (0, 0))]
)
def test_the_front_gets_the_larger_half(kernel, stride, amounts):
    assert padding_amounts(kernel, stride) == amounts


@given(st.tuples(MODES, MODES), st.tuples(*[st.integers(1, 5)] * 3), st.tuples(*[st.integers(0, 3)] * 6))
@settings(max_examples=60, deadline=None)
def test_pads_as_numpy_does(modes, shape, amounts):
    x = torch.randn(1, 2, *shape)
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))
    axes = (modes[0], modes[1], modes[1])
    ours = pad3d(x, pairs, axes)
    theirs = x.numpy()
    for axis, mode in enumerate(axes):
        theirs = np.pad(theirs, [pairs[axis] if i == axis + 2 else (0, 0) for i in range(5)], NUMPY[mode])
    assert np.array_equal(ours.numpy(), theirs)


@given(st.tuples(MODES, MODES), st.tuples(*[st.sampled_from([1, 2])] * 3))
@settings(max_examples=40, deadline=None)
def test_sizes_divide_and_multiply_exactly_and_match_written_out_padding(modes, stride):
    padding = Padding(*modes)
    x = torch.randn(2, 3, 4, 6, 8)
    amounts = [padding_amounts(4, s) for s in stride]
    padded = pad3d(x, amounts, (modes[0], modes[1], modes[1]))

    conv = PaddedConv3d(3, 5, 4, stride, padding)
    out = conv(x)
    assert out.shape[2:] == tuple(n // s for n, s in zip(x.shape[2:], stride, strict=True))
    torch.testing.assert_close(out, F.conv3d(padded, conv.weight, conv.bias, stride))

    up = PaddedConvTranspose3d(3, 5, 4, stride, padding)
    out = up(x)
    assert out.shape[2:] == tuple(n * s for n, s in zip(x.shape[2:], stride, strict=True))
    torch.testing.assert_close(out, F.conv_transpose3d(padded, up.weight, up.bias, stride, padding=3))


def test_no_padding_in_time_is_the_middle_of_any_padded_result():
    conv = PaddedConv3d(2, 2, 3, padding=Padding("none", "zeros"))
    other = PaddedConv3d(2, 2, 3, padding=Padding("circular", "zeros"))
    other.load_state_dict(conv.state_dict())
    x = torch.randn(1, 2, 6, 4, 4)
    assert conv(x).shape[2] == 4
    torch.testing.assert_close(conv(x), other(x)[:, :, 1:-1])


@pytest.mark.parametrize("mode", NUMPY)
def test_keeps_channels_last(mode):
    conv = PaddedConv3d(4, 4, 3, padding=Padding(mode, mode)).to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 4, 4, 6, 6).to(memory_format=torch.channels_last_3d)
    assert conv(x).is_contiguous(memory_format=torch.channels_last_3d)
