"""Writing of exports: each layout complete and verified, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from joytag.core import files
from joytag.core.lock import sole_creator
from joytag.data.tag_names import DEFAULT_THRESHOLD
from joytag.export import graph, manifest
from joytag.export.layouts import LAYOUTS
from joytag.export.manifest import Manifest, Thresholds
from joytag.export.precisions import PRECISIONS
from joytag.export.samples import Samples
from joytag.export.source import Source
from joytag.export.verification import reference_scores, verify
from joytag.models import onnx_graph


@dataclass(frozen=True)
class Exporter:
    """What all layouts of an export share. Without `samples` nothing is verified.

    `embedding` adds the pooled features as the last output, if the layout does not have them anyway. `version` is that
    of joytag.
    """

    source: Source
    precision: str
    embedding: bool
    samples: Samples | None
    version: str

    def export(self, layouts: Sequence[str], output: Path) -> dict[Path, Manifest]:
        """Write one layout to a directory that does not exist yet, or each of several to one of its name in there.

        Returns the manifests by directory. Raises Exists, GraphError and DifferenceError; nothing is then left.
        """
        with sole_creator(output) as new:
            expected = None
            if self.samples is not None:
                expected = reference_scores(self.source.model, self.samples.squares)
            parts = {name: Path() if len(layouts) == 1 else Path(name) for name in layouts}
            return {output / part: self._write(new / part, name, expected) for name, part in parts.items()}

    def _write(self, directory: Path, name: str, expected: NDArray[np.float32] | None) -> Manifest:
        """Write a layout's files, the manifest last, and return that."""
        import onnx

        layout, precision = LAYOUTS[name], PRECISIONS[self.precision]
        rows, notes = layout.rows(self.source.tags)
        input_ = layout.describe_input(self.source.size)
        outputs = layout.describe_outputs(self.source, rows, self.embedding)
        model = precision.convert(graph.trace(self.source.model, layout, rows, outputs, precision.dtype))
        graph.finish(model, input_, outputs)
        verified = None
        if expected is not None and self.samples is not None:
            verified = verify(model.SerializeToString(), layout, rows, precision, self.samples, expected)
        described = Manifest(
            joytag=self.version,
            layout=name,
            precision=self.precision,
            model=layout.model,
            opset=onnx_graph.OPSET,
            ir_version=graph.IR_VERSION,
            input=input_,
            outputs=outputs,
            tags=len(rows),
            model_tags=len(self.source.tags),
            thresholds=Thresholds(default=DEFAULT_THRESHOLD, suggested=self.source.suggested),
            notes=[*notes, *layout.limits(self.source.size)],
            release=self.source.hashes,
            verification=verified,
            evaluation=self.source.evaluation,
        )
        graph.label(model, described.properties())
        path = directory / layout.model
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path)
        layout.write(directory, self.source, rows)
        files.write_text(directory / manifest.FILE, described.text())
        return described
