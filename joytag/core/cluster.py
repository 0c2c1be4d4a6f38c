"""The Ray cluster of RAY_ADDRESS, or one on this machine."""

from __future__ import annotations

import logging


def connect() -> dict[str, float]:
    """Connect to the cluster, and return its resources: CPU, perhaps GPU.

    All of its machines must see the same files under the same paths. Raises ModuleNotFoundError when ray is not
    installed.
    """
    import ray  # here, since it is an optional package

    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    return dict(ray.cluster_resources())
