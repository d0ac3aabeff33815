"""The format of checkpoints: reading and checking them, and the state of a run that they hold.

A checkpoint is a pickled dict of numpy arrays and plain values. Both `paddle.load` and
util.system.safe_pickle read it.

    model                   {parameter name: array}; the only entry of a file of bare weights
    model_ema               the same for the average of --ema; it is loaded unless the run is resumed
    optimizer               {parameter name: {moment name: array}}; the names are the model's, not Paddle's
    scaler, epoch, args     as in the official code; args is a dict
    architecture            {"name": ..., keyword arguments of the model}
    normalization           {"mean", "std"} of the images
    classes                 [class name, ...]; an index is a label
    max_accuracy            best accuracy so far, in per cent
    confusion               {"counts": array [C, C], "epoch"} of the best epoch, see util.run.confusion
    kind                    role of the weights, a key of ROLES
    git_revision, versions  of the code that wrote the file, see util.system.provenance

util.weights.sealed_pickle adds the version of the format and a checksum.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle

from util.system import distributed, provenance
from util.system.safe_pickle import printable
from util.weights import architecture, formats, name_maps


class Role(NamedTuple):
    """Use of a set of weights.

    Args:
        description: of the weights.
        command: that takes them, with {path} for the file.
    """

    description: str
    command: str


ROLES = {
    "mae": Role(
        "a whole masked autoencoder (encoder and decoder)",
        "main_finetune.py --finetune {path}   or   main_pretrain.py --resume {path}",
    ),
    "encoder": Role(
        "a pretrained encoder without decoder or head",
        "main_finetune.py --finetune {path}   or   main_linprobe.py --finetune {path}",
    ),
    "classifier": Role(
        "a finetuned classifier",
        "main_finetune.py --eval --resume {path}   or   main_infer.py --resume {path}",
    ),
    "linear_probe": Role(
        "a linear probe on a frozen encoder",
        "main_linprobe.py --eval --resume {path}   or   main_infer.py --resume {path}",
    ),
    "unknown": Role("neither a ViT nor a masked autoencoder", "none of these scripts"),
}

# Entries of "architecture": sizes, whose flags util.weights.flag_names knows, and switches.
SIZES = (
    "name",
    "img_size",
    "patch_size",
    "in_chans",
    "embed_dim",
    "depth",
    "num_heads",
    "num_classes",
    "decoder_embed_dim",
    "decoder_depth",
    "decoder_num_heads",
    "pca_target",
)
SWITCHES = ("global_pool", "norm_pix_loss", "encoder_mask_tokens")

# Entries that a resumed run uses, and their types.
_ENTRIES: dict[str, type | tuple[type, ...]] = {
    "epoch": int,
    "args": dict,
    "scaler": dict,
    "log": list,
    "progress": dict,
    "bad_images": dict,
    "normalization": dict,
    "max_accuracy": (int, float),
    "min_loss": (int, float),
    "skipped_in_a_row": int,
    "confusion": dict,
    "plateau": dict,
}

# Sizes that are both in "architecture" and in the shapes of the weights.
_IN_SHAPES = (
    "patch_size",
    "in_chans",
    "embed_dim",
    "depth",
    "num_classes",
    "decoder_embed_dim",
    "decoder_depth",
)


class CheckpointError(ValueError):
    """A file that does not fit. The message says what it is, and which command takes it."""


def role(weights: Iterable[str]) -> str:
    """Tell the role of weights, a key of ROLES, from their parameter names."""
    names = set(weights)
    if "patch_embed.proj.weight" not in names:
        return "unknown"
    if "decoder_pred.weight" in names:
        return "mae"
    if "head.1.weight" in names:
        return "linear_probe"
    return "classifier" if "head.weight" in names else "encoder"


def read_checkpoint(path: Path | str, *, trusted: bool = False, continues: bool = False) -> dict[str, Any]:
    """Read a checkpoint, or weights in any format of util.weights.formats. "model" is {our name: array}.

    Of files that this project did not write, only the weights are returned. Code in the file is not run.

    Args:
        trusted: read a pickle with whatever it asks for, which runs its code (--trust_checkpoint).
        continues: the run is resumed. Otherwise "model" is the average of --ema, if there is one; a line says
            so.

    Raises CheckpointError if the file is damaged, of another format, or holds no weights.
    """
    path = Path(path)
    try:
        file = formats.read_weights(path, trusted=trusted, prefer_average=not continues)
    except formats.WeightFileError as error:
        raise CheckpointError(str(error)) from error
    ours = file.file_format == "paddle" and file.entry in ("model", "model_ema")
    state = {**(file.beside if ours else {}), "model": _rename(path, file)}
    if ours and file.entry == "model_ema" and distributed.is_main():
        print(f"{path}: its averaged weights are taken (--ema)", file=sys.stderr)
    check_architecture(path, state)
    for name, what in _ENTRIES.items():
        if name in state and not isinstance(state[name], what):
            raise CheckpointError(f"{path}: its entry '{name}' has the wrong type; use another checkpoint")
    return state


def _rename(path: Path, file: formats.WeightFile) -> dict[str, np.ndarray]:
    """Rename weights to ours. Names that are unknown are kept, and are listed when the weights are loaded."""
    try:
        renamed = name_maps.to_ours(file.weights)
    except name_maps.WeightNamesError as error:
        if file.file_format == "paddle":
            return file.weights
        raise CheckpointError(f"{path}: {error}") from error
    return {
        name: np.asarray(value, order="C") for name, value in {**renamed.weights, **renamed.unknown}.items()
    }


def check_architecture(path: Path | str, state: dict[str, Any]) -> None:
    """Raise CheckpointError unless "architecture" agrees with the weights.

    A model is built from it, and a wrong size could fill the memory. An "architecture" that another program
    wrote in another form is removed.
    """
    weights, described = state["model"], state.get("architecture")
    if role(weights) == "unknown":
        return
    empty = next((name for name, value in weights.items() if not value.size), None)
    if empty is not None:
        raise CheckpointError(f"{path}: {empty} among its weights has no values")
    if not isinstance(described, dict):
        state.pop("architecture", None)
        described = {}
    try:
        wrong = _contradictions(described, architecture.sizes(weights))
    except (name_maps.WeightNamesError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if wrong:
        raise CheckpointError(
            f"{path}: its description of the model does not agree with its weights: {'; '.join(wrong)}"
        )


def _contradictions(described: Mapping[str, Any], sizes: Mapping[str, Any]) -> list[str]:
    """List the entries of an "architecture" that disagree with the `sizes` of the weights, as texts."""
    wrong = [f"unknown entry {printable(name)}" for name in described if name not in (*SIZES, *SWITCHES)]
    wrong += [
        f"{name} is {printable(described[name])}, but the weights have {sizes[name]}"
        for name in described
        if name in _IN_SHAPES and name in sizes and described[name] != sizes[name]
    ]
    for stack, prefix in (("encoder", ""), ("decoder", "decoder_")):
        heads, width = described.get(f"{prefix}num_heads", 1), sizes.get(f"{prefix}embed_dim", 0)
        if type(heads) is not int or heads < 1 or width % heads:
            wrong.append(
                f"{prefix}num_heads is {printable(heads)}, which does not divide the width {width} "
                f"of the {stack}"
            )
    if described and "decoder_depth" in sizes:
        for name, usual in (("encoder_mask_tokens", False), ("pca_target", 0)):
            said, found = described.get(name, usual), sizes.get(name, usual)
            if type(said) is not type(found) or said != found:
                wrong.append(f"{name} is {printable(said)}, but the weights have {found}")
    wrong += [
        f"{name} is no {what.__name__}"
        for name, what in (("name", str), *((switch, bool) for switch in SWITCHES))
        if not isinstance(described.get(name, what()), what)
    ]
    if "img_size" in described:
        sides = np.ravel(described["img_size"])
        if sides.dtype.kind != "i" or len(sides) not in (1, 2):
            return [*wrong, f"img_size is {printable(described['img_size'])}"]
        height, width = (int(side) // sizes["patch_size"] for side in np.broadcast_to(sides, 2))
        if sizes["tokens"] > 1 and height * width + 1 != sizes["tokens"]:
            wrong.append(
                f"img_size is {printable(described['img_size'])}, weights are for "
                f"{sizes['tokens'] - 1} patches of {sizes['patch_size']} pixels"
            )
    return wrong


def no_decoder(path: Path | str, state: Mapping[str, Any]) -> CheckpointError:
    """Return the error for a file that is asked for reconstructions and has no decoder."""
    return CheckpointError(
        f"{path}: a reconstruction needs a decoder, and this file is "
        f"{ROLES[role(state['model'])].description}; give a checkpoint-*.pd of a pretraining run, or "
        "mae_visualize_vit_*.pth or *_full.pth of the official files"
    )


def pack(
    model: paddle.nn.Layer,
    optimizer: paddle.optimizer.Optimizer,
    scaler: paddle.amp.GradScaler,
    epoch: int,
    args: Mapping[str, Any],
    **more: Any,
) -> dict[str, Any]:
    """Return the state of a run after `epoch`: arrays and plain values, for sealed_pickle.dump."""
    # With --amp_level O2 the optimizer keeps the weights in float32.
    masters = optimizer.state_dict().get("master_weights", {})
    weights = {name: masters.get(value.name, value).numpy() for name, value in model.state_dict().items()}
    return {
        "kind": role(weights),
        "git_revision": provenance.git_state()[0],
        "versions": provenance.versions(),
        "model": weights,
        "optimizer": _named_moments(model, optimizer),
        "scaler": plain(scaler.state_dict()),
        "epoch": epoch,
        "args": dict(args),
        **more,
    }


def _named_moments(model, optimizer):
    """Return the optimizer state as {parameter name: {moment: array}}."""
    generated = {p.name: name for name, p in model.named_parameters()}  # Paddle's keys: <p.name>_<moment>
    moments: dict[str, dict[str, np.ndarray]] = {}
    # In Paddle 2.6 a restored state stays in `_accumulators_holder` until the first update.
    for key, value in {**optimizer._accumulators_holder, **optimizer.state_dict()}.items():
        if isinstance(value, paddle.Tensor):
            owner = max((name for name in generated if key.startswith(name + "_")), key=len)
            moments.setdefault(generated[owner], {})[key[len(owner) + 1 :]] = value.numpy()
    return moments


def restore_moments(
    path: Path | str, moments: Any, model: paddle.nn.Layer, optimizer: paddle.optimizer.Optimizer
) -> None:
    """Put "optimizer" of a checkpoint into an optimizer.

    Raises CheckpointError if it is for other parameters, of other shapes, or of another optimizer.
    """
    trained = {name: p for name, p in model.named_parameters() if not p.stop_gradient}
    if not isinstance(moments, dict) or not all(isinstance(values, dict) for values in moments.values()):
        raise CheckpointError(
            f"{path}: its optimizer state is not {{parameter: moments}}; convert it to "
            "bare weights with tools/convert_checkpoint.py"
        )
    if moments and moments.keys() != trained.keys():
        differ = sorted(moments.keys() ^ trained.keys())
        raise CheckpointError(
            f"{path}: its optimizer state is for different parameters from those this run trains: {differ}"
        )
    first = "velocity_0" if isinstance(optimizer, paddle.optimizer.Momentum) else "moment1_0"
    if moments and first not in next(iter(moments.values())):
        names = ", ".join(sorted(next(iter(moments.values()))))
        raise CheckpointError(
            f"{path}: its optimizer state was written by another optimizer (it holds {names} for each "
            "parameter); pass the --opt of that run"
        )
    state = {}
    for name, values in moments.items():
        for moment, value in values.items():
            if not isinstance(value, np.ndarray) or (
                value.size != 1 and list(value.shape) != trained[name].shape
            ):
                raise CheckpointError(
                    f"{path}: {moment} of {name} in its optimizer state differs from the parameter in shape"
                )
            state[f"{trained[name].name}_{moment}"] = paddle.to_tensor(value)
    if state:
        optimizer.set_state_dict(state)


def checkpoint_size(model: paddle.nn.Layer, *, ema: bool = False) -> int:
    """Estimate the bytes of a checkpoint: weights, two moments of each trained one, an average if `ema`."""
    return sum(4 * p.size * (1 if p.stop_gradient else 3 + ema) for p in model.parameters())


def plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy with arrays for tensors."""
    return {key: item.numpy() if isinstance(item, paddle.Tensor) else item for key, item in value.items()}
