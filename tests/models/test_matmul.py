"""The choice of a CPU's library of float32 products: exact products only, the faster by far, and the same results."""

from collections.abc import Iterator
from itertools import chain, repeat

import pytest
import torch
from torch.nn import functional as F

from joytag.models import matmul
from joytag.models.vit import ViT, ViTConfig

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def default_afterwards() -> Iterator[None]:
    yield
    matmul.use(matmul.DEFAULT)


@pytest.fixture
def model() -> ViT:
    config = ViTConfig(
        n_tags=5, image_size=32, num_blocks=2, patch_size=8, d_model=32, mlp_dim=64, num_heads=2, cnn_stem=None
    )
    return config.build().eval()


def let_take(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> None:
    """Have the processor time of products by each library be these seconds, and all be exact."""
    ticks = chain.from_iterable(repeat([0.0, seconds["blas"], 0.0, seconds["onednn"]]))
    monkeypatch.setattr(matmul.time, "thread_time", lambda: next(ticks))
    monkeypatch.setattr(matmul, "is_exact", lambda library: True)


@pytest.mark.parametrize(("speed", "chosen"), [(2.3, "onednn"), (1.2, "blas"), (1.0, "blas"), (0.5, "blas")])
def test_onednn_must_be_faster_by_far(model, monkeypatch, speed, chosen):
    let_take(monkeypatch, {"blas": 1.0, "onednn": 1 / speed})
    assert matmul.pick(model, CPU, torch.float32) == chosen


@pytest.mark.parametrize("wanted", [*matmul.LIBRARIES])
def test_the_wanted_library_is_taken_without_measuring(model, monkeypatch, wanted):
    let_take(monkeypatch, {"blas": 1.0, "onednn": 1.0})
    assert matmul.pick(model, CPU, torch.float32, wanted) == wanted


@pytest.mark.parametrize("wanted", [None, "onednn"])
def test_inexact_products_are_never_taken(model, monkeypatch, wanted):
    let_take(monkeypatch, {"blas": 1.0, "onednn": 0.1})
    monkeypatch.setattr(matmul, "is_exact", lambda library: False)
    assert matmul.pick(model, CPU, torch.float32, wanted) == "blas"


def test_weights_of_another_format_keep_the_default(model, monkeypatch):
    let_take(monkeypatch, {"blas": 1.0, "onednn": 0.1})
    assert matmul.pick(model.double(), CPU, torch.float32) == "blas"


@pytest.mark.parametrize(("device", "dtype"), [("cuda", torch.float32), ("cpu", torch.bfloat16)])
def test_other_devices_and_formats_keep_the_default(model, monkeypatch, device, dtype):
    let_take(monkeypatch, {"blas": 1.0, "onednn": 0.1})
    assert matmul.pick(model, torch.device(device), dtype, "onednn") == "blas"


@pytest.mark.parametrize(
    ("dtype", "exact"), [(torch.bfloat16, False), (torch.float16, False), (torch.float32, True), (torch.float64, True)]
)
def test_products_are_exact_to_the_rounding_of_float32(monkeypatch, dtype, exact):
    product, in_use = torch.Tensor.__matmul__, ["blas"]
    monkeypatch.setattr(matmul, "use", in_use.append)

    def multiply(a, b):
        is_measured = a.dtype == torch.float32 and in_use[-1] == "onednn"
        return product(a.to(dtype), b.to(dtype)).float() if is_measured else product(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", multiply)
    assert matmul.is_exact("onednn") == exact
    assert in_use == ["blas", "onednn", "blas"]


def test_a_precision_that_others_have_set_is_kept():
    products = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    products.fp32_precision = "tf32"
    after = []
    for library in ("blas", "onednn", "blas"):
        matmul.use(library)
        after.append(products.fp32_precision)
    assert after == ["tf32", "bf16", "none"]


def test_measuring_changes_neither_weights_nor_random_numbers_nor_threads(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    matmul.pick(model, CPU, torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("tokens", [1, 16, 50, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_equals_torch(tokens, dtype):
    q, k, v = torch.randn(3, 2, 3, tokens, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(matmul.attend_by_onednn(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_both_libraries_give_the_same_logits_and_gradients(model):
    if not matmul.is_exact("onednn"):
        pytest.skip("this CPU computes in bf16 where bf16 would do")
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def compute(library):
        matmul.use(library, model)
        model.zero_grad()
        logits = model(images)
        logits.square().sum().backward()
        return [logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())]

    for value, other in zip(compute("onednn"), compute("blas"), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5)
