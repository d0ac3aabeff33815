"""Figures of the service: attention of a classifier, reconstructions of a masked autoencoder.

Paddle is imported when a figure is opened or drawn: a service without figures needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from util.data.masking import Mask, noise_of_picture
from util.images.preprocess import Preprocess
from util.infer.serve.uploads import Refused

if TYPE_CHECKING:
    from paddle import nn

    from util.infer.model_spec import ModelSpec

BROWSER_CHANNELS = (1, 3, 4)  # of the pictures that browsers send

Rows = list[tuple[str, Sequence[Any]]]  # of a util.look.figures.sheet


class Figure(Protocol):
    """Drawing of one picture."""

    @property
    def prepare(self) -> Callable[..., np.ndarray]:
        """Function from a picture to a normalised image [C, height, width] float32."""

    @property
    def rows(self) -> Callable[..., Rows]:
        """Function from a prepared image, and options of the request, to the rows. It may raise Refused."""


class AttentionFigure:
    """Attention of the class token of a classifier."""

    def __init__(self, model: nn.Layer, prepare: Preprocess) -> None:
        self.model, self.prepare = model, prepare

    def rows(self, image: np.ndarray) -> Rows:
        """Draw the attention of the last block, and its rollout."""
        import paddle

        from util.look import encoder_figures
        from util.look.figures import to_pixels

        note = "not what this model classifies: that is the mean patch token"
        note = note if self.model.global_pool else ""
        pixels = to_pixels(image, mean=self.prepare.mean, std=self.prepare.std, like=image)
        return encoder_figures.attention_overview(
            self.model, paddle.to_tensor(image[None]), pixels, note=note
        )


class ReconstructionFigure:
    """Reconstruction by a masked autoencoder.

    Args:
        autocast: context of forward passes, see util.compute.amp.
    """

    def __init__(
        self, model: nn.Layer, prepare: Preprocess, autocast: Callable[[], AbstractContextManager]
    ) -> None:
        self.model, self.prepare, self.autocast = model, prepare, autocast

    def rows(self, image: np.ndarray, *, name: str, mask_ratio: float, seed: int) -> Rows:
        """Draw a reconstruction.

        Args:
            name: of the file; with the seed it determines the mask.
        """
        from util.look import reconstruction

        try:
            mask = Mask("random", self.model.patch_embed.grid_size, mask_ratio)
        except ValueError as error:
            raise Refused(400, str(error).replace("--mask_ratio ", "?mask_ratio=")) from error
        with self.autocast():
            return reconstruction.rows(
                self.model,
                image,
                noise_of_picture(mask, seed, name),
                mask.visible,
                "both",
                mean=self.prepare.mean,
                std=self.prepare.std,
            )[0]


def open_reconstruction(spec: ModelSpec, *, device: str, precision: str) -> ReconstructionFigure:
    """Load a masked autoencoder.

    Args:
        device, precision: --device and --amp.
    """
    from util.compute import amp
    from util.infer import trained_model
    from util.system import distributed

    autocast = amp.autocast(amp.resolve(precision, distributed.init(device)))
    model = trained_model.load_model(spec)
    embed = model.patch_embed
    check_browser_channels(spec.path, embed.in_chans)
    return ReconstructionFigure(
        model, Preprocess(embed.img_size, embed.in_chans, **spec.normalization), autocast
    )


def check_browser_channels(path: Path | str, in_chans: int) -> None:
    """Raise ValueError unless pictures of 1, 3 or 4 channels, which browsers send, fit the model."""
    if in_chans not in BROWSER_CHANNELS:
        raise ValueError(
            f"{path}: takes pictures of {in_chans} channels, and a service receives pictures of "
            "1, 3 or 4; use main_infer.py"
        )
