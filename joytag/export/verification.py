"""The comparison of an exported model with its release, through onnxruntime as other programs use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from joytag.data import preprocessing
from joytag.data.tag_names import DEFAULT_THRESHOLD
from joytag.export.layouts import Layout, Row
from joytag.export.manifest import Verification
from joytag.export.precisions import Precision
from joytag.export.samples import Samples
from joytag.models import inference
from joytag.models.architectures import Model

BATCH = 5  # not that of the example with which the model was traced
ROUNDING = 1e-5  # of a score: a decision so close to the threshold is no difference


class DifferenceError(ValueError):
    """An exported model that decides otherwise than its release."""


def reference_scores(model: Model, squares: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the release's scores, float32 [B, N], of images, uint8 [B, 3, S, S], on the CPU."""
    parts = torch.from_numpy(squares).split(BATCH)
    logits = [inference.predict(model, part, torch.device("cpu"), torch.float32) for part in parts]
    return torch.cat(logits).sigmoid().numpy()


def encode(layout: Layout, squares: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the model's input in a layout for images, uint8 [B, 3, S, S]."""
    pixels = torch.from_numpy(squares)
    values = (preprocessing.normalize(pixels) if layout.is_standardized else pixels.float()).numpy()
    values = values[:, ::-1] if layout.channels == "BGR" else values
    return np.ascontiguousarray(values.transpose(0, 2, 3, 1) if layout.axes == "NHWC" else values)


def exported_scores(
    model: bytes, layout: Layout, rows: Sequence[Row], squares: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Return an exported model's scores in the order of the release, float32 [B, N], of images, uint8 [B, 3, S, S]."""
    session = open_session(model)
    name = next((name for name, holds in layout.outputs.items() if holds == "scores"), "logits")
    parts = [
        session.run([name], {layout.input: encode(layout, squares[start : start + BATCH])})[0]
        for start in range(0, len(squares), BATCH)
    ]
    values = np.concatenate(parts).astype(np.float32)
    if layout.outputs[name] == "logits":
        values = torch.from_numpy(values).sigmoid().numpy()
    known = {row.output: position for position, row in enumerate(rows) if row.output is not None}
    return values[:, [known[output] for output in sorted(known)]]


def open_session(model: bytes) -> Any:
    """Open a model for the CPU. Raises ModuleNotFoundError without onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def compare(expected: NDArray[np.float32], found: NDArray[np.float32], origin: str) -> Verification:
    """Compare scores, [B, N] each, and the decisions at the default threshold that follow from them."""
    theirs, ours = expected > DEFAULT_THRESHOLD, found > DEFAULT_THRESHOLD
    differences = np.abs(expected - found)
    differing = (theirs != ours) & (differences > ROUNDING)
    either = np.count_nonzero(theirs | ours)
    return Verification(
        origin=origin,
        images=len(expected),
        decisions=expected.size,
        agreement=1 - np.count_nonzero(differing) / expected.size,
        common_tags=np.count_nonzero(theirs & ours) / either if either else 1.0,
        largest_difference=float(differences.max()),
    )


def verify(
    model: bytes,
    layout: Layout,
    rows: Sequence[Row],
    precision: Precision,
    samples: Samples,
    expected: NDArray[np.float32],
) -> Verification:
    """Compare an exported model with the release's scores of the samples.

    Raises DifferenceError when they differ by more than the precision allows.
    """
    found = exported_scores(model, layout, rows, samples.squares)
    if not np.isfinite(found).all():
        raise DifferenceError("its scores are not all numbers, so nothing is exported")
    result = compare(expected, found, samples.origin)
    if result.agreement < precision.agreement or result.largest_difference > precision.tolerance:
        raise DifferenceError(
            f"{result.agreement:.3%} of {result.decisions:,} decisions on {result.images} images ({result.origin}) are "
            f"the release's, and scores differ by up to {result.largest_difference:.1e}; {precision.agreement:.1%} and "
            f"{precision.tolerance:g} are required, so nothing is exported"
        )
    return result
