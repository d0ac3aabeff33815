"""Checkpoints: what a file holds, saving it whole, and loading it strictly.

A checkpoint is a pickled dict of numpy arrays and plain values, readable by `paddle.load` and by util.system.safe_pickle:
    model         {parameter name: array}; the only entry that a file of bare weights needs
    model_ema     the same with the averages of --ema; whoever does not continue the run is given them instead
    optimizer     {parameter name: {moment name: array}}: by the model's own names, not Paddle's generated ones
    scaler, epoch, args          as in the official code; args is a dict
    architecture  {"name": ..., keyword arguments of the model}; normalization  {"mean", "std"} of its images
    classes       [class name, ...], where an index is a label; max_accuracy  per cent
    confusion     {"counts": array [C, C], "epoch"} of the best epoch, see util.run.confusion
    kind          key of KINDS; git_revision, versions  of the code that wrote it, see util.system.provenance
The file adds its format's version and a checksum of all this, see util.weights.sealed_pickle.
"""
import contextlib
import sys
from pathlib import Path

import numpy as np
import paddle

from util.system import distributed, provenance, safe_pickle
from util.weights import architecture, formats, name_maps, patch_embed
from util.weights.pos_embed import interpolate
from util.weights.sealed_pickle import dump  # noqa: F401 - checkpoint.dump is how others write one

# What a set of weights is, in English and in Chinese, and the command that it is for.
KINDS = {
    "mae": ("a whole masked autoencoder (encoder and decoder)", "完整的 MAE（编码器和解码器）",
            "main_finetune.py --finetune {path}   or   main_pretrain.py --resume {path}"),
    "encoder": ("a pretrained encoder without decoder or head", "只有编码器的预训练权重（没有解码器，也没有分类头）",
                "main_finetune.py --finetune {path}   or   main_linprobe.py --finetune {path}"),
    "classifier": ("a finetuned classifier", "微调后的分类模型",
                   "main_finetune.py --eval --resume {path}   or   main_infer.py --resume {path}"),
    "linear_probe": ("a linear probe on a frozen encoder", "线性探测模型（编码器冻结）",
                     "main_linprobe.py --eval --resume {path}   or   main_infer.py --resume {path}"),
    "unknown": ("neither a ViT nor a masked autoencoder", "既不是 ViT，也不是 MAE", "none of these scripts"),
}


# The flags that set what a checkpoint's "architecture" holds.
FLAGS = {"name": "--model", "img_size": "--input_size", "patch_size": "--patch_size", "in_chans": "--in_chans",
         "embed_dim": "--embed_dim", "depth": "--depth", "num_heads": "--num_heads",
         "num_classes": "--nb_classes", "decoder_embed_dim": "--decoder_embed_dim", "decoder_depth": "--decoder_depth",
         "decoder_num_heads": "--decoder_num_heads", "pca_target": "--pca_target"}
SWITCHES = ("global_pool", "norm_pix_loss", "encoder_mask_tokens")  # what else it holds


# What a run reads back of a checkpoint, and of which type it is.
_ENTRIES = {"epoch": int, "args": dict, "scaler": dict, "log": list, "progress": dict,
            "bad_images": dict, "normalization": dict, "max_accuracy": (int, float), "min_loss": (int, float),
            "skipped_in_a_row": int, "confusion": dict, "plateau": dict}


class CheckpointError(ValueError):
    """A file that does not fit; the message says what it is and what it is for, in English and in Chinese."""


def kind(weights):
    """What the parameter names say the weights are: a key of KINDS."""
    if "patch_embed.proj.weight" not in weights:
        return "unknown"
    if "decoder_pred.weight" in weights:
        return "mae"
    if "head.1.weight" in weights:
        return "linear_probe"
    return "classifier" if "head.weight" in weights else "encoder"


def read(path, *, trusted=False, continues=False):
    """The dict in a checkpoint; its "model" is {name: array}. Runs no code that the file may bring.

    Files of PyTorch, Hugging Face, numpy and other Paddle ports are read too: their weights alone, renamed to ours.

    Args:
        trusted: read a pickle with whatever it asks for, which runs its code (--trust_checkpoint).
        continues: whether it is read to continue its run. Otherwise "model" is the average that a run with --ema keeps
            of its weights, if there is one, which a line to standard error says.
    Raises CheckpointError for a file that is damaged, of another format, or holds anything but weights.
    """
    path = Path(path)
    try:
        if formats.kind_of(path) != "paddle":
            state = {"model": _ours(formats.read(path, trusted=trusted).weights)}
            averaged = False
        else:
            state = formats.read_pickle(path, trusted=trusted)
            averaged = not continues and formats.has_average(state)
            if averaged:
                state["model"] = state.pop("model_ema")
            state = _with_weights(path, state)
    except formats.WeightFileError as error:
        raise CheckpointError(str(error)) from error
    except name_maps.WeightNamesError as error:
        raise CheckpointError(f"{path}: {error}\n{path}：无法识别其中的参数名（{error}）") from error
    _check_model(path, state)
    if averaged and distributed.is_main():
        print(f"{path}: its averaged weights are taken (--ema)", file=sys.stderr)
    for name, what in _ENTRIES.items():
        if name in state and not isinstance(state[name], what):
            raise CheckpointError(f"{path}: its {name} is not what a run writes there\n{path}：其中的 {name} 内容有误")
    return state


def _with_weights(path, state):
    """What a pickle holds, with {name: array} under "model"."""
    weights = state.get("model", state) if isinstance(state, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f"{path}: expected a dict of weights, or one under 'model'\n{path}：文件中没有模型权重")
    # paddle.save writes a tensor as the pair (its generated name, its values), and a name table beside them.
    weights = {name: value[1] if isinstance(value, tuple) and len(value) == 2 else value
               for name, value in weights.items() if name != "StructuredToParameterName@@"}
    if not all(isinstance(name, str) and isinstance(value, np.ndarray) for name, value in weights.items()):
        raise CheckpointError(f"{path}: not every entry of its weights is an array\n{path}：权重中有非数组的内容")
    try:
        safe_pickle.check_volume(sum(value.nbytes for value in weights.values()), path.stat().st_size)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}\n{path}：内容与文件大小不相称") from error
    with contextlib.suppress(name_maps.WeightNamesError):  # what cannot be renamed will not fit, and is listed then
        weights = _ours(weights)
    return {**(state if "model" in state else {}), "model": weights}


def _check_model(path, state):
    """CheckpointError if the weights are those of no model at all, or not of the one that the file describes.

    What a file says of its model is used to build it, and a wrong size would fill the memory.
    """
    weights, described = state["model"], state.get("architecture")
    if kind(weights) == "unknown":
        return
    empty = next((name for name, value in weights.items() if not value.size), None)
    if empty is not None:
        raise CheckpointError(f"{path}: {empty} among its weights has no values\n{path}：权重 {empty} 为空")
    if not isinstance(described, dict):  # another program's entry of that name, if any
        state.pop("architecture", None)
        described = {}
    try:
        sizes = architecture.sizes(weights)
        wrong = _contradictions(described, sizes)
    except (name_maps.WeightNamesError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}\n{path}：权重或模型描述有误（{error}）") from error
    if wrong:
        raise CheckpointError(f"{path}: its description of the model does not agree with its weights: "
                              f"{'; '.join(wrong)}\n{path}：模型描述与权重不一致：{'; '.join(wrong)}")


def _contradictions(described, sizes):
    """What an "architecture" says that cannot be of the weights with `sizes`, as texts."""
    wrong = [f"unknown entry {safe_pickle.printable(name)}" for name in described if name not in (*FLAGS, *SWITCHES)]
    wrong += [f"{name} is {safe_pickle.printable(value)}, weights {sizes[name]}" for name, value in described.items()
              if name in ("patch_size", "in_chans", "embed_dim", "depth", "num_classes", "decoder_embed_dim", "decoder_depth")
              and name in sizes and value != sizes[name]]
    for stack, prefix in (("encoder", ""), ("decoder", "decoder_")):
        heads, width = described.get(f"{prefix}num_heads", 1), sizes.get(f"{prefix}embed_dim", 0)
        if type(heads) is not int or heads < 1 or width % heads:
            wrong.append(f"{prefix}num_heads is {safe_pickle.printable(heads)}, the {stack} {width} wide")
    if described and "decoder_depth" in sizes:
        for name, usual in (("encoder_mask_tokens", False), ("pca_target", 0)):
            said, found = described.get(name, usual), sizes.get(name, usual)
            if type(said) is not type(found) or said != found:
                wrong.append(f"{name} is {safe_pickle.printable(said)}, weights {found}")
    wrong += [f"{name} is no {what.__name__}" for name, what in
              (("name", str), *((switch, bool) for switch in SWITCHES)) if not isinstance(described.get(name, what()), what)]
    if "img_size" in described:
        sides = np.ravel(described["img_size"])
        if sides.dtype.kind != "i" or len(sides) not in (1, 2):
            return [*wrong, f"img_size is {safe_pickle.printable(described['img_size'])}"]
        height, width = (int(side) // sizes["patch_size"] for side in np.broadcast_to(sides, 2))
        if sizes["tokens"] > 1 and height * width + 1 != sizes["tokens"]:
            wrong.append(f"img_size is {safe_pickle.printable(described['img_size'])}, weights are for "
                         f"{sizes['tokens'] - 1} patches of {sizes['patch_size']} pixels")
    return wrong


def load_weights(path, weights, model, *, origin=None, resize=True, share_memory=False):
    """Put `weights` into `model`, every entry of both. A model made under paddle.LazyGuard gets its memory by it.

    Args:
        origin: the checkpoint that the weights are from, if they are not all of it; it says more in an error, and
            for which image size they are. Unknown, they are for a square.
        resize: bring position embeddings of another grid to the model's.
        share_memory: on a CPU the parameters are the arrays, not copies, which saves a fifth of a second and 350 MB for
            ViT-B; neither may be changed afterwards.

    Raises CheckpointError with the exact lists where names or shapes differ; the model is then unchanged.
    """
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if resize:
        weights = _resize_positions(path, weights, model, own, origin or {})
    missing = sorted(own.keys() - weights.keys())
    unexpected = sorted(weights.keys() - own.keys())
    misshaped = [f"{name} {list(weights[name].shape)} instead of {list(own[name])}"
                 for name in sorted(own.keys() & weights.keys()) if weights[name].shape != own[name]]
    if missing or unexpected or misshaped:
        raise _misfit(path, origin or {"model": weights}, missing, unexpected, misshaped)
    share_memory = share_memory and paddle.get_device() == "cpu"
    for name, value in model.state_dict().items():
        if share_memory and weights[name].dtype == np.float32 and weights[name].flags.c_contiguous:
            value.value().get_tensor().set(weights[name], paddle.CPUPlace(), True)
        else:
            value.set_value(weights[name])  # not set_state_dict, which in Paddle 2.6 leaves out what is not initialised


def load_encoder(path, model, *, normalization=None, state=None, trusted=False):
    """Start a classifier from pretraining (--finetune): everything but the head, which stays as it is.

    Left out of the file without a word: the decoder and its target, mask tokens, and the norm that the chosen pooling
    does not have. Everything else must fit, as in the official code, but for the size of patches and the number of
    channels: see `util.weights.patch_embed.resample` and `spread_channels`. Returns a line about each, or "".

    Args:
        normalization: {"mean", "std"} of this run; a line tells of other ones in the file.
        state: what is in the file, if it has been read already; trusted: as for `read`, otherwise.
    """
    state = read(path, trusted=trusted) if state is None else state
    weights = state["model"]
    if kind(weights) not in ("mae", "encoder"):
        raise _misfit(path, state, [], [], [], wanted="--finetune starts from a pretrained encoder")
    _check_heads(path, state, model)
    fresh = [name for name in model.state_dict() if name.split(".")[0] in ("head", "fc_norm")]
    pretrained = {name: value for name, value in weights.items()
                  if not (name.startswith(name_maps.OF_PRETRAINING)
                          or (name.startswith("norm.") and model.global_pool))}
    own = model.state_dict()
    lines = _fit_patch_embedding(path, pretrained, model)
    load_weights(path, {**pretrained, **{name: own[name].numpy() for name in fresh}}, model, origin=state)
    return "\n".join(lines + other_normalization(path, state, normalization))


def load_pretrained(path, model, *, normalization=None, trusted=False):
    """Start another pretraining from an earlier one (--finetune): the encoder, and the decoder if it is of use.

    The decoder stays new, as a line then says, where the file has none, or one of other sizes or for another target.
    Otherwise as `load_encoder`.
    """
    state = read(path, trusted=trusted)
    if kind(state["model"]) not in ("mae", "encoder"):
        raise _misfit(path, state, [], [], [], wanted="--finetune starts from a pretrained encoder")
    _check_heads(path, state, model, of_decoder=False)
    own = {name: value.numpy() for name, value in model.state_dict().items()}
    pretrained = {name: value for name, value in state["model"].items() if not _is_of_decoder(name)}
    decoder = {name: value for name, value in state["model"].items() if _is_of_decoder(name)}
    new = {name: value for name, value in own.items() if _is_of_decoder(name)}
    lines = _fit_patch_embedding(path, pretrained, model)
    described = state.get("architecture", {})
    reason = _why_not(decoder, new, described, model)
    if reason:
        lines.append(f"{path}: {reason}; this run begins with a new decoder")
        decoder = {}
    elif "norm_pix_loss" not in described:
        lines.append(f"{path}: it does not say whether its decoder predicts pixels with --norm_pix_loss; this run goes "
                     f"on {'with' if model.norm_pix_loss else 'without'} it")
    shapes = {name: value.shape for name, value in own.items()}
    weights = _resize_positions(path, {**pretrained, **decoder}, model, shapes, state)
    load_weights(path, weights if decoder else {**weights, **new}, model, origin=state, resize=False)
    return "\n".join(lines + other_normalization(path, state, normalization))


def _is_of_decoder(name):
    return name.startswith(name_maps.OF_PRETRAINING)


def _why_not(decoder, own, described, model):
    """What keeps the {name: array} of a decoder from being that of `model`, whose are `own`; "" if nothing does.

    Args:
        described: what the file says of its model.
    """
    if not decoder:
        return "it has no decoder"
    table = "decoder_pos_embed"  # interpolated, if there are more or fewer patches
    wrong = sorted(decoder.keys() ^ own.keys()) or [name for name in sorted(own) if name != table
                                                    and decoder[name].shape != own[name].shape]
    if wrong or decoder[table].shape[2] != own[table].shape[2]:
        return f"its decoder is another ({', '.join(wrong[:3]) or table})"
    if described.get("decoder_num_heads", (now := heads(model)["decoder_num_heads"])) != now:
        return f"its decoder has {described['decoder_num_heads']} attention heads, that of this run {now}"
    norm_pix_loss = described.get("norm_pix_loss", model.norm_pix_loss)
    if norm_pix_loss != model.norm_pix_loss:
        return f"its decoder predicts pixels {'with' if norm_pix_loss else 'without'} --norm_pix_loss"
    if any(name.startswith("pca_") and (decoder[name] != own[name]).any() for name in own):
        return "its decoder predicts other principal components than those of this run's pictures"
    return ""


def heads(model):
    """{"num_heads", "decoder_num_heads"} of the stacks that a model has: what its weights do not tell."""
    stacks = (("num_heads", "blocks"), ("decoder_num_heads", "decoder_blocks"))
    return {name: getattr(model, stack)[0].attn.num_heads for name, stack in stacks if len(getattr(model, stack, ()))}


def _check_heads(path, state, model, *, of_decoder=True):
    """CheckpointError if a file says that its layers attend with other numbers of heads than those of `model`."""
    for name, now in heads(model).items():
        said = state.get("architecture", {}).get(name, now)
        if said != now and (of_decoder or name == "num_heads"):
            raise CheckpointError(f"{path}: its layers have {said} attention heads, and those of this model {now}; pass "
                                  f"--{name} {said}\n{path}：其注意力头数为 {said}，而本模型为 {now}；请加 --{name} {said}")


def other_normalization(path, state, normalization):
    """[a line], if the file says that its pictures were normalised otherwise than by `normalization`; else []."""
    if normalization is None or len(state.get("normalization", {}).get("mean", ())) != len(normalization["mean"]):
        return []
    then, now = ([list(map(float, each[name])) for name in ("mean", "std")] for each in (state["normalization"],
                                                                                         normalization))
    if np.allclose(then, now, rtol=1e-4):
        return []
    mean, std = (" ".join(f"{value:g}" for value in values) for values in then)
    return [f"{path}: it was trained with --mean {mean} --std {std}, and this run takes others"]


def _fit_patch_embedding(path, weights, model):
    """Bring the patch embedding among `weights` to the patches and channels of `model`; a line about each change."""
    kernel, lines = "patch_embed.proj.weight", []
    _, before, height, width = weights[kernel].shape
    now, patch_size = model.patch_embed.in_chans, model.patch_embed.patch_size[0]
    if height == width != patch_size:
        weights[kernel] = patch_embed.resample(weights[kernel], patch_size)
        lines.append(f"{path}: its patch embedding is resampled from {width} to {patch_size} pixels")
    if before != now:
        weights[kernel] = spread_channels(weights[kernel], now)
        lines.append(f"{path}: its patch embedding is for {before} channels; each of {now} got the sum of their "
                     f"weights / {now}")
    return lines


def spread_channels(kernel, in_chans):
    """The weights of a patch embedding for another number of channels: [D, C, p, p] -> [D, in_chans, p, p].

    Each new channel gets the sum over the old ones, divided by `in_chans`: a grey picture, the same in every channel,
    is embedded as before, so that what follows meets values of the size that it has learned. For one channel that is
    the sum itself, as in timm; for more it is the mean of the old weights, scaled.
    """
    total = kernel.sum(axis=1, keepdims=True) / np.float32(in_chans)
    return np.repeat(total.astype(kernel.dtype), in_chans, axis=1)


def load_for_evaluation(path, model, classes, *, normalization=None, trusted=False):
    """Put a trained classifier (--eval --resume) into `model` and make sure that it knows the classes of the images.

    Returns a line if it was trained with another `normalization`, or "".
    """
    if path in ("", "auto"):
        raise CheckpointError("--eval needs --resume FILE, the classifier to evaluate, such as checkpoint-best.pd\n"
                              "--eval 需要用 --resume 指定要评估的模型，例如 checkpoint-best.pd")
    state = read(path, trusted=trusted)
    _check_heads(path, state, model)
    load_weights(path, state["model"], model, origin=state)
    check_classes(path, state, classes)
    return "\n".join(other_normalization(path, state, normalization))


def no_decoder(path, state):
    """The CheckpointError for a file that is asked for reconstructions and cannot give any."""
    english, chinese, _ = KINDS[kind(state["model"])]
    return CheckpointError(
        f"{path}: a reconstruction needs a decoder, and this file is {english}. Files with one: checkpoint-*.pd of a "
        f"pretraining run; of the official ones mae_visualize_vit_*.pth and *_full.pth\n"
        f"{path}：重建需要解码器，而该文件是{chinese}。带解码器的文件：预训练得到的 checkpoint-*.pd，"
        f"以及官方的 mae_visualize_vit_*.pth 和 *_full.pth")


def check_classes(path, state, classes):
    """CheckpointError unless the classifier in `state` was trained on `classes`; older files do not say."""
    trained_on = state.get("classes")
    if trained_on is None or classes is None or list(trained_on) == list(classes):
        return
    only_file, only_data = ([name for name in a if name not in set(b)]
                            for a, b in ((trained_on, classes), (classes, trained_on)))
    raise CheckpointError(f"{path}: it was trained on other classes than --data_path holds: only in the file "
                          f"{only_file}, only in the data {only_data}\n"
                          f"{path}：训练时的类别与 --data_path 不同：仅文件中有 {only_file}，仅数据中有 {only_data}")


def pack(model, optimizer, scaler, epoch, args, **more):
    """The state of a run after `epoch`, as plain arrays."""
    masters = optimizer.state_dict().get("master_weights", {})  # the float32 weights behind those of --amp_level O2
    weights = {name: masters.get(value.name, value).numpy() for name, value in model.state_dict().items()}
    return {"kind": kind(weights), "git_revision": provenance.git_state()[0], "versions": provenance.versions(),
            "model": weights, "optimizer": _named_moments(model, optimizer), "scaler": plain(scaler.state_dict()),
            "epoch": epoch, "args": dict(args), **more}


def size(model, *, ema=False):
    """About how many bytes a checkpoint of a run has: the weights, and two moments of each that is trained.

    Args:
        ema: whether there is an average of those, too.
    """
    return sum(4 * p.size * (1 if p.stop_gradient else 3 + ema) for p in model.parameters())


def resume(path, model, optimizer, scaler, *, state=None, trusted=False):
    """Continue a run (--resume): restore all three in place and return the checkpoint's dict.

    Args:
        state: what is in the file, if it has been read already; trusted: as for `read`, otherwise.
    """
    state = read(path, trusted=trusted, continues=True) if state is None else state
    continues = "optimizer" in state and "epoch" in state  # a file of bare weights has neither
    load_weights(path, state["model"], model, origin=state, resize=not continues)
    if continues:
        _restore_moments(path, state["optimizer"], model, optimizer)
        # A scale that stays is not a state; nor does that of a run with one (--allow_changes) help one with the other.
        if state.get("scaler") and scaler.is_enable() and (
                state["scaler"].get("use_dynamic_loss_scaling", True) and scaler.is_use_dynamic_loss_scaling()):
            scaler.load_state_dict(state["scaler"])
    return state


def _ours(weights):
    """Weights of another origin under our names; what has none here keeps its own."""
    renamed = name_maps.to_ours(weights)
    return {name: np.asarray(value, order="C") for name, value in {**renamed.weights, **renamed.unknown}.items()}


def _trained_grid(state):
    """(height, width) in patches that the model in a checkpoint was made for, or None where the file does not say."""
    img_size = state.get("architecture", {}).get("img_size")
    return None if img_size is None else tuple(
        np.broadcast_to(img_size, 2) // state["model"]["patch_embed.proj.weight"].shape[-1])


def _resize_positions(path, weights, model, own, origin):
    """`weights` with the position tables of the model's grid.

    Where `origin` does not say for which one they are, that is the model's if it has as many patches, or else a square.
    """
    if kind(weights) == "unknown":
        return weights
    weights, old_grid, new_grid = dict(weights), _trained_grid(origin), model.patch_embed.grid_size
    for name in ("pos_embed", "decoder_pos_embed"):
        if name in weights and name in own and weights[name].ndim == 3:
            patches = weights[name].shape[1] - 1
            if old_grid is None and weights[name].shape[1] == own[name][1]:
                continue
            grid = old_grid or [round(patches ** 0.5)] * 2
            if grid[0] * grid[1] != patches:
                raise CheckpointError(
                    f"{path}: its {name} has {patches} patches, which is not a square grid, and the file does not say "
                    f"which other; give the --input_size that it was made for\n"
                    f"{path}：{name} 不是正方形网格，无法插值，请使用训练时的 --input_size")
            weights[name] = interpolate(weights[name], grid, new_grid)
    return weights


def _misfit(path, state, missing, unexpected, misshaped, wanted="its weights do not fit this model"):
    english, chinese, command = KINDS[kind(state["model"])]
    made = " ".join(f"{FLAGS[name]} {' '.join(map(str, np.ravel(value)))}"
                    for name, value in state.get("architecture", {}).items() if name in FLAGS)
    english, chinese = (f"{english} (made with {made})", f"{chinese}（训练时为 {made}）") if made else (english, chinese)
    lists = "".join(f"\n  {title} ({len(names)}): {', '.join(names)}" for title, names in
                    [("missing / 缺少", missing), ("unexpected / 多余", unexpected), ("mis-shaped / 形状不符", misshaped)]
                    if names)
    command = command.format(path=path)
    return CheckpointError(f"{path}: {wanted}. The file is {english}, for: {command}\n"
                           f"{path}：权重与模型不符。该文件是{chinese}，适用命令：{command}{lists}")


def _named_moments(model, optimizer):
    """Optimizer state as {parameter name: {moment: array}}; Paddle's keys are generated name + _ + moment."""
    generated = {p.name: name for name, p in model.named_parameters()}
    moments = {}
    # What was resumed waits in the holder until the first update; Paddle 2.6 leaves it out of the state until then.
    for key, value in {**optimizer._accumulators_holder, **optimizer.state_dict()}.items():
        if isinstance(value, paddle.Tensor):
            owner = max((name for name in generated if key.startswith(name + "_")), key=len)
            moments.setdefault(generated[owner], {})[key[len(owner) + 1:]] = value.numpy()
    return moments


def _restore_moments(path, moments, model, optimizer):
    trained = {name: p for name, p in model.named_parameters() if not p.stop_gradient}
    if not isinstance(moments, dict) or not all(isinstance(values, dict) for values in moments.values()):
        raise CheckpointError(f"{path}: its optimizer state is not sorted by parameters; take its weights alone\n"
                              f"{path}：优化器状态不是按参数名保存的，请只使用其中的权重")
    if moments and moments.keys() != trained.keys():
        differ = sorted(moments.keys() ^ trained.keys())
        raise CheckpointError(f"{path}: its optimizer state is for other parameters than this run trains: {differ}\n"
                              f"{path}：优化器状态与本次训练的参数不一致：{differ}")
    first = "velocity_0" if isinstance(optimizer, paddle.optimizer.Momentum) else "moment1_0"
    if moments and first not in next(iter(moments.values())):
        kinds = ", ".join(sorted(next(iter(moments.values()))))
        raise CheckpointError(f"{path}: its optimizer state is of another optimizer, with {kinds} for each parameter; "
                              f"pass the --opt that it was made with\n"
                              f"{path}：优化器状态属于另一种优化器（{kinds}），请使用当时的 --opt")
    state = {}
    for name, values in moments.items():
        for moment, value in values.items():
            if not isinstance(value, np.ndarray) or (value.size != 1 and list(value.shape) != trained[name].shape):
                raise CheckpointError(f"{path}: {moment} of {name} in its optimizer state has another shape than the "
                                      f"parameter\n{path}：优化器状态中 {name} 的 {moment} 与参数形状不符")
            state[f"{trained[name].name}_{moment}"] = paddle.to_tensor(value)
    if state:
        optimizer.set_state_dict(state)


def plain(value):
    """{name: Tensor or plain value} with arrays for tensors."""
    return {key: item.numpy() if isinstance(item, paddle.Tensor) else item for key, item in value.items()}
