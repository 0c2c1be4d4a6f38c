"""The app in this process, and images as bytes."""

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from fastapi.testclient import TestClient
from paths import TINY
from PIL import Image

from joytag.app import served
from joytag.app.security import LOCAL, Access
from joytag.app.service import create_app

ADDRESS = "http://127.0.0.1:8765"


@contextmanager
def opener() -> Iterator[Callable[..., TestClient]]:
    """Yield a function that opens a client of an app of the small release, as a browser on this machine would."""
    with ExitStack() as stack:

        def open_client(access: Access = LOCAL, **options: Any) -> TestClient:
            models = served.load([str(TINY)], device="cpu")
            return stack.enter_context(
                TestClient(create_app(models, access, **options), ADDRESS, follow_redirects=False)
            )

        yield open_client


def picture(number: int) -> bytes:
    """Encode an image of noise as PNG."""
    rng, buffer = np.random.default_rng(number), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (20 + number, 40, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
