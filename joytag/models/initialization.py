"""Initial weights; INITIALIZATIONS lists those that a config can name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def truncated_normal(module: nn.Module) -> None:
    """Set a layer's initial weights, in place; norms and other modules keep theirs.

    Linear layers and embeddings get truncated normals with standard deviation 0.02, as in most vision transformers,
    convolutions He normals (He et al. 2015, arXiv:1502.01852), and biases 0.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


# Each is applied to every module of a network that torch has initialized.
INITIALIZATIONS: dict[str, Callable[[nn.Module], None]] = {
    "torch": lambda module: None,
    "truncated_normal": truncated_normal,
}
