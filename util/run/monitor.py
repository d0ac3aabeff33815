"""What a masked autoencoder makes of the same few images as it learns: reconstructions, and how wide it attends."""
import itertools
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from PIL import Image

from util.compute.compilation import layer_by_layer
from util.images.decode import UnreadableImage
from util.look.attention import attention_maps, entropy
from util.look.figures import choose, sheet, to_pixels
from util.look.reconstruction import GREY, STATISTICS, reconstruct
from util.system.console import say
from util.system.keyed_random import WATCHED, keyed_generator

IMAGES = 8      # in a sheet
ACROSS = 2      # of them beside each other
LEAST_SIDE = 168    # pixels; smaller images are magnified
TRIES = 100     # to find readable ones


@dataclass(frozen=True)
class Sight:
    """A sheet of reconstructions, and the attention entropy of each block of the encoder in nats."""

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
    """Looks at `model` after every so many epochs and the last one, and leaves no trace in the training.

    The images are spread evenly over their source (the first ones of a folder of classes would all be of one class).
    Each is cut as for evaluation and keeps its mask, so that nothing but the model differs between two sheets. Images
    that cannot be read are named, and the next one is taken.

    Args:
        images: a source of util.data.sources; transform: util.images.transforms.EvalTransform.
        every: epochs between looks, at least 1; epochs: of the run.
        mask: of the run; seed: of the run, which the masks follow from.
        autocast: gives the context that sets the precision of a forward pass.
        channels: of the images, that are drawn, see `util.look.figures.choose`.
    """

    def __init__(self, model, images, transform, *, every, epochs, mask, seed, autocast, channels=None):
        if every < 1:
            raise ValueError(f"--vis_every {every}: expected a number of epochs, or 0 for never")
        self.model, self.every, self.epochs = model, every, epochs
        self.num_visible, self.autocast, self.normalize = mask.visible, autocast, transform.normalize
        self.channels = channels
        self.images = np.stack(_spread(images, transform))
        self.noise = np.stack([mask.draw(keyed_generator(seed, WATCHED, place, 0)) for place in range(len(self.images))])

    def due(self, epoch):
        return (epoch + 1) % self.every == 0 or epoch + 1 == self.epochs

    def look(self, epoch):
        """The Sight after `epoch`. Attention is that to whole images, without a mask."""
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

    def _sheet(self, epoch, drawn):
        def pixels(values):
            found = to_pixels(values, mean=self.normalize.mean, std=self.normalize.std, like=self.images)
            return choose(found, self.channels)

        hidden = drawn["mask"][:, :1] > 0.5
        columns = {"original": pixels(self.images), "masked": np.where(hidden, GREY, pixels(self.images)),
                   "reconstruction": pixels(drawn["reconstruction"]),
                   "reconstruction + visible": pixels(drawn["pasted"])}
        heading = f"after epoch {epoch}; {hidden.mean():.0%} hidden"
        if self.model.norm_pix_loss:
            heading += f"; {STATISTICS['true']}"
        rows = [(heading, [])]
        for first in range(0, len(self.images), ACROSS):
            rows.append(("", [(title if first == 0 else "", "", of_all[place])
                              for place in range(first, min(first + ACROSS, len(self.images)))
                              for title, of_all in columns.items()]))
        return sheet(rows, least_side=LEAST_SIDE)


def _spread(images, transform):
    """Up to IMAGES images, normalised float32 [C, height, width], in the order of their source."""
    count = min(IMAGES, len(images))
    starts = [place * len(images) // count for place in range(count + 1)]
    found, passed = {}, set()

    def take_one(indices):
        for index in itertools.islice((index for index in indices if index not in found and index not in passed), TRIES):
            try:
                found[index] = transform.normalized(images.open(index))
                return
            except UnreadableImage as error:
                passed.add(index)
                say(f"--vis_every passes over an image: {error}")

    for start, end in zip(starts, starts[1:]):
        take_one(range(start, end))
    while len(found) < count and len(passed) < TRIES:  # where nothing is left of a part, another gives two
        before = len(found)
        take_one(range(len(images)))
        if len(found) == before:
            break
    if not found:
        raise ValueError(f"--vis_every: of the images that it would draw none can be read, such as {images.name(0)}; "
                         "repair them, or leave --vis_every out")
    return [found[index] for index in sorted(found)]
