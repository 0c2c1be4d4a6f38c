"""JoyTag: train, evaluate and use multi-label image taggers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from joytag.tagging.tagger import Result as Result
    from joytag.tagging.tagger import Tagger as Tagger

__version__ = "0.2.0"
__all__ = ["Result", "Tagger", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `Tagger` and `Result` when they are first used, so that `import joytag` alone does not load torch."""
    if name not in ("Result", "Tagger"):
        raise AttributeError(f"module 'joytag' has no attribute {name!r}")
    from joytag.tagging import tagger

    return getattr(tagger, name)
