"""What a model file takes and gives, as plain values: enough to use it without knowing how it was made.

A checkpoint tells it through its model; an exported file carries it as JSON (a Paddle program in model_info.json beside
it, an ONNX file in its metadata and in a file beside it). Its keys:

    format_version  1
    task            "classification" or "features"
    model           name and sizes, as `architecture` in a checkpoint
    input           name, shape [images, channels, height, width] (null images: any number), dtype, channels ("RGB", or
                    "" of 2 or more than 4), scale ("1/255", of 8-bit pixels; wider numbers stay as they are), mean and
                    std a channel (of such values), resize ("bicubic") and crop_share (what part of the resized picture
                    the central crop shows)
    outputs         name -> shape
    classes         their names in the order of the labels; null for features
    temperature     what logits are divided by before the softmax
    block, norm     the block that features are of, counted from 1, and which norm they have passed, see
                    util.look.encoder_features.norm_of; null for logits

and those that exported files have besides:

    source          file and weights_sha256 of the checkpoint
    versions        of what made it (with ONNX, paddle2onnx and opset among them)
    files           SHA256 of the program and of its weights (of a Paddle program)
    parity          largest_difference from the model that was exported, its limit, number of images
"""
import json

from util.images.crops import crop_share
from util.system.atomic_file import atomic_write

FORMAT_VERSION = 1
TASKS = ("classification", "features")
CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}


def of_model(model, *, name, task, outputs, normalization, classes=None, temperature=1.0, norm=None, batch=None):
    """The info of a models_vit.VisionTransformer.

    Args:
        name: of the model, in models_vit.MODELS.
        outputs: {name: shape of one image's}.
        normalization: {"mean", "std"}.
        batch: number of images that an exported program takes at once; None for any.
    """
    height, width = model.patch_embed.img_size
    channels = model.patch_embed.in_chans
    return {
        "format_version": FORMAT_VERSION,
        "task": task,
        "model": {"name": name, "img_size": [height, width], "patch_size": model.patch_embed.patch_size[0],
                  "in_chans": channels, "global_pool": model.global_pool, "num_classes": model.num_classes},
        "input": {"name": "images", "shape": [batch, channels, height, width], "dtype": "float32",
                  "channels": CHANNELS.get(channels, ""), "scale": "1/255",
                  "mean": [float(value) for value in normalization["mean"]],
                  "std": [float(value) for value in normalization["std"]],
                  "resize": "bicubic", "crop_share": crop_share((height, width))},
        "outputs": {output: [batch, *shape] for output, shape in outputs.items()},
        "classes": None if classes is None else list(classes),
        "temperature": temperature,
        "block": len(model.blocks) if task == "features" else None,
        "norm": norm,
    }


def write(path, info):
    """A file with nothing but the info, as JSON."""
    with atomic_write(path) as f:
        f.write((json.dumps(info, indent=2, ensure_ascii=False) + "\n").encode())


def parse(text, path):
    """The info in `text`, JSON of the file `path`; ValueError if it is none, or one of a newer kind."""
    try:
        info = json.loads(text)
        fits = info["task"] in TASKS and len(info["input"]["shape"]) == 4 and len(info["outputs"]) > 0
        if info["task"] == "classification":
            fits = fits and len(info["classes"]) == info["outputs"]["logits"][1] and 0 < float(info["temperature"])
            fits = fits and all(isinstance(name, str) for name in info["classes"])
        channels = info["input"]["shape"][1]
        fits = fits and len(info["input"]["mean"]) == len(info["input"]["std"]) == channels
    except (ValueError, TypeError, LookupError):
        fits = False
    if not fits:
        raise ValueError(f"{path}: this is not what tools/export.py writes about a model; export it again")
    if info["format_version"] != FORMAT_VERSION:
        raise ValueError(f"{path}: format_version {info['format_version']}, this project knows {FORMAT_VERSION}; export "
                         "it again, or use the version of the project that wrote it")
    return info
