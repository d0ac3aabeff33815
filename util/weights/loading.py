"""Strict loading of checkpoints into models, to finetune, evaluate or resume: every entry has to fit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from util.weights import adapt, name_maps
from util.weights.architecture import num_heads
from util.weights.checkpoint import ROLES, SIZES, CheckpointError, read_checkpoint, restore_moments, role
from util.weights.flag_names import flag

_KERNEL = "patch_embed.proj.weight"


def load_weights(
    path: Path | str,
    weights: Mapping[str, np.ndarray],
    model: paddle.nn.Layer,
    *,
    origin: Mapping[str, Any] | None = None,
    resize: bool = True,
    share_memory: bool = False,
) -> None:
    """Put `weights` into `model`. A model made under paddle.LazyGuard gets its memory here.

    Args:
        path: of the file, for errors.
        origin: the checkpoint of the weights. It gives the image size that they are for, and details for
            errors.
        resize: interpolate position embeddings of another grid. A grid that `origin` does not give is square.
        share_memory: on a CPU, use the arrays as parameters without a copy. Neither may be changed
            afterwards. Saves 0.2 s and 350 MB for ViT-B.

    Raises CheckpointError with the lists of names and shapes that differ. The model is then unchanged.
    """
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if resize:
        weights = _resize_positions(path, weights, model, own, origin or {})
    missing = sorted(own.keys() - weights.keys())
    unexpected = sorted(weights.keys() - own.keys())
    misshaped = [
        f"{name} {list(weights[name].shape)} instead of {list(own[name])}"
        for name in sorted(own.keys() & weights.keys())
        if weights[name].shape != own[name]
    ]
    if missing or unexpected or misshaped:
        lists = "".join(
            f"\n  {title} ({len(names)}): {', '.join(names)}"
            for title, names in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
            if names
        )
        raise _misfit(path, origin or {"model": weights}, "its weights do not fit this model", lists)
    share_memory = share_memory and paddle.get_device() == "cpu"
    for name, value in model.state_dict().items():
        if share_memory and weights[name].dtype == np.float32 and weights[name].flags.c_contiguous:
            value.value().get_tensor().set(weights[name], paddle.CPUPlace(), True)
        else:
            # set_state_dict of Paddle 2.6 skips parameters that are not initialised
            value.set_value(weights[name])


def load_encoder(
    path: Path | str,
    model: paddle.nn.Layer,
    *,
    normalization: Mapping[str, Any] | None = None,
    state: Mapping[str, Any] | None = None,
    trusted: bool = False,
) -> str:
    """Load a pretrained encoder into a classifier (--finetune). The head keeps its values.

    Not loaded are the decoder, its target, mask tokens, and the norm that the chosen pooling does not have.
    Everything else must fit, as in the official code. Another patch size or number of channels is adapted,
    see util.weights.adapt.

    Args:
        normalization: {"mean", "std"} of this run; a line tells if the file has others.
        state: the checkpoint, if it has been read already.
        trusted: see `read_checkpoint`.

    Returns lines for the log, or "". Raises CheckpointError.
    """
    state = read_checkpoint(path, trusted=trusted) if state is None else state
    _check_pretrained(path, state)
    _check_heads(path, state, model)
    own = model.state_dict()
    fresh = {name: value.numpy() for name, value in own.items() if name.split(".")[0] in ("head", "fc_norm")}
    pretrained = {
        name: value
        for name, value in state["model"].items()
        if not (_is_of_decoder(name) or (name.startswith("norm.") and model.global_pool))
    }
    lines = _fit_patch_embedding(path, pretrained, model)
    load_weights(path, {**pretrained, **fresh}, model, origin=state)
    return "\n".join(lines + other_normalization(path, state, normalization))


def load_pretrained(
    path: Path | str,
    model: paddle.nn.Layer,
    *,
    normalization: Mapping[str, Any] | None = None,
    trusted: bool = False,
) -> str:
    """Load an earlier pretraining into an autoencoder (--finetune): the encoder, and the decoder if it fits.

    The decoder stays new, and a line says so, if the file has none, or one of other sizes or for another
    target. Otherwise as `load_encoder`.
    """
    state = read_checkpoint(path, trusted=trusted)
    _check_pretrained(path, state)
    _check_heads(path, state, model, of_decoder=False)
    own = {name: value.numpy() for name, value in model.state_dict().items()}
    pretrained = {name: value for name, value in state["model"].items() if not _is_of_decoder(name)}
    decoder = {name: value for name, value in state["model"].items() if _is_of_decoder(name)}
    new = {name: value for name, value in own.items() if _is_of_decoder(name)}
    lines = _fit_patch_embedding(path, pretrained, model)
    described = state.get("architecture", {})
    reason = _misfit_of_decoder(decoder, new, described, model)
    if reason:
        lines.append(f"{path}: {reason}; this run begins with a new decoder")
        decoder = {}
    elif "norm_pix_loss" not in described:
        lines.append(
            f"{path}: it does not say whether its decoder predicts pixels with --norm_pix_loss; "
            f"this run continues {'with' if model.norm_pix_loss else 'without'} it"
        )
    shapes = {name: value.shape for name, value in own.items()}
    weights = _resize_positions(path, {**pretrained, **decoder}, model, shapes, state)
    load_weights(path, weights if decoder else {**weights, **new}, model, origin=state, resize=False)
    return "\n".join(lines + other_normalization(path, state, normalization))


def load_for_evaluation(
    path: Path | str,
    model: paddle.nn.Layer,
    classes: Sequence[str] | None,
    *,
    normalization: Mapping[str, Any] | None = None,
    trusted: bool = False,
) -> str:
    """Load a trained classifier (--eval --resume).

    Args:
        classes: of the images; the file must have the same, if it has any.
        normalization, trusted: see `load_encoder`.

    Returns a line for the log, or "". Raises CheckpointError.
    """
    if path in ("", "auto"):
        raise CheckpointError(
            "--eval: no classifier to evaluate; add --resume FILE, such as checkpoint-best.pd"
        )
    state = read_checkpoint(path, trusted=trusted)
    _check_heads(path, state, model)
    load_weights(path, state["model"], model, origin=state)
    check_classes(path, state, classes)
    return "\n".join(other_normalization(path, state, normalization))


def resume(
    path: Path | str,
    model: paddle.nn.Layer,
    optimizer: paddle.optimizer.Optimizer,
    scaler: paddle.amp.GradScaler,
    *,
    state: dict[str, Any] | None = None,
    trusted: bool = False,
) -> dict[str, Any]:
    """Restore model, optimizer and scaler of a run (--resume). Of bare weights only the model is restored.

    Args:
        state: the checkpoint, if it has been read already.
        trusted: see `read_checkpoint`.

    Returns the checkpoint. Raises CheckpointError.
    """
    state = read_checkpoint(path, trusted=trusted, continues=True) if state is None else state
    continues = "optimizer" in state and "epoch" in state
    load_weights(path, state["model"], model, origin=state, resize=not continues)
    if continues:
        restore_moments(path, state["optimizer"], model, optimizer)
        # Only a dynamic scale is a state, and only a run with a dynamic scale has a use for it
        # (--allow_changes).
        if (
            state.get("scaler")
            and scaler.is_enable()
            and (
                state["scaler"].get("use_dynamic_loss_scaling", True) and scaler.is_use_dynamic_loss_scaling()
            )
        ):
            scaler.load_state_dict(state["scaler"])
    return state


def check_classes(path: Path | str, state: Mapping[str, Any], classes: Sequence[str] | None) -> None:
    """Raise CheckpointError if a classifier was trained on other `classes`. Files without classes pass."""
    trained_on = state.get("classes")
    if trained_on is None or classes is None or list(trained_on) == list(classes):
        return
    only_file, only_data = (
        [name for name in a if name not in set(b)] for a, b in ((trained_on, classes), (classes, trained_on))
    )
    raise CheckpointError(
        f"{path}: it was trained on other classes than --data_path holds: only in the file "
        f"{only_file}, only in the data {only_data}"
    )


def other_normalization(
    path: Path | str, state: Mapping[str, Any], normalization: Mapping[str, Any] | None
) -> list[str]:
    """Return [a line for the log] if a file has another {"mean", "std"} than `normalization`, else []."""
    earlier = state.get("normalization", {})
    if normalization is None or len(earlier.get("mean", ())) != len(normalization["mean"]):
        return []
    then, now = (
        [list(map(float, each[name])) for name in ("mean", "std")] for each in (earlier, normalization)
    )
    if np.allclose(then, now, rtol=1e-4):
        return []
    mean, std = (" ".join(f"{value:g}" for value in values) for values in then)
    return [f"{path}: it was trained with --mean {mean} --std {std}, and this run takes others"]


def _is_of_decoder(name):
    return name.startswith(name_maps.OF_PRETRAINING)


def _check_pretrained(path, state):
    if role(state["model"]) not in ("mae", "encoder"):
        raise _misfit(path, state, "--finetune starts from a pretrained encoder")


def _check_heads(path, state, model, *, of_decoder=True):
    """Raise CheckpointError if a file says that its numbers of attention heads differ from the model's."""
    for name, now in num_heads(model).items():
        said = state.get("architecture", {}).get(name, now)
        if said != now and (of_decoder or name == "num_heads"):
            raise CheckpointError(
                f"{path}: its layers have {said} attention heads, and those of this model "
                f"{now}; pass --{name} {said}"
            )


def _misfit_of_decoder(decoder, own, described, model):
    """Return the reason why a decoder does not fit, or "".

    Args:
        decoder, own: {name: array} in the file and in the model.
        described: "architecture" in the file.
    """
    if not decoder:
        return "it has no decoder"
    table = "decoder_pos_embed"  # interpolated for another number of patches
    wrong = sorted(decoder.keys() ^ own.keys()) or [
        name for name in sorted(own) if name != table and decoder[name].shape != own[name].shape
    ]
    if wrong or decoder[table].shape[2] != own[table].shape[2]:
        return f"its decoder is another ({', '.join(wrong[:3]) or table})"
    if described.get("decoder_num_heads", (now := num_heads(model)["decoder_num_heads"])) != now:
        return f"its decoder has {described['decoder_num_heads']} attention heads, that of this run {now}"
    norm_pix_loss = described.get("norm_pix_loss", model.norm_pix_loss)
    if norm_pix_loss != model.norm_pix_loss:
        return f"its decoder predicts pixels {'with' if norm_pix_loss else 'without'} --norm_pix_loss"
    if any(name.startswith("pca_") and (decoder[name] != own[name]).any() for name in own):
        return "its decoder predicts other principal components than those of this run's images"
    return ""


def _fit_patch_embedding(path, weights, model):
    """Adapt the patch embedding in `weights` to `model`. Returns a line for each change."""
    lines = []
    _, before, height, width = weights[_KERNEL].shape
    now, patch_size = model.patch_embed.in_chans, model.patch_embed.patch_size[0]
    if height == width != patch_size:
        weights[_KERNEL] = adapt.resample_patches(weights[_KERNEL], patch_size)
        lines.append(f"{path}: its patch embedding is resampled from {width} to {patch_size} pixels")
    if before != now:
        weights[_KERNEL] = adapt.spread_channels(weights[_KERNEL], now)
        lines.append(
            f"{path}: its patch embedding is for {before} channels; each of {now} got the sum of "
            f"their weights / {now}"
        )
    return lines


def _trained_grid(state):
    """Return the grid (height, width) of a checkpoint's model, or None if the file does not say."""
    img_size = state.get("architecture", {}).get("img_size")
    if img_size is None:
        return None
    return tuple(np.broadcast_to(img_size, 2) // state["model"][_KERNEL].shape[-1])


def _resize_positions(path, weights, model, shapes, origin):
    """Return `weights` with position embeddings for the model's grid.

    If `origin` does not give their grid, it is the model's if that has as many patches, and else a square.
    """
    if role(weights) == "unknown":
        return weights
    weights, old_grid, new_grid = dict(weights), _trained_grid(origin), model.patch_embed.grid_size
    for name in ("pos_embed", "decoder_pos_embed"):
        if name in weights and name in shapes and weights[name].ndim == 3:
            patches = weights[name].shape[1] - 1
            if old_grid is None and weights[name].shape[1] == shapes[name][1]:
                continue
            grid = old_grid or [round(patches**0.5)] * 2
            if grid[0] * grid[1] != patches:
                raise CheckpointError(
                    f"{path}: its {name} has {patches} patches, which is not a square "
                    "grid, and the file does not say which other; pass the --input_size "
                    "of its training"
                )
            weights[name] = adapt.interpolate(weights[name], grid, new_grid)
    return weights


def _misfit(path, state, problem, lists=""):
    description, command = ROLES[role(state["model"])]
    made = " ".join(
        f"{flag(name)} {' '.join(map(str, np.ravel(value)))}"
        for name, value in state.get("architecture", {}).items()
        if name in SIZES
    )
    made = f" (made with {made})" if made else ""
    return CheckpointError(
        f"{path}: {problem}. The file is {description}{made}, for: {command.format(path=path)}{lists}"
    )
