"""Classification of pictures: top classes and probabilities from the logits of any predictor.

Shape letters: N images, C channels, K classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from util.infer.class_names import read_class_names
from util.infer.engine import Predictor
from util.infer.model_info import preprocess_of

TTA = ("flip",)

Answer = list[tuple[str, float]]  # [(class name, probability), ...], best first


class ImageClassifier:
    """Callable that classifies a picture, or a list of pictures. Several threads may use it at once.

    See util.images.preprocess.Preprocess for what a picture may be: a path, bytes, a PIL image, an array.

    Args:
        predictor: of a classifier, see util.infer.predictors.
        topk: number of classes in an answer.
        batch_size: images computed at once. It does not change the answers.
        temperature: divisor of the logits (arXiv 1706.04599); None for the model's own, by default 1.
        tta: None, or "flip" for the mean probability of a picture and its mirror image.
        class_names: file of class names that replace the model's, see util.infer.class_names.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        topk: int = 5,
        batch_size: int = 8,
        temperature: float | None = None,
        tta: str | None = None,
        class_names: str | None = None,
    ) -> None:
        info = predictor.info
        if info["task"] != "classification":
            raise ValueError(
                f"this model outputs features ({', '.join(info['outputs'])}), not classes; write "
                "them with --features"
            )
        for flag, value in (("topk", topk), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"--{flag} must be at least 1, got {value}")
        self.temperature = info["temperature"] if temperature is None else temperature
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"--temperature must be a number above 0, got {temperature}")
        if tta is not None and tta not in TTA:
            raise ValueError(f"--tta: expected {' or '.join(TTA)}, got {tta!r}")
        self.predictor, self.info = predictor, info
        self.topk, self.batch_size, self.tta = topk, batch_size, tta
        self.names = info["classes"]
        if class_names is not None:
            self.names = read_class_names(class_names, info["outputs"]["logits"][1])
        self.prepare = preprocess_of(info)

    def __call__(self, pictures: Any) -> Answer | list[Answer]:
        """Classify a picture -> [(class name, probability), ...], best first; or a list of pictures.

        Raises util.images.decode.UnreadableImage, with its name, for a picture that cannot be read.
        """
        if isinstance(pictures, (list, tuple)):
            return [
                answer
                for start in range(0, len(pictures), self.batch_size)
                for answer in self.top(self._probabilities_of(pictures[start : start + self.batch_size]))
            ]
        return self.top(self._probabilities_of([pictures]))[0]

    def _probabilities_of(self, pictures):
        return self.probabilities(np.stack([self.prepare(picture) for picture in pictures]))

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Compute probabilities [N, K] float64.

        Args:
            images: [N, C, height, width] float32, as `self.prepare` returns them.
        """
        return np.concatenate(
            [
                self._batch(images[start : start + self.batch_size])
                for start in range(0, len(images), self.batch_size)
            ]
        )

    def _batch(self, images):
        found = self._softmax(images)
        if self.tta == "flip":
            found = (found + self._softmax(np.ascontiguousarray(images[..., ::-1]))) / 2
        return found

    def _softmax(self, images):
        logits = finite(self.predictor(images)["logits"]).astype("float64") / self.temperature
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)

    def labels(self, probabilities: np.ndarray, topk: int | None = None) -> np.ndarray:
        """Return the labels of the top classes, [N, K] -> [N, topk]. Ties go to the lower label."""
        return np.argsort(-probabilities, axis=1, kind="stable")[:, : topk or self.topk]

    def top(self, probabilities: np.ndarray, topk: int | None = None) -> list[Answer]:
        """Name the top classes for each row of [N, K]."""
        return [
            [(self.names[label], float(row[label])) for label in labels]
            for row, labels in zip(probabilities, self.labels(probabilities, topk), strict=True)
        ]


def finite(logits: np.ndarray) -> np.ndarray:
    """Return the logits. Raises FloatingPointError if they have NaN or infinite values."""
    if not np.isfinite(logits).all():
        raise FloatingPointError(
            "the logits are not finite (NaN or Inf): the weights are damaged, or too "
            "large for this --amp; try --amp off"
        )
    return logits
