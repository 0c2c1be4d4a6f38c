"""Training steps of a small model, and processes that are none."""

from collections.abc import Callable, Iterator
from typing import Any

SMALL: dict[str, Any] = {"num_blocks": 2, "d_model": 32, "mlp_dim": 64, "num_heads": 2, "patch_size": 4}
SMALL |= {"stochdepth_rate": 0.0, "layerscale_init": 0.1, "cnn_stem": "conv:c=8;ln;relu;conv:c=32"}
SETTINGS = tuple(f"model.{name}={value}" for name, value in SMALL.items())


class Local:
    """In place of `remote.Remote`: the same in this process, without the seconds that another takes to start."""

    def __init__(self, function: Callable[..., Iterator[float]], *arguments: object) -> None:
        self.values, self.results = function(*arguments), list[float]()

    def __enter__(self) -> "Local":
        return self

    def __call__(self) -> None:
        self.results.append(next(self.values))

    def __exit__(self, *_: object) -> None:
        pass
