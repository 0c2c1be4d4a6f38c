"""What some tests need beyond the package: without it they are skipped, but fail where CI=true."""

import os
import sys
from importlib.util import find_spec

import pytest

# Hardware and the system are exceptions: no installation provides them.
IS_UNIX = hasattr(os, "fork")
needs_unix = pytest.mark.skipif(not IS_UNIX, reason="needs Unix")
needs_linux = pytest.mark.skipif(sys.platform != "linux" or not IS_UNIX, reason="needs Linux")


def require(available: bool, what: str) -> None:
    """Skip the test or fixture that calls this unless `what` is available; with CI=true, fail it."""
    if available:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"needs {what} (a failure, not a skip, since CI=true)", pytrace=False)
    pytest.skip(f"needs {what}")


def require_ray() -> None:
    """Require ray, an optional dependency."""
    require(find_spec("ray") is not None, "ray: pip install 'joytag[cluster]'")
