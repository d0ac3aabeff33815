"""From pictures to classes and their probabilities, whatever computes the logits.

Shape letters: N images, C channels, K classes.
"""
import numpy as np

from util.images.normalize import check_mean_std
from util.images.preprocess import Preprocess
from util.infer import class_names as names_of_classes

TTA = ("flip",)


class Classifier:
    """Call it with a picture, or with a list of pictures.

    A picture is whatever util.images.preprocess.Preprocess takes: a path, bytes, a PIL image, an array. It may be used by
    several threads at once.

    Args:
        predictor: function from float32 images [N, C, height, width] to {"logits": float32 [N, K]}.
        info: of its model, see util.infer.model_info.
        topk: how many classes an answer names; all of them where there are fewer.
        batch_size: images that are computed at once; the answers do not depend on it.
        temperature: what logits are divided by (arXiv 1706.04599); None: the model's own, which is 1 if nobody set it.
        tta: None, or "flip": the mean of the probabilities of a picture and of its mirror image.
        class_names: path of a file with others than the model's, see util.infer.class_names.read.
        mean, std: one number a channel; None: the model's.
    """

    def __init__(self, predictor, info, *, topk=5, batch_size=8, temperature=None, tta=None, class_names=None,
                 mean=None, std=None):
        if info["task"] != "classification":
            raise ValueError(f"this model gives features ({', '.join(info['outputs'])}), not classes; --features writes "
                             "them")
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
        self.num_classes = info["outputs"]["logits"][1]
        self.names = info["classes"] if class_names is None else names_of_classes.read(class_names, self.num_classes)
        self.prepare = preprocess_of(info, mean=mean, std=std)

    def __call__(self, pictures):
        """[(class name, probability), ...] of a picture, best first; a list of such lists of a list of pictures.

        Raises util.images.decode.UnreadableImage for a picture that cannot be read, with its name.
        """
        if isinstance(pictures, (list, tuple)):
            return [answer for start in range(0, len(pictures), self.batch_size)
                    for answer in self.top(self._probabilities_of(pictures[start:start + self.batch_size]))]
        return self.top(self._probabilities_of([pictures]))[0]

    def _probabilities_of(self, pictures):
        return self.probabilities(np.stack([self.prepare(picture) for picture in pictures]))

    def probabilities(self, images):
        """float32 [N, C, height, width] as `prepare` gives them -> float64 [N, K]."""
        return np.concatenate([self._batch(images[start:start + self.batch_size])
                               for start in range(0, len(images), self.batch_size)])

    def _batch(self, images):
        found = self._softmax(images)
        if self.tta == "flip":
            found = (found + self._softmax(np.ascontiguousarray(images[..., ::-1]))) / 2
        return found

    def _softmax(self, images):
        logits = self.predictor(images)["logits"].astype("float64")
        if not np.isfinite(logits).all():
            raise FloatingPointError("the model's answer is not finite: its weights are damaged, or too large for this "
                                     "--amp; try --amp off")
        logits /= self.temperature
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)

    def labels(self, probabilities, topk=None):
        """[N, K] -> [N, topk], the numbers of the likeliest classes, best first; equal ones in their order."""
        return np.argsort(-probabilities, axis=1, kind="stable")[:, :topk or self.topk]

    def top(self, probabilities, topk=None):
        """For each row of [N, K], [(class name, probability), ...] of the likeliest classes, best first."""
        return [[(self.names[label], float(row[label])) for label in labels]
                for row, labels in zip(probabilities, self.labels(probabilities, topk), strict=True)]


def preprocess_of(info, *, mean=None, std=None):
    """The Preprocess that a model's info describes; `mean` and `std` override it."""
    _, in_chans, *size = info["input"]["shape"]
    given = {"mean": mean or info["input"]["mean"], "std": std or info["input"]["std"]}
    for flag, values in given.items():
        if len(values) != in_chans:
            raise ValueError(f"--{flag}: expected {in_chans} numbers, one a channel of this model, got {len(values)}")
    check_mean_std(**given)
    return Preprocess(size, in_chans, **given)
