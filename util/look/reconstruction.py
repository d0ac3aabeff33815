"""What a masked autoencoder makes of pictures: its predictions as pixels, and sheets of them.

Shape letters: N images, C channels, L patches (h x w of them), P = p * p * C values of a patch.

With norm_pix_loss a model predicts each patch normalised by its own mean and spread (paper, section 4.1). To show it,
these two numbers have to come from somewhere: from the true patch, which tells what the model does not know, or from
the visible patches around it.
"""
import numpy as np
import paddle

from util.look.figures import choose, heat, sheet, to_pixels

GREY = 0.5          # what a hidden patch is painted with
LARGEST_ERROR = 0.5  # of a pixel in [0, 1], where the colours of an error map end

STATISTICS = {
    "true": "uses the true mean and spread of each patch, which the model does not predict",
    "visible": "uses mean and spread of the visible patches, interpolated: nothing of the hidden ones",
}


@paddle.no_grad()
def predict(model, images, noise, num_visible):
    """Predicted patches [N, L, P] as the model gives them, mask [N, L] (1 = hidden), loss of each image [N]: numpy.

    Args:
        images: [N, C, height, width], normalised; noise: [N, L]; the num_visible patches with the smallest values
            stay visible.
    """
    _, pred, mask = model(images, noise=noise, num_visible=num_visible)
    pred = pred.astype("float32")
    errors = model.patch_errors(model.patchify(images), pred)
    return pred.numpy(), mask.numpy(), ((errors * mask).sum(axis=1) / mask.sum(axis=1)).numpy()


@paddle.no_grad()
def pictures(model, images, pred, mask, statistics="true"):
    """Predictions as pictures, each [N, C, height, width] in the normalised values of `images`.

    Args:
        pred, mask: of `predict`; statistics: key of STATISTICS, for models with norm_pix_loss; others need none.
    Returns:
        dict with "mask" (1 = hidden), "reconstruction" (the model's patches everywhere) and "pasted" (the same with
        the visible patches of the image).
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
    return {name: model.unpatchify(paddle.to_tensor(values.astype("float32"))).numpy()
            for name, values in found.items()}


def reconstruct(model, images, noise, num_visible, statistics="true"):
    """`pictures` of what the model predicts for these images and masks; arguments as for `predict`."""
    pred, mask, _ = predict(model, images, noise, num_visible)
    return pictures(model, images, pred, mask, statistics)


def _statistics(patches):
    """Mean and spread of each patch, [N, L] each; the spread as the loss of the model has it."""
    return patches.mean(axis=-1), np.sqrt(patches.var(axis=-1, ddof=1) + 1e-6)


def from_visible(values, mask, grid):
    """[N, L] with the hidden values replaced by means of the visible ones, weighted by 1 / distance ** 4.

    (Shepard's interpolation: it takes any places and invents no value beyond the known ones.)

    Args:
        mask: [N, L], 1 = hidden, at least one 0 an image; grid: (h, w).
    """
    places = np.stack(np.divmod(np.arange(grid[0] * grid[1]), grid[1]), axis=1)
    squared = ((places[:, None] - places[None]) ** 2).sum(axis=-1)  # [L, L]
    weights = (1 - mask)[:, None, :] / np.maximum(squared, 1) ** 2  # [N, L, L]
    interpolated = (weights * values[:, None, :]).sum(axis=-1) / weights.sum(axis=-1)
    return np.where(mask > 0.5, interpolated, values)


def row(image, found, *, mean, std, channels=None):
    """original | masked | reconstruction | reconstruction + visible | error: a row of cells for `util.look.figures.sheet`.

    Args:
        image: [C, height, width], normalised; found: of `pictures`, the entries of this image.
        mean, std: of the normalisation, one a channel.
        channels: of the pictures, see `util.look.figures.choose`; the error is that of all.
    """
    original, reconstruction, pasted = (to_pixels(values, mean=mean, std=std, like=image)
                                        for values in (image, found["reconstruction"], found["pasted"]))
    hidden = found["mask"] > 0.5
    error = np.abs(pasted - original).mean(axis=0)
    return [("original", "", choose(original, channels)),
            ("masked", f"{hidden[0].mean():.0%} hidden", choose(np.where(hidden, GREY, original), channels)),
            ("reconstruction", "", choose(reconstruction, channels)),
            ("reconstruction + visible", "", choose(pasted, channels)),
            ("error", f"mean {error[hidden[0]].mean():.3f} of 0 to 1, brightest {LARGEST_ERROR}",
             heat(error, LARGEST_ERROR))]


def panel(image, found, *, mean, std, norm_pix_loss, channels=None):
    """`row` as a sheet of its own; of weights with norm_pix_loss, made with the true statistics."""
    cells = row(image, found, mean=mean, std=std, channels=channels)
    return sheet([(STATISTICS["true"] if norm_pix_loss else "", cells)])


def rows(model, image, noise, num_visible, statistics, *, mean, std, channels=None):
    """What the model makes of one image: rows for `util.look.figures.sheet`, and the numbers in them.

    Args:
        image: [C, height, width], normalised by mean and std; noise: [L].
        statistics: key of STATISTICS or "both", a row each; for a model with norm_pix_loss, others have one row.
        channels: see `row`.
    Returns:
        [(heading, cells), ...], and {"mask": [h, w] uint8 with 1 = hidden, "prediction": [L, P] as the model gives it,
        "loss"}.
    """
    images = paddle.to_tensor(image[None])
    pred, mask, loss = predict(model, images, paddle.to_tensor(noise[None]), num_visible)
    kinds = [""] if not model.norm_pix_loss else list(STATISTICS) if statistics == "both" else [statistics]
    drawn = []
    for kind in kinds:
        found = pictures(model, images, pred, mask, kind)
        cells = row(image, {name: values[0] for name, values in found.items()}, mean=mean, std=std,
                    channels=channels)
        drawn.append((f"loss {loss[0]:.3f}" + (f"; {STATISTICS[kind]}" if kind else ""), cells))
    return drawn, {"mask": mask[0].reshape(model.patch_embed.grid_size).astype("uint8"), "prediction": pred[0],
                   "loss": loss[0]}
