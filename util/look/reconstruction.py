"""Predictions of a masked autoencoder as pixels, and sheets of them.

Shape letters: N images, C channels, L patches (h x w of them), P = p * p * C values of a patch.

With norm_pix_loss a model predicts each patch normalised by the patch's own mean and standard deviation
(paper, section 4.1). To show pixels, these two numbers come from the true patch, which the model does not
know, or from the visible patches around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import paddle
from PIL import Image

from util.look.figures import Cell, Row, choose, heat, sheet, to_pixels

GREY = 0.5  # colour of a hidden patch
LARGEST_ERROR = 0.5  # error of a pixel in [0, 1] that gets the brightest colour of an error map

STATISTICS = {
    "true": "uses the true mean and spread of each patch, which the model does not predict",
    "visible": "uses mean and spread of the visible patches, interpolated: nothing of the hidden ones",
}


@paddle.no_grad()
def predict(
    model: paddle.nn.Layer, images: paddle.Tensor, noise: paddle.Tensor, num_visible: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predict hidden patches.

    Args:
        images: [N, C, height, width], normalised.
        noise: [N, L]; the num_visible patches with the smallest values stay visible.

    Returns:
        Predicted patches [N, L, P] in the model's units, mask [N, L] (1 = hidden), and loss of each image
        [N].
    """
    _, pred, mask = model(images, noise=noise, num_visible=num_visible)
    pred = pred.astype("float32")
    errors = model.patch_errors(model.patchify(images), pred)
    return pred.numpy(), mask.numpy(), ((errors * mask).sum(axis=1) / mask.sum(axis=1)).numpy()


@paddle.no_grad()
def pictures(
    model: paddle.nn.Layer,
    images: paddle.Tensor,
    pred: np.ndarray,
    mask: np.ndarray,
    statistics: str = "true",
) -> dict[str, np.ndarray]:
    """Convert predictions to pictures [N, C, height, width] in the normalised values of `images`.

    Args:
        pred, mask: of `predict`.
        statistics: key of STATISTICS; only used for models with norm_pix_loss.

    Returns:
        dict with "mask" (1 = hidden), "reconstruction" (predicted patches everywhere) and "pasted" (the same
        with the visible patches of the image).
    """
    patches = model.patchify(images).numpy()
    if model.norm_pix_loss:
        mean, spread = _statistics(patches)
        if statistics == "visible":
            grid = model.patch_embed.grid_size
            mean, spread = from_visible(mean, mask, grid), np.exp(from_visible(np.log(spread), mask, grid))
        pred = pred * spread[..., None] + mean[..., None]
    elif model.pca_target:
        pred = pred @ model.pca_components.numpy().T + model.pca_mean.numpy()
    hidden = np.broadcast_to(mask[..., None], patches.shape)
    found = {"mask": hidden, "reconstruction": pred, "pasted": np.where(hidden > 0.5, pred, patches)}
    return {
        name: model.unpatchify(paddle.to_tensor(values.astype("float32"))).numpy()
        for name, values in found.items()
    }


def reconstruct(
    model: paddle.nn.Layer,
    images: paddle.Tensor,
    noise: paddle.Tensor,
    num_visible: int,
    statistics: str = "true",
) -> dict[str, np.ndarray]:
    """Predict hidden patches and convert them to pictures; see `predict` and `pictures`."""
    pred, mask, _ = predict(model, images, noise, num_visible)
    return pictures(model, images, pred, mask, statistics)


def _statistics(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each patch, [N, L] each, computed as in the loss."""
    return patches.mean(axis=-1), np.sqrt(patches.var(axis=-1, ddof=1) + 1e-6)


def from_visible(values: np.ndarray, mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Replace hidden values [N, L] by weighted means of the visible ones; the weights are 1 / distance ** 4.

    Shepard's interpolation works for any positions and stays within the range of the known values.

    Args:
        mask: [N, L], 1 = hidden, at least one 0 per image.
        grid: (h, w).
    """
    places = np.stack(np.divmod(np.arange(grid[0] * grid[1]), grid[1]), axis=1)
    squared = ((places[:, None] - places[None]) ** 2).sum(axis=-1)  # [L, L]
    weights = (1 - mask)[:, None, :] / np.maximum(squared, 1) ** 2  # [N, L, L]
    interpolated = (weights * values[:, None, :]).sum(axis=-1) / weights.sum(axis=-1)
    return np.where(mask > 0.5, interpolated, values)


def row(
    image: np.ndarray,
    found: Mapping[str, np.ndarray],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    channels: Sequence[int] | None = None,
) -> list[Cell]:
    """Draw original, masked, reconstruction, both, and error: cells for util.look.figures.sheet.

    Args:
        image: [C, height, width], normalised.
        found: the entries of this image in the result of `pictures`.
        mean, std: of the normalisation, one per channel.
        channels: indices of the shown channels, or None; the error is the mean over all of them.
    """
    original, reconstruction, pasted = (
        to_pixels(values, mean=mean, std=std, like=image)
        for values in (image, found["reconstruction"], found["pasted"])
    )
    hidden = found["mask"] > 0.5
    error = np.abs(pasted - original).mean(axis=0)
    return [
        ("original", "", choose(original, channels)),
        ("masked", f"{hidden[0].mean():.0%} hidden", choose(np.where(hidden, GREY, original), channels)),
        ("reconstruction", "", choose(reconstruction, channels)),
        ("reconstruction + visible", "", choose(pasted, channels)),
        (
            "error",
            f"mean {error[hidden[0]].mean():.3f} of 0 to 1, brightest {LARGEST_ERROR}",
            heat(error, LARGEST_ERROR),
        ),
    ]


def panel(
    image: np.ndarray,
    found: Mapping[str, np.ndarray],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    norm_pix_loss: bool,
    channels: Sequence[int] | None = None,
) -> Image.Image:
    """Draw `row` as a separate sheet; with norm_pix_loss its heading names the statistics."""
    cells = row(image, found, mean=mean, std=std, channels=channels)
    return sheet([(STATISTICS["true"] if norm_pix_loss else "", cells)])


def rows(
    model: paddle.nn.Layer,
    image: np.ndarray,
    noise: np.ndarray,
    num_visible: int,
    statistics: str,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    channels: Sequence[int] | None = None,
) -> tuple[list[Row], dict[str, Any]]:
    """Draw the reconstructions of one image.

    Args:
        image: [C, height, width], normalised by mean and std.
        noise: [L].
        statistics: key of STATISTICS, or "both" for two rows; models without norm_pix_loss get one row.
        channels: see `row`.

    Returns:
        Rows for util.look.figures.sheet, and the numbers {"mask": [h, w] uint8 with 1 = hidden, "prediction":
        [L, P] in the model's units, "loss"}.
    """
    images = paddle.to_tensor(image[None])
    pred, mask, loss = predict(model, images, paddle.to_tensor(noise[None]), num_visible)
    kinds = [""] if not model.norm_pix_loss else list(STATISTICS) if statistics == "both" else [statistics]
    drawn: list[Row] = []
    for kind in kinds:
        found = pictures(model, images, pred, mask, kind)
        cells = row(
            image, {name: values[0] for name, values in found.items()}, mean=mean, std=std, channels=channels
        )
        drawn.append((f"loss {loss[0]:.3f}" + (f"; {STATISTICS[kind]}" if kind else ""), cells))
    return drawn, {
        "mask": mask[0].reshape(model.patch_embed.grid_size).astype("uint8"),
        "prediction": pred[0],
        "loss": loss[0],
    }
