"""Monitor of pretraining: reconstructions of the same few images, and attention entropy."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from PIL import Image

from util.compute.compilation import layer_by_layer
from util.data.masking import Mask
from util.data.sources import ImageSource
from util.images.decode import UnreadableImage
from util.images.transforms import EvalTransform
from util.look.attention import attention_maps, entropy
from util.look.figures import choose, sheet, to_pixels
from util.look.reconstruction import GREY, STATISTICS, reconstruct
from util.system.console import say
from util.system.keyed_random import WATCHED, keyed_generator

IMAGES = 8  # images on a sheet
ACROSS = 2  # images in a row
LEAST_SIDE = 168  # pixels; smaller images are magnified
TRIES = 100  # unreadable images skipped before giving up


@dataclass(frozen=True)
class Sight:
    """Sheet of reconstructions, and attention entropy of each encoder block in nats."""

    sheet: Image.Image
    entropies: list[float]

    def record(self, epoch: int, scalars: Any) -> dict[str, float]:
        """Add it to VisualDL. Returns its entries of log.txt.

        Args:
            epoch: number of the epoch.
            scalars: VisualDL writer, or None.
        """
        mean = statistics.fmean(self.entropies)
        if scalars:
            scalars.add_image("reconstructions", np.array(self.sheet), epoch)
            scalars.add_scalar("watched/attention_entropy", mean, epoch)
            for block, value in enumerate(self.entropies):
                scalars.add_scalar(f"watched/attention_entropy_block_{block:02d}", value, epoch)
        return {"attention_entropy": mean}


class Monitor:
    """Draws reconstructions of a few images during training, without any effect on the training.

    The images are spread evenly over their source, because the first ones of a class folder would all be in
    one class. They are cropped as for evaluation and keep their masks, so that two sheets differ only in the
    model. Unreadable images are reported and replaced by the next ones.

    Args:
        model: masked autoencoder.
        source: images.
        transform: util.images.transforms.EvalTransform.
        epochs: epochs after which it draws.
        mask: distribution of masks.
        seed: of the run; the masks follow from it.
        autocast: returns the context that sets the precision of a forward pass.
        channels: channels that are drawn, see `util.look.figures.choose`.
    """

    def __init__(
        self,
        model: paddle.nn.Layer,
        source: ImageSource,
        transform: EvalTransform,
        *,
        epochs: set[int],
        mask: Mask,
        seed: int,
        autocast: Callable[[], AbstractContextManager],
        channels: Sequence[int] | None = None,
    ) -> None:
        self.model, self.epochs = model, epochs
        self.num_visible, self.autocast, self.normalize = mask.visible, autocast, transform.normalize
        self.channels = channels
        self.images = np.stack(_spread(source, transform))
        self.noise = np.stack(
            [mask.draw(keyed_generator(seed, WATCHED, number, 0)) for number in range(len(self.images))]
        )

    def due(self, epoch: int) -> bool:
        """Return whether to draw after `epoch`."""
        return epoch in self.epochs

    def look(self, epoch: int) -> Sight:
        """Return the Sight after `epoch`. Its attention is that to whole images, without a mask."""
        was_training = self.model.training
        self.model.eval()
        try:
            images, noise = paddle.to_tensor(self.images), paddle.to_tensor(self.noise)
            with layer_by_layer(), self.autocast():
                drawn = reconstruct(self.model, images, noise, self.num_visible)
                entropies = [float(entropy(weights).mean()) for weights in attention_maps(self.model, images)]
        finally:
            if was_training:
                self.model.train()
        return Sight(self._sheet(epoch, drawn), entropies)

    def _sheet(self, epoch: int, drawn: dict[str, np.ndarray]) -> Image.Image:
        def pixels(values: np.ndarray) -> np.ndarray:
            mean, std = self.normalize.mean, self.normalize.std
            found = to_pixels(values, mean=mean, std=std, like=self.images)  # type: ignore[arg-type]
            return choose(found, self.channels)

        hidden = drawn["mask"][:, :1] > 0.5
        columns = {
            "original": pixels(self.images),
            "masked": np.where(hidden, GREY, pixels(self.images)),
            "reconstruction": pixels(drawn["reconstruction"]),
            "reconstruction + visible": pixels(drawn["pasted"]),
        }
        heading = f"after epoch {epoch}; {hidden.mean():.0%} hidden"
        if self.model.norm_pix_loss:
            heading += f"; {STATISTICS['true']}"
        rows: list[tuple[str, list[tuple[str, str, np.ndarray]]]] = [(heading, [])]
        for first in range(0, len(self.images), ACROSS):
            rows.append(
                (
                    "",
                    [
                        (title if first == 0 else "", "", of_all[place])
                        for place in range(first, min(first + ACROSS, len(self.images)))
                        for title, of_all in columns.items()
                    ],
                )
            )
        return sheet(rows, least_side=LEAST_SIDE)


def _spread(source: ImageSource, transform: EvalTransform) -> list[np.ndarray]:
    """Return up to IMAGES images, normalised float32 [C, height, width], in the order of their source.

    Raises ValueError if none can be read.
    """
    count = min(IMAGES, len(source))
    starts = [number * len(source) // count for number in range(count + 1)]
    found: dict[int, np.ndarray] = {}
    passed: set[int] = set()

    def take_one(indices: range) -> None:
        for index in itertools.islice(
            (index for index in indices if index not in found and index not in passed), TRIES
        ):
            try:
                found[index] = transform.normalized(source.open(index))
                return
            except UnreadableImage as error:
                passed.add(index)
                say(f"--vis_every passes over an image: {error}")

    for start, end in itertools.pairwise(starts):
        take_one(range(start, end))
    # If no image of a part is readable, another part supplies two.
    while len(found) < count and len(passed) < TRIES:
        before = len(found)
        take_one(range(len(source)))
        if len(found) == before:
            break
    if not found:
        raise ValueError(
            "--vis_every: none of the images to draw can be read, such as "
            f"{source.name(0)}; repair them, or remove the flag"
        )
    return [found[index] for index in sorted(found)]
