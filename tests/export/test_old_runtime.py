"""An export on an old onnxruntime, in a process of its own."""

import os
import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT
from requirements import require

from joytag.export.layouts import LAYOUTS
from joytag.export.manifest import read
from joytag.export.samples import drawn
from joytag.export.verification import encode, open_session

OLD = ROOT / "build/onnxruntime-oldest"  # `make check-export` installs it
RUN = """
import sys
import numpy, onnxruntime
model, images, result = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
inputs = {session.get_inputs()[0].name: numpy.load(images)}
numpy.savez(result, *session.run(None, inputs))
print(onnxruntime.__version__)
"""


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_oldest_onnxruntime_computes_the_same(layout, exports, tmp_path):
    require((OLD / "onnxruntime").is_dir(), "an old onnxruntime: make check-export")
    path = exports / layout / read(exports / layout).model
    inputs = encode(LAYOUTS[layout], drawn(16).squares)
    np.save(tmp_path / "images.npy", inputs)
    words = [path, tmp_path / "images.npy", tmp_path / "result.npz"]
    environment = os.environ | {"PYTHONPATH": str(OLD)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, words)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()
    session = open_session(path.read_bytes())
    expected = session.run(None, {LAYOUTS[layout].input: inputs})
    found = np.load(tmp_path / "result.npz")
    for old, new in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(old, new, atol=1e-4)
    print(f"{layout}: onnxruntime {done.stdout.strip()}")
