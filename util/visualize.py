"""Pictures of what a masked autoencoder reconstructs."""
import numpy as np
import paddle
from PIL import Image, ImageDraw, ImageFont

GREY = 0.5  # what a hidden patch is painted with, in [0, 1]


@paddle.no_grad()
def reconstruct(model, images, noise, mask_ratio):
    """The pictures of a reconstruction, each [N, C, height, width] in the normalised values of `images`.

    Returns:
        dict with "mask" (1 = hidden), "reconstruction" (the model's patches everywhere) and "pasted" (the same with
        the visible patches of the image); with norm_pix_loss the predictions are brought back to pixels by the true
        mean and spread of each patch, which the model did not see: a picture must say so.
    """
    _, pred, mask = model(images, mask_ratio, noise)
    patches = model.patchify(images)
    pred = pred.astype("float32")
    if model.norm_pix_loss:
        mean = patches.mean(axis=-1, keepdim=True)
        var = ((patches - mean) ** 2).sum(axis=-1, keepdim=True) / (patches.shape[-1] - 1)
        pred = pred * (var + 1e-6).sqrt() + mean
    mask = mask.unsqueeze(-1).expand(patches.shape)
    pictures = {"mask": mask, "reconstruction": pred, "pasted": pred * mask + patches * (1 - mask)}
    return {name: model.unpatchify(values).numpy() for name, values in pictures.items()}


def panel(image, reconstructed, *, mean, std, norm_pix_loss):
    """original | masked | reconstruction | reconstruction + visible, with titles, as one PIL image.

    Args:
        image: [C, height, width], normalised; reconstructed: the pictures of one image, as `reconstruct` names them.
        mean, std: of the normalisation, one a channel.
    """
    def pixels(values):
        values = values * np.reshape(std, [-1, 1, 1]) + np.reshape(mean, [-1, 1, 1])
        return values.clip(0, 1)

    hidden = reconstructed["mask"] > 0.5
    note = "true patch mean and spread" if norm_pix_loss else ""
    return side_by_side([
        ("original", "", pixels(image)),
        ("masked", f"{hidden[0].mean():.0%} hidden", np.where(hidden, GREY, pixels(image))),
        ("reconstruction", note, pixels(reconstructed["reconstruction"])),
        ("reconstruction + visible", note, pixels(reconstructed["pasted"]))])


def side_by_side(pictures, *, least_side=224, gap=8, title_height=40):
    """[(title, note, values [C, height, width] in [0, 1]), ...] -> one PIL image; small pictures are magnified."""
    height, width = pictures[0][2].shape[1:]
    scale = max(1, -(-least_side // min(height, width)))
    size = len(pictures) * (width * scale + gap) + gap, height * scale + title_height + gap
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for place, (title, note, values) in enumerate(pictures):
        left = gap + place * (width * scale + gap)
        draw.text((left, 4), title, fill="black", font=ImageFont.load_default(size=14))
        draw.text((left, 22), note, fill="dimgray", font=ImageFont.load_default(size=12))
        picture = to_image(values).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        canvas.paste(picture, (left, title_height))
    return canvas


def to_image(values):
    """[C, height, width] in [0, 1] -> PIL image, RGB; of more than three channels the first three are shown."""
    values = np.repeat(values, 3, axis=0) if len(values) == 1 else values[:3]
    return Image.fromarray((values.transpose(1, 2, 0) * 255).round().astype("uint8"))
