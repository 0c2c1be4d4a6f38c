"""`Tagger`: a release directory and pictures to tags."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from joytag import distributed, image, release
from joytag.evaluate import predict
from joytag.model import ViT


class Tagger:
    """A model with its tag names, ready for pictures.

    tagger = Tagger.load("runs/openmoji/release")
    for tag, score in tagger("picture.jpg"):
        print(tag, score)
    """

    def __init__(self, model: ViT, tags: list[str], device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.tags, self.device, self.dtype = model.to(device).eval(), tags, device, dtype

    @classmethod
    def load(cls, directory: str | os.PathLike[str], device: str = "auto", precision: str = "auto") -> Tagger:
        """Read a release directory or a checkpoint. Raises ReleaseError when it is not one."""
        chosen = distributed.pick_device(device)
        return cls(*release.load(Path(directory)), chosen, distributed.pick_dtype(precision, chosen))

    def scores(self, picture: str | os.PathLike[str] | Image.Image) -> np.ndarray:
        """The score of every tag, float32 [N] in [0, 1]. Raises ImageError when a file is not a usable picture."""
        if not isinstance(picture, Image.Image):
            picture = image.decode(picture)
        square = image.square(image.on_white(picture), self.model.config.image_size, Image.Resampling.BICUBIC)
        batch = torch.from_numpy(image.to_array(square))[None]
        return predict(self.model, batch, self.device, self.dtype)[0].cpu().numpy()

    def __call__(
        self, picture: str | os.PathLike[str] | Image.Image, threshold: float = 0.4
    ) -> list[tuple[str, float]]:
        """The tags whose score is above the threshold, with their scores, best first."""
        scores = self.scores(picture)
        return [(self.tags[i], float(scores[i])) for i in np.argsort(-scores, kind="stable") if scores[i] > threshold]
