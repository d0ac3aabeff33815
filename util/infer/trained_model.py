"""From any checkpoint to the model that it is of, with its weights and in eval mode.

Tables of models, {name: partial of a model's class}, come as an argument: models are above this module.
"""
import contextlib

import numpy as np
import paddle

from util.images import normalize
from util.weights import architecture, checkpoint, name_maps


def describe(path, state, models, *, name=None, **sizes):
    """(name, keyword arguments) of the model that a checkpoint describes.

    Args:
        state: what `util.weights.checkpoint.read` gave for the file at `path`.
        name, sizes: what overrides the description, where it is not None. Keywords that the model does not have are
            left out: norm_pix_loss of a classifier, num_classes and global_pool of an autoencoder.
    """
    if name is not None and name not in models:
        raise ValueError(f"--model {name}: expected one of {', '.join(models)}")
    weights = state["model"]
    what = checkpoint.kind(weights)
    described = dict(state.get("architecture", {}))
    if not described and what != "unknown":  # a file from elsewhere: its shapes tell most of it
        described = architecture.described(architecture.sizes(weights), models) or {}
    found = described.pop("name", None)
    name = name or found or ("mae_vit_base_patch16" if what == "mae" else "vit_base_patch16")
    if name not in models:
        raise ValueError(f"{path}: it is of the model {name}, which is none of {', '.join(models)}; name a --model")
    if is_autoencoder(name) != (what == "mae"):
        described = {}  # of the other sort; loading will say what the file is
    if sizes.get("norm_pix_loss") and described.get("norm_pix_loss") is False:
        raise ValueError(f"--norm_pix_loss: {path} says that it was trained without; leave the flag out")
    patch_size = sizes.get("patch_size")
    if what != "unknown" and patch_size not in (None, weights["patch_embed.proj.weight"].shape[-1]):
        raise ValueError(f"--patch_size {patch_size}: the patches of {path} have "
                         f"{weights['patch_embed.proj.weight'].shape[-1]} pixels a side; leave the flag out. A "
                         "classifier for others can start from it: main_finetune.py --finetune resamples the embedding")
    other = {"num_classes", "global_pool"} if is_autoencoder(name) else {"norm_pix_loss"}
    described.update({key: value for key, value in sizes.items() if value is not None and key not in other})
    return name, described


def build(name, described, state, models):
    """The model of `describe` in eval mode; `load` gives it its weights."""
    # Drawing initial weights for nothing takes seconds in ViT-B. An autoencoder looks at its own while it is made.
    with contextlib.nullcontext() if is_autoencoder(name) else paddle.LazyGuard():
        model = models[name](**described)
        if checkpoint.kind(state["model"]) == "linear_probe" and not is_autoencoder(name):
            model.make_linear_probe()
    model.eval()
    return model


def load(path, state, model):
    checkpoint.load_weights(path, state["model"], model, origin=state, share_memory=True)
    return model


def open_autoencoder(path, models, *, trusted=False, **sizes):
    """(masked autoencoder with its weights, the checkpoint's dict).

    Args:
        models: of models_mae; sizes: img_size, norm_pix_loss, ... where they are not to be the checkpoint's.
    Raises CheckpointError for a file without a decoder.
    """
    state = checkpoint.read(path, trusted=trusted)
    if checkpoint.kind(state["model"]) != "mae":
        raise checkpoint.no_decoder(path, state)
    name, described = describe(path, state, models, **sizes)
    return load(path, state, build(name, described, state, models)), state


def open_encoder(path, models, *, trusted=False, img_size=None):
    """(Vision Transformer with the encoder of any checkpoint, the checkpoint's dict); see `encoder`."""
    state = checkpoint.read(path, trusted=trusted)
    return encoder(path, state, models, img_size=img_size), state


def encoder(path, state, models, **sizes):
    """The Vision Transformer with the encoder of any checkpoint, which sees every patch.

    The head of a classifier is there; a pretrained encoder gets one of zeros. The decoder of an autoencoder is
    left out.

    Args:
        models: of models_vit; sizes: as for `describe`, where they are not to be the checkpoint's.
    """
    if checkpoint.kind(state["model"]) not in ("mae", "encoder"):
        name, described = describe(path, state, models, **sizes)
        return load(path, state, build(name, described, state, models))
    weights = {name: value for name, value in state["model"].items()
               if not name.startswith(name_maps.OF_PRETRAINING)}
    bare = {**state, "model": weights}
    if "architecture" in state:
        of_pretraining = ("norm_pix_loss", "encoder_mask_tokens", "pca_target", "decoder_")
        bare["architecture"] = {key: value for key, value in state["architecture"].items()
                                if not key.startswith(of_pretraining)}
        autoencoder = bare["architecture"].get("name", "")
        bare["architecture"]["name"] = autoencoder.removeprefix("mae_").removesuffix("_dec512d8b")
    name, described = describe(path, bare, models, **{**sizes, "num_classes": 1})
    head = {"head.weight": np.zeros([weights["cls_token"].shape[-1], 1], "float32"),
            "head.bias": np.zeros([1], "float32")}
    model = build(name, described, bare, models)
    checkpoint.load_weights(path, {**weights, **head}, model, origin=state, share_memory=True)
    return model


def name_of(model, models):
    """Which of `models` a Vision Transformer is, whatever its checkpoint was called; "" if none."""
    dim, depth = model.cls_token.shape[-1], len(model.blocks)
    return next((name for name, made in models.items()
                 if (made.keywords["embed_dim"], made.keywords["depth"]) == (dim, depth)), "")


def normalization(state, in_chans, *, mean=None, std=None):
    """{"mean", "std"} of the images of a checkpoint's model, one number a channel; `mean` and `std` override."""
    asked = {key: values for key, values in (("mean", mean), ("std", std)) if values}
    for key, values in asked.items():
        if len(values) != in_chans:
            raise ValueError(f"--{key}: expected {in_chans} numbers, one a channel of this model, got {len(values)}")
    normalize.check_mean_std(**asked)
    known = {**state.get("normalization", {}), **asked}
    return known if len(known) == 2 else {**dict(zip(("mean", "std"), normalize.default_mean_std(in_chans))), **known}


def is_autoencoder(name):
    return name.startswith("mae_")
