"""The stem's grammar, and its check against what torch computes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from joytag.models.stem import build_stem, check_stem

LAYERS = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(0, 3))  # kernel, stride, padding


@given(st.lists(LAYERS, min_size=1, max_size=3))
def test_a_stem_is_accepted_where_torch_turns_each_patch_into_a_token(layers):
    patch_size = math.prod(stride for _, stride, _ in layers)
    stem = ";relu;".join(f"conv:c=2,k={kernel},s={stride},p={padding}" for kernel, stride, padding in layers)
    try:
        size = tuple(build_stem(stem)(torch.zeros(1, 3, 4 * patch_size, 4 * patch_size)).shape[2:])
    except RuntimeError:
        size = None
    if size == (4, 4):
        check_stem(stem, 2, patch_size)
    else:
        with pytest.raises(ValueError, match=r"cnn_stem: (turns 4 x 4 patches into|kernel k=)"):
            check_stem(stem, 2, patch_size)


@pytest.mark.parametrize(
    ("stem", "reason"),
    [
        ("conv:c=8,s=4,k=9", "turns 4 x 4 patches into 3 x 3; adjust"),
        ("conv:c=8,s=4,k=99", "kernel k=99 is larger than its input of 4 x 4 patches, 16 pixels wide"),
        ("conv:c=99999999999999999999;conv:c=8", "cnn_stem: .*"),
    ],
)
def test_what_is_no_stem_is_refused_in_one_line(stem, reason):
    with pytest.raises(ValueError, match=reason) as error:
        check_stem(stem, 8, 4)
    assert "\n" not in str(error.value)
