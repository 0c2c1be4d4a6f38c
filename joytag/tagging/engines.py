"""The table of engines: libraries besides torch that compute a model's scores on a CPU."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from joytag.core import files
from joytag.core.errors import first_line
from joytag.data import preprocessing
from joytag.models import inference, onnx_graph, release
from joytag.models.architectures import Model

TORCH, AUTO = "torch", "auto"
INPUT, OUTPUT = "pixels", "scores"
VERSION = 1  # of the graphs in the cache; counts up when `Network` changes
TOLERANCE = {"fp32": 1e-4, "bf16": 0.05}  # of a score, beside torch in float32


class EngineError(ValueError):
    """An engine that cannot be used for a model, a device or a precision."""


class Session(Protocol):
    """A model's graph, opened by an engine. Several threads may call it at once."""

    name: str

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the scores, float32 [B, N], of images, uint8 [B, 3, S, S]."""


class Network(nn.Module):
    """A model from pixels to scores, for tracing."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Uint8 [B, 3, S, S] to float32 [B, N]."""
        return self.model(preprocessing.normalize(pixels)).sigmoid()


class OnnxRuntime:
    """A graph opened by onnxruntime; each thread that calls it uses as many threads as torch would."""

    name = "onnxruntime"

    def __init__(self, path: Path, precision: str) -> None:
        self._path, self._lock = path, threading.Lock()
        self._sessions: dict[int, Any] = {}  # by the number of threads

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the scores of images."""
        threads = torch.get_num_threads()
        with self._lock:
            if threads not in self._sessions:
                self._sessions[threads] = self._open(threads)
        return self._sessions[threads].run([OUTPUT], {INPUT: pixels})[0]

    def _open(self, threads: int) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        return onnxruntime.InferenceSession(str(self._path), options, providers=["CPUExecutionProvider"])


class OpenVino:
    """A graph opened by OpenVINO, which shares the cores among the threads that call it."""

    name = "openvino"

    def __init__(self, path: Path, precision: str) -> None:
        import openvino

        hints = {"INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision]}
        hints |= {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
        self._compiled = openvino.Core().compile_model(path, "CPU", hints)
        self._local = threading.local()

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the scores of images."""
        if not hasattr(self._local, "request"):  # a request is for one thread
            self._local.request = self._compiled.create_infer_request()
        return np.array(self._local.request.infer({INPUT: pixels})[OUTPUT])


class Engine(NamedTuple):
    """An engine: the precisions in which it computes, the usual one first, and how it opens a graph's file."""

    precisions: tuple[str, ...]
    open: Callable[[Path, str], Session]


ENGINES = {  # by the names of their packages
    "onnxruntime": Engine(("fp32",), OnnxRuntime),
    "openvino": Engine(("fp32", "bf16"), OpenVino),
}
NAMES = (AUTO, TORCH, *ENGINES)


def pick_engine(name: str, device: torch.device, precision: str) -> str:
    """Return the engine for a name; `auto` is onnxruntime if it is installed, for float32 on a CPU, else torch.

    Raises EngineError for an engine that does not compute on the device or in the precision.
    """
    if name == AUTO:
        fits = device.type == "cpu" and precision in ENGINES["onnxruntime"].precisions
        return "onnxruntime" if fits and find_spec("onnxruntime") is not None else TORCH
    if name != TORCH and (device.type != "cpu" or precision not in ENGINES[name].precisions):
        possible = " or ".join(ENGINES[name].precisions)
        raise EngineError(f"engine {name}: computes on a CPU in {possible}, not in {precision} on {device}")
    return name


def open_session(name: str, model: Model, release_directory: Path, precision: str) -> Session | None:
    """Return a session of an engine that computes the scores of a release's model, None for torch.

    The graph is exported on first use, into the cache, by the hashes of the release's files. One that cannot be
    exported or opened, or that gives other scores, is a warning, and None. Raises ModuleNotFoundError when the engine
    is not installed.
    """
    if name == TORCH:
        return None
    content = json.dumps([VERSION, sorted(release.hashes(release_directory).items())])
    path = cache_directory() / "engines" / f"{hashlib.sha256(content.encode()).hexdigest()}.onnx"
    try:
        if not path.is_file():
            _export(model, path)
        session = ENGINES[name].open(path, precision)
        _check(session, model, TOLERANCE[precision])
    except ModuleNotFoundError:
        raise
    except Exception as error:  # exporters and engines raise errors of any type
        warnings.warn(f"engine {name}: {first_line(error)}; torch computes instead", stacklevel=2)
        with suppress(OSError):
            path.unlink(missing_ok=True)  # the next run exports it again
        return None
    return session


def _export(model: Model, path: Path) -> None:
    side = model.config.image_size
    graph = onnx_graph.trace(Network(model), torch.zeros(2, 3, side, side, dtype=torch.uint8), INPUT, [OUTPUT])
    path.parent.mkdir(parents=True, exist_ok=True)
    files.remove_partials(path.parent, files.ABANDONED)
    with files.replacing(path) as partial:
        partial.write_bytes(graph)


def _check(session: Session, model: Model, tolerance: float) -> None:
    """Raise EngineError unless an engine gives the model's scores, on an image of noise."""
    side = model.config.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, side, side), dtype=np.uint8)
    logits = inference.predict(model, torch.from_numpy(pixels), torch.device("cpu"), torch.float32)
    difference = float(np.abs(session(pixels) - logits.sigmoid().numpy()).max())
    if not difference <= tolerance:
        raise EngineError(f"its scores differ by up to {difference:.1e} from torch's")


def cache_directory() -> Path:
    """Return the directory for what can be computed again: JOYTAG_CACHE, or joytag/ in the user's cache."""
    if "JOYTAG_CACHE" in os.environ:
        return Path(os.environ["JOYTAG_CACHE"])
    base = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "joytag"
