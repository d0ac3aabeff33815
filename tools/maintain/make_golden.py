"""Write tests/golden/*.npz: what other people's implementations compute, for our tests to be compared with.

    python tools/maintain/make_golden.py

A development tool, run again only to change what is compared. It needs PyTorch (CPU), torchvision, timm and
transformers, which the project itself does not; the versions that made a file are in its "meta". Models and training
run in float64, so that a difference that a test sees is our rounding and not the reference's.
Where a reference differs from the official code, which is built on timm 0.3.2, the place says so in a comment.
"""
import hashlib
import json
import math
import random
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
import timm.data.auto_augment
import timm.data.mixup
import torch
import torch.nn.functional as F
import torchvision.transforms as T
from PIL import Image
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from timm.optim import Lars, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "golden"
SEED = 20211111
MAE = dict(img_size=24, patch_size=4, in_chans=3, embed_dim=24, depth=2, num_heads=3,
           decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=2)
VIT = dict(img_size=24, patch_size=4, in_chans=3, num_classes=10, embed_dim=24, depth=3, num_heads=3)


def write(name, arrays, **settings):
    """tests/golden/NAME.npz with `arrays` and, as JSON, the versions and the settings that a test needs to repeat."""
    versions = {package: version(package).split("+")[0]
                for package in ("torch", "torchvision", "timm", "transformers", "numpy", "pillow")}
    meta = json.dumps({"versions": versions, "seed": SEED, **settings})
    np.savez_compressed(FOLDER / f"{name}.npz", meta=np.array(meta), **arrays)


def generator(name):
    """numpy generator of one file, so that changing one leaves the others as they are."""
    return np.random.default_rng([SEED, *name.encode()])


def float32(tensor):
    return tensor.detach().numpy().astype(np.float32)


# ---- models

def positions():
    """Sine-cosine tables and interpolated tables."""
    arrays = {}
    for height, width, dim in [(14, 14, 48), (7, 7, 32), (3, 8, 64), (10, 4, 24), (2, 2, 768)]:
        table = build_2d_sinusoidal_position_embedding(height, width, dim)
        # transformers puts the row first; published MAE weights, and its own model, have the column first.
        arrays[f"sincos/{height}x{width}x{dim}"] = torch.cat(table.split(dim // 2, dim=1)[::-1], dim=1).numpy()
    rng = generator("positions")
    for old, new in [((14, 14), (24, 24)), ((14, 14), (6, 6)), ((14, 14), (16, 16)), ((8, 8), (5, 11))]:
        table = rng.standard_normal([1, 1 + old[0] * old[1], 8]).astype(np.float32)
        grid = torch.from_numpy(table[:, 1:]).reshape(1, *old, 8).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)
        name = "interpolated/" + "-".join(f"{height}x{width}" for height, width in (old, new))
        rows = grid.permute(0, 2, 3, 1).reshape(1, -1, 8).numpy()
        arrays.update({f"{name}/from": table, f"{name}/to": np.concatenate([table[:, :1], rows], axis=1)})
    write("positions", arrays)


def block_shapes(prefix, dim):
    return {f"{prefix}.norm1.weight": [dim], f"{prefix}.norm1.bias": [dim],
            f"{prefix}.attn.qkv.weight": [3 * dim, dim], f"{prefix}.attn.qkv.bias": [3 * dim],
            f"{prefix}.attn.proj.weight": [dim, dim], f"{prefix}.attn.proj.bias": [dim],
            f"{prefix}.norm2.weight": [dim], f"{prefix}.norm2.bias": [dim],
            f"{prefix}.mlp.fc1.weight": [4 * dim, dim], f"{prefix}.mlp.fc1.bias": [4 * dim],
            f"{prefix}.mlp.fc2.weight": [dim, 4 * dim], f"{prefix}.mlp.fc2.bias": [dim]}


def encoder_shapes(*, img_size, patch_size, in_chans, embed_dim, depth, **_):
    shapes = {"cls_token": [1, 1, embed_dim], "pos_embed": [1, 1 + (img_size // patch_size) ** 2, embed_dim],
              "patch_embed.proj.weight": [embed_dim, in_chans, patch_size, patch_size],
              "patch_embed.proj.bias": [embed_dim]}
    for i in range(depth):
        shapes.update(block_shapes(f"blocks.{i}", embed_dim))
    return shapes


def mae_shapes():
    dim, patch_values = MAE["decoder_embed_dim"], MAE["in_chans"] * MAE["patch_size"] ** 2
    shapes = {**encoder_shapes(**MAE), "norm.weight": [MAE["embed_dim"]], "norm.bias": [MAE["embed_dim"]],
              "decoder_embed.weight": [dim, MAE["embed_dim"]], "decoder_embed.bias": [dim], "mask_token": [1, 1, dim],
              "decoder_pos_embed": [1, 1 + (MAE["img_size"] // MAE["patch_size"]) ** 2, dim]}
    for i in range(MAE["decoder_depth"]):
        shapes.update(block_shapes(f"decoder_blocks.{i}", dim))
    return {**shapes, "decoder_norm.weight": [dim], "decoder_norm.bias": [dim],
            "decoder_pred.weight": [patch_values, dim], "decoder_pred.bias": [patch_values]}


# The linear maps whose output is, or is added to, the residual stream.
INTO_STREAM = ("attn.proj.", "fc2.", "patch_embed.proj.", "decoder_embed.")


def random_weights(shapes, rng):
    """{name: float32 array} on which small mistakes show.

    The residual stream is small, so that the epsilon of every LayerNorm matters; what enters a GELU or a softmax is of
    the order of 1.
    """
    weights = {}
    for name, shape in shapes.items():
        value = rng.standard_normal(shape)
        into_stream = any(part in name for part in INTO_STREAM)
        if name.endswith(".weight") and len(shape) == 1:
            value = 1 + 0.2 * value
        elif name.endswith(".weight"):
            value *= (0.03 if into_stream else 1.5) / math.sqrt(math.prod(shape[1:]))
        elif into_stream:
            value *= 0.01
        else:
            value *= 0.03 if name.endswith(("_token", "pos_embed")) else 0.2
        weights[name] = value.astype(np.float32)
    return weights


def huggingface_name(name):
    """The official name in transformers' ViTMAE; attn.qkv becomes a pattern for q, k and v."""
    inner = (name.replace(".norm1.", ".layernorm_before.").replace(".norm2.", ".layernorm_after.")
             .replace(".attn.proj.", ".attention.o_proj.").replace(".attn.qkv.", ".attention.{}_proj."))
    for official, theirs in [("decoder_blocks.", "decoder.decoder_layers."), ("blocks.", "vit.layers."),
                             ("norm.", "vit.layernorm."), ("cls_token", "vit.embeddings.cls_token"),
                             ("pos_embed", "vit.embeddings.position_embeddings"), ("mask_token", "decoder.mask_token"),
                             ("patch_embed.proj.", "vit.embeddings.patch_embeddings.projection."),
                             ("decoder_", "decoder.decoder_")]:
        if inner.startswith(official):
            return theirs + inner[len(official):]
    raise ValueError(name)


def huggingface_mae(weights, *, norm_pix_loss):
    """transformers' masked autoencoder of MAE's sizes, in float64, with `weights`."""
    model = ViTMAEForPreTraining(ViTMAEConfig(
        image_size=MAE["img_size"], patch_size=MAE["patch_size"], num_channels=MAE["in_chans"],
        hidden_size=MAE["embed_dim"], num_hidden_layers=MAE["depth"], num_attention_heads=MAE["num_heads"],
        intermediate_size=4 * MAE["embed_dim"], decoder_hidden_size=MAE["decoder_embed_dim"],
        decoder_num_hidden_layers=MAE["decoder_depth"], decoder_num_attention_heads=MAE["decoder_num_heads"],
        decoder_intermediate_size=4 * MAE["decoder_embed_dim"], mask_ratio=0.75, norm_pix_loss=norm_pix_loss,
        layer_norm_eps=1e-6,            # transformers' default is 1e-12, the official code's 1e-6
        attn_implementation="sdpa"))    # the eager one takes its softmax in float32
    state = {}
    for name, value in weights.items():
        theirs = huggingface_name(name)
        parts = zip("qkv", np.split(value, 3)) if "{}" in theirs else [("", value)]
        state.update({theirs.format(letter): torch.from_numpy(part) for letter, part in parts})
    model.load_state_dict(state, strict=True)
    return model.double().train()


def huggingface_values(model, names, value_of):
    """{official name: float32 array} of what `value_of` takes from each of transformers' parameters."""
    parameters = dict(model.named_parameters())

    def joined(theirs):
        parts = [value_of(parameters[theirs.format(letter)]) for letter in ("qkv" if "{}" in theirs else [""])]
        return float32(torch.cat(parts))
    return {name: joined(huggingface_name(name)) for name in names}


def random_images(rng, count, size=24):
    """float32 [count, 3, size, size] with structure at several scales, so that patches differ in mean and spread."""
    coarse = torch.from_numpy(rng.standard_normal([count, 3, size // 6, size // 6]))
    smooth = F.interpolate(coarse, size=[size, size], mode="bicubic").numpy()
    return (smooth + 0.3 * rng.standard_normal(smooth.shape)).astype(np.float32)


def mae():
    """Patches, masks, and forward and backward of the masked autoencoder, with both kinds of target."""
    rng = generator("mae")
    weights = random_weights(mae_shapes(), rng)
    images, noise = random_images(rng, 2), rng.random([2, 36], dtype=np.float32)
    images[1] *= 0.01       # nearly flat: there it matters where the epsilon of a normalised target stands
    arrays = {"images": images, "noise": noise, **{f"weights/{name}": value for name, value in weights.items()}}
    trained = [name for name in weights if not name.endswith("pos_embed")]
    for target, norm_pix_loss in (("pixels", False), ("normalised", True)):
        model = huggingface_mae(weights, norm_pix_loss=norm_pix_loss)
        pixels, draws = torch.from_numpy(images).double(), torch.from_numpy(noise)
        output = model(pixels, noise=draws)
        output.loss.backward()
        arrays.update({f"{target}/latent": float32(model.vit(pixels, noise=draws).last_hidden_state),
                       f"{target}/pred": float32(output.logits), f"{target}/mask": float32(output.mask),
                       f"{target}/loss": output.loss.detach().numpy()})
        gradients = huggingface_values(model, trained, lambda p: p.grad)
        arrays.update({f"{target}/gradients/{name}": value for name, value in gradients.items()})

    for name, shape in (("square", (24, 24)), ("wide", (8, 20))):
        pictures = torch.from_numpy(rng.standard_normal([2, 3, *shape]).astype(np.float32))
        patches = model.patchify(pictures, interpolate_pos_encoding=True)
        assert torch.equal(model.unpatchify(patches, shape), pictures)
        arrays.update({f"patchify/{name}/images": pictures.numpy(), f"patchify/{name}/patches": patches.numpy()})
    # The number of kept patches is rounded down as a float: 9 of 100 at a ratio of 0.9.
    for length, ratio in [(36, 0.75), (100, 0.9), (100, 0.8), (49, 0.6)]:
        model.config.mask_ratio = ratio
        tokens = torch.arange(2 * length, dtype=torch.float32).reshape(2, length, 1)
        draws = torch.from_numpy(rng.random([2, length], dtype=np.float32))
        kept, mask, ids_restore = model.vit.embeddings.random_masking(tokens, draws)
        arrays.update({f"masking/{length}-{ratio}/{key}": value.numpy() for key, value in
                       dict(noise=draws, kept=kept, mask=mask, ids_restore=ids_restore).items()})
    write("mae", arrays, model=MAE, mask_ratio=0.75)


def timm_vit(weights, *, global_pool):
    """timm's ViT of VIT's sizes, in float64; `norm.*` of `weights` serves as fc_norm.* where the mean is pooled."""
    model = VisionTransformer(**VIT, global_pool="avg" if global_pool else "token",
                              norm_layer=partial(nn.LayerNorm, eps=1e-6))
    model.load_state_dict({("fc_" if global_pool and name.startswith("norm.") else "") + name: torch.from_numpy(value)
                           for name, value in weights.items()}, strict=True)
    return model.double().train()


def timm_values(model):
    return {name.replace("fc_norm.", "norm."): float32(p) for name, p in model.named_parameters()}


def vit():
    """Forward of the classifier with both kinds of pooling. Returns its weights for the training runs."""
    rng = generator("vit")
    weights = random_weights({**encoder_shapes(**VIT), "norm.weight": [24], "norm.bias": [24],
                              "head.weight": [10, 24], "head.bias": [10]}, rng)
    images = random_images(rng, 4)
    arrays = {"images": images, **{f"weights/{name}": value for name, value in weights.items()}}
    for pool in ("mean", "token"):
        model = timm_vit(weights, global_pool=pool == "mean").eval()
        pixels = torch.from_numpy(images).double()
        arrays[f"{pool}/features"] = float32(model.forward_head(model.forward_features(pixels), pre_logits=True))
        arrays[f"{pool}/logits"] = float32(model(pixels))
    write("vit", arrays, model=VIT)
    return weights


# ---- training

def cosine(optimizer, steps, *, warmup_epochs, epochs, min_lr):
    """timm's schedule, counted in micro-batches. It scales by a group's "lr_scale" the minimum too, as officially."""
    warmup = round(warmup_epochs * steps)
    return CosineLRScheduler(optimizer, t_initial=round(epochs * steps) - warmup, lr_min=min_lr, warmup_t=warmup,
                             warmup_lr_init=0, warmup_prefix=True, t_in_epochs=False)


def step_lr(scheduler, step):
    scheduler.step_update(step)
    return max(group["lr"] for group in scheduler.optimizer.param_groups)


def pretrain():
    """10 updates of 2 micro-batches, over 2 epochs."""
    rng = generator("pretrain")
    weights = random_weights(mae_shapes(), generator("mae"))        # those of mae.npz
    settings = dict(lr=2e-3, min_lr=1e-4, warmup_epochs=0.4, epochs=2, weight_decay=0.05, accum_iter=2)
    images = random_images(rng, 8)
    order = np.concatenate([rng.permutation(8) for _ in range(10)]).reshape(20, 4)
    noise = rng.random([20, 4, 36], dtype=np.float32)
    model = huggingface_mae(weights, norm_pix_loss=True)
    # Like timm 0.3.2's: the class and mask tokens decay.
    optimizer = torch.optim.AdamW(param_groups_weight_decay(model, settings["weight_decay"]),
                                  lr=settings["lr"], betas=(0.9, 0.95))
    scheduler = cosine(optimizer, 10, **{key: settings[key] for key in ("warmup_epochs", "epochs", "min_lr")})
    losses, lrs = [], []
    for step in range(20):
        if step % 2 == 0:
            lr = step_lr(scheduler, step)
        loss = model(torch.from_numpy(images[order[step]]).double(), noise=torch.from_numpy(noise[step])).loss
        (loss / 2).backward()
        losses.append(loss.item())
        lrs.append(lr)
        if step % 2 == 1:
            optimizer.step()
            optimizer.zero_grad()
    trained = [name for name in weights if not name.endswith("pos_embed")]
    final = huggingface_values(model, trained, lambda p: p)
    # Adam's steps do not change with the size of the gradient; its memory tells that the loss was divided.
    moments = huggingface_values(model, ["cls_token", "mask_token", "decoder_pred.weight"],
                                 lambda p: optimizer.state[p]["exp_avg"])
    write("pretrain", {"images": images, "order": order, "noise": noise, "losses": losses, "lrs": lrs,
                       **{f"final/{name}": value for name, value in final.items()},
                       **{f"moment/{name}": value for name, value in moments.items()}}, **settings)


def finetune(weights):
    """5 updates with smoothed labels, then 5 with Mixup and CutMix and a clipped gradient."""
    rng = generator("finetune")
    settings = dict(lr=2e-3, min_lr=1e-4, warmup_epochs=0.4, epochs=2, weight_decay=0.05, layer_decay=0.65,
                    smoothing=0.1, clip_grad=0.5)
    images, labels = random_images(rng, 8), rng.integers(0, 10, 8)
    order = np.concatenate([rng.permutation(8) for _ in range(5)]).reshape(10, 4)
    model = timm_vit(weights, global_pool=True)
    # timm now counts `norm` to the last block, the official code to the head. With mean pooling there is only fc_norm,
    # which both count to the head.
    groups = param_groups_layer_decay(model, settings["weight_decay"], no_weight_decay_list=model.no_weight_decay(),
                                      layer_decay=settings["layer_decay"])
    optimizer = torch.optim.AdamW(groups, lr=settings["lr"])
    scheduler = cosine(optimizer, 5, **{key: settings[key] for key in ("warmup_epochs", "epochs", "min_lr")})
    mixup = timm.data.mixup.Mixup(0.8, 1.0, label_smoothing=settings["smoothing"], num_classes=10)
    losses, lrs, shares, boxes, norms = [], [], [], [], []
    np.random.seed(SEED % 2 ** 32)
    for step in range(10):
        lrs.append(step_lr(scheduler, step))
        pixels, targets = torch.from_numpy(images[order[step]]).double(), torch.from_numpy(labels[order[step]])
        criterion = LabelSmoothingCrossEntropy(settings["smoothing"])
        if step >= 5:
            with recorded_mixup(mixup) as record:
                pixels, targets = mixup(pixels, targets)
            criterion = SoftTargetCrossEntropy()
            shares.append(record["shares"])
            boxes.append(record["boxes"])
        loss = criterion(model(pixels), targets)
        loss.backward()
        losses.append(loss.item())
        if step >= 5:
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), settings["clip_grad"]).item())
        optimizer.step()
        optimizer.zero_grad()
    cut = np.ptp(np.concatenate(boxes), axis=1) > 0
    assert cut.any() and not cut.all() and min(norms) > settings["clip_grad"], (cut, norms)
    write("finetune", {"images": images, "labels": labels, "order": order, "shares": shares, "boxes": boxes,
                       "losses": losses, "lrs": lrs,
                       **{f"final/{name}": value for name, value in timm_values(model).items()}}, **settings)


class OfficialLARS(torch.optim.Optimizer):
    """The linear probe's optimizer, written out: timm's puts the weight decay beside the gradient's length."""

    def __init__(self, params, lr, weight_decay):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                update = p.grad
                if p.ndim > 1:
                    update = update + group["weight_decay"] * p
                    update = update * (0.001 * p.norm() / update.norm())
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.mul_(0.9).add_(update)
                p.sub_(group["lr"] * momentum)


def timm_lars(params, lr):
    """timm's LARS without weight decay, which then is the official one: biases not rescaled."""
    params = list(params)
    groups = [{"params": [p for p in params if p.ndim > 1], "always_adapt": True},
              {"params": [p for p in params if p.ndim <= 1], "always_adapt": False}]
    return Lars(groups, lr=lr, momentum=0.9, eps=0)


def linprobe(weights):
    """10 updates of 2 micro-batches of the head behind BatchNorm, without weight decay and with it."""
    rng = generator("linprobe")
    settings = dict(lr=4.0, min_lr=0.0, warmup_epochs=0.5, epochs=2, accum_iter=2)
    images, labels = random_images(rng, 8), rng.integers(0, 10, 8)
    order = np.concatenate([rng.permutation(8) for _ in range(10)]).reshape(20, 4)
    arrays = {"images": images, "labels": labels, "order": order}
    for weight_decay in (0.0, 0.5):
        model = timm_vit(weights, global_pool=False)
        model.requires_grad_(False)
        model.head.requires_grad_(True)
        model.head = nn.Sequential(nn.BatchNorm1d(VIT["embed_dim"], affine=False, eps=1e-6).double(), model.head)
        optimizer = (OfficialLARS(model.head.parameters(), settings["lr"], weight_decay) if weight_decay
                     else timm_lars(model.head.parameters(), settings["lr"]))
        scheduler = cosine(optimizer, 10, **{key: settings[key] for key in ("warmup_epochs", "epochs", "min_lr")})
        losses, lrs = [], []
        for step in range(20):
            if step % 2 == 0:
                lr = step_lr(scheduler, step)
            pixels, targets = torch.from_numpy(images[order[step]]).double(), torch.from_numpy(labels[order[step]])
            loss = F.cross_entropy(model(pixels), targets)
            (loss / 2).backward()
            losses.append(loss.item())
            lrs.append(lr)
            if step % 2 == 1:
                optimizer.step()
                optimizer.zero_grad()
        norm, linear = model.head
        arrays.update({f"decay-{weight_decay}/{name}": value for name, value in
                       dict(losses=losses, lrs=lrs, weight=float32(linear.weight), bias=float32(linear.bias),
                            running_mean=float32(norm.running_mean), running_var=float32(norm.running_var)).items()})
    write("linprobe", arrays, **settings)


# ---- data

def picture(height, width, phase=0):
    """uint8 [height, width, 3]: waves of several lengths, a hard edge and a little noise."""
    y, x = np.mgrid[:height, :width].astype(float)
    waves = [110 + 60 * np.sin(x / (5 + c) + y / 17 + phase) + 50 * np.cos(y / (4 + c) - x / 23 + c) for c in range(3)]
    pixels = np.stack(waves, axis=-1)
    pixels[height // 3: height // 2, width // 4: width // 2] = [250, 20, 60]
    pixels += 12 * np.random.default_rng([height, width]).standard_normal(pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


class Draws:
    """What the random functions gave, in the order of the calls: one list a kind. Ranges are [low, high)."""

    def __init__(self):
        self.random, self.uniform, self.integers, self.normal, self.pixels, self.operations = [], [], [], [], [], []

    def arrays(self, prefix):
        kinds = {"random": self.random, "uniform": self.uniform, "integers": self.integers, "normal": self.normal,
                 "pixels": np.concatenate([p.reshape(-1) for p in self.pixels]) if self.pixels else [],
                 "operations": self.operations}
        return {f"{prefix}/draws/{kind}": np.array(values) for kind, values in kinds.items() if len(values)}


@contextmanager
def recorded():
    """Give a Draws that notes what timm and torchvision draw inside the block."""
    draws = Draws()
    real = {"random": random.random, "uniform": random.uniform, "randint": random.randint, "gauss": random.gauss,
            "rand": torch.rand, "torch_randint": torch.randint, "torch_uniform": torch.Tensor.uniform_,
            "torch_normal": torch.Tensor.normal_, "choice": np.random.choice}

    def note(values, entry, value):
        values.append(entry)
        return value

    def uniform(low, high):
        value = real["uniform"](low, high)
        return note(draws.uniform, (low, high, value), value)

    def randint(low, high):
        value = real["randint"](low, high)
        return note(draws.integers, (low, high + 1, value), value)

    def gauss(mean, std):
        value = real["gauss"](mean, std)
        return note(draws.normal, (mean, std, value), value)

    def plain():
        value = real["random"]()
        return note(draws.random, value, value)

    def negate(value):
        # timm negates above a half; here a number below a half stands for a minus sign.
        negative = real["random"]() > 0.5
        return note(draws.random, 0.25 if negative else 0.75, -value if negative else value)

    def choice(operations, count, replace, p):
        chosen = real["choice"](operations, count, replace=replace, p=p)
        draws.operations += [our_name(operation.name) for operation in chosen]
        return chosen

    def rand(*size):
        value = real["rand"](*size)
        return note(draws.random, value.item(), value)

    def torch_randint(low, high, size):
        value = real["torch_randint"](low, high, size)
        return note(draws.integers, (low, high, value.item()), value)

    def torch_uniform(tensor, low, high):
        value = real["torch_uniform"](tensor, low, high)
        return note(draws.uniform, (low, high, value.item()), value)

    def torch_normal(tensor):
        value = real["torch_normal"](tensor)
        return note(draws.pixels, value.numpy().copy(), value)

    with mock.patch.multiple(random, random=plain, uniform=uniform, randint=randint, gauss=gauss), \
            mock.patch.multiple(torch, rand=rand, randint=torch_randint), \
            mock.patch.multiple(torch.Tensor, uniform_=torch_uniform, normal_=torch_normal), \
            mock.patch.object(np.random, "choice", choice), \
            mock.patch.object(timm.data.auto_augment, "_randomly_negate", negate):
        yield draws


def our_name(operation):
    """timm's name of a RandAugment operation without the suffix of its variant."""
    return operation.removesuffix("Increasing").removesuffix("Rel")


def seed_all(number):
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def transforms():
    """Crop boxes, crops, whole training transforms and evaluation crops."""
    arrays = {}
    seed_all(SEED)
    shapes = [(61, 47), (40, 90), (33, 33), (8, 120), (100, 8), (3, 2)]     # the narrow ones end with the central crop
    libraries = {"torchvision": partial(T.RandomResizedCrop.get_params, scale=[0.2, 1.0], ratio=[3 / 4, 4 / 3]),
                 "timm": partial(RandomResizedCropAndInterpolation.get_params, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))}
    for library, get_params in libraries.items():
        for index in range(36):
            height, width = shapes[index % len(shapes)]
            with recorded() as draws:
                top, left, box_height, box_width = get_params(Image.new("L", (width, height)))
            name = f"boxes/{library}/{index}"
            arrays.update({**draws.arrays(name), f"{name}/size": [width, height],
                           f"{name}/box": [left, top, left + box_width, top + box_height]})

    source = picture(61, 47)
    arrays["crops/source"] = source
    # Nothing here is reduced much more in height than in width: Pillow 13 then begins with the height, before it with
    # the width, and what is rounded in between differs. So that the files hold for both, outputs are high.
    for index, (box, size) in enumerate([((3, 5, 40, 50), (24, 24)), ((0, 0, 47, 61), (32, 16)),
                                         ((10, 30, 17, 36), (24, 24)), ((2, 2, 26, 26), (24, 24)),
                                         ((0, 20, 47, 21), (12, 12))]):
        left, top, right, bottom = box
        cropped = T.functional.resized_crop(Image.fromarray(source), top, left, bottom - top, right - left, size,
                                            T.InterpolationMode.BICUBIC)
        arrays.update({f"crops/{index}/box": box, f"crops/{index}/pixels": np.asarray(cropped)})

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pretraining = T.Compose([T.RandomResizedCrop((32, 24), scale=(0.2, 1.0),
                                                 interpolation=T.InterpolationMode.BICUBIC),
                             T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(mean, std)])
    # As main_finetune of the official code asks timm for it.
    finetuning = create_transform((3, 32, 24), is_training=True, color_jitter=None, auto_augment="rand-m9-mstd0.5-inc1",
                                  interpolation="bicubic", re_prob=0.5, re_mode="pixel", re_count=1, mean=mean, std=std)
    for name, transform, count in [("pretrain", pretraining, 4), ("finetune", finetuning, 12)]:
        for index in range(count):
            seed_all(SEED + index)
            with recorded() as draws:
                values = transform(Image.fromarray(source))
            arrays.update({**draws.arrays(f"{name}/{index}"), f"{name}/{index}/values": values.numpy()})
    write("transforms", arrays, mean=mean, std=std, scale={"torchvision": [0.2, 1.0], "timm": [0.08, 1.0]}, reprob=0.5)

    arrays = {}
    for name, pixels in {"wide": picture(150, 227), "high": picture(131, 90, 1), "tiny": picture(17, 20, 2),
                         "grey": picture(133, 126, 3)[..., 0]}.items():
        arrays[f"{name}/source"] = pixels
        for size in (32, 96, 224, 448):
            # Up to 224 the official share of the resized image is 224 / 256, above it 1.
            transform = create_transform(size, is_training=False, interpolation="bicubic", mean=(0.0,), std=(1.0,),
                                         crop_pct=224 / 256 if size <= 224 else 1.0)
            result = np.rint(transform(Image.fromarray(pixels)).numpy() * 255).astype(np.uint8)
            # Small enough to commit: every pixel is in the hash, some are here to tell how far a wrong one is off.
            arrays[f"{name}/{size}/sha256"] = np.array(hashlib.sha256(result.tobytes()).hexdigest())
            arrays[f"{name}/{size}/pixels"] = result[:, ::max(1, size // 48), ::max(1, size // 48)]
    write("evaluation", arrays)


def randaug():
    """Every operation at several levels, on colour and on grey."""
    colour = picture(22, 28)
    arrays = {"colour/source": colour, "grey/source": colour[..., 1]}
    for mode, levels, fill in [("colour", (0, 1, 4.5, 9, 10), (124, 116, 104)), ("grey", (9,), (117,))]:
        for timm_name in timm.data.auto_augment._RAND_INCREASING_TRANSFORMS:
            for level in levels:
                for negative in (False, True):
                    used = []
                    operation = timm.data.auto_augment.AugmentOp(timm_name, prob=1.0, magnitude=level, hparams={
                        "img_mean": fill, "interpolation": Image.Resampling.BICUBIC})
                    signed = mock.patch.object(timm.data.auto_augment, "_randomly_negate",
                                               lambda value: used.append(1) or (-value if negative else value))
                    if timm_name == "PosterizeIncreasing" and level == 10:
                        result = np.zeros_like(colour)      # no bits are kept, which Pillow 13 refuses
                    else:
                        with signed:
                            result = np.asarray(operation(Image.fromarray(arrays[f"{mode}/source"])))
                    if used or not negative:
                        arrays[f"{mode}/{our_name(timm_name)}/{-level if negative else level}"] = result
    write("randaug", arrays, fill={"colour": [124, 116, 104], "grey": [117]})


def erasing():
    """Random erasing in its three modes, with one and with up to three boxes."""
    # Low, so that boxes as high as the image are drawn, which count as not fitting.
    image = generator("erasing").standard_normal([3, 7, 45]).astype(np.float32)
    arrays, cases = {"image": image}, []
    for mode in ("const", "rand", "pixel"):
        for count in (1, 3):
            transform = RandomErasing(0.7, mode=mode, max_count=count, device="cpu")
            for index in range(3):
                seed_all(SEED + len(cases))
                with recorded() as draws:
                    result = transform(torch.from_numpy(image.copy())).numpy()
                arrays.update({**draws.arrays(f"{len(cases)}"), f"{len(cases)}/result": result})
                cases.append([mode, count])
    write("erasing", arrays, prob=0.7, cases=cases)


def official_box(shape, lam, margin=0.0, count=None):
    """A CutMix box with timm 0.3.2's rounding; timm now gives an odd side's last pixel to the lower or right half."""
    height, width = shape[-2:]
    half_height, half_width = int(height * math.sqrt(1 - lam)) // 2, int(width * math.sqrt(1 - lam)) // 2
    y, x = np.random.randint(0, height), np.random.randint(0, width)
    return (max(y - half_height, 0), min(y + half_height, height), max(x - half_width, 0), min(x + half_width, width))


def official_box_minmax(shape, minmax, count=None):
    """A box of drawn sides with timm 0.3.2's range: it never touches the lower and the right border, now it may."""
    sides = [np.random.randint(int(size * minmax[0]), int(size * minmax[1])) for size in shape[-2:]]
    top, left = (np.random.randint(0, size - side) for size, side in zip(shape[-2:], sides))
    return top, top + sides[0], left, left + sides[1]


@contextmanager
def recorded_mixup(mixup):
    """Give a dict that then holds shares [K], boxes [K, 4] as (top, left, bottom, right) and what was drawn for them.

    K draws a batch: 1, or one a pair or an image. The draws are ordered as one array a kind, which is what a
    vectorised implementation asks for; a number that timm did not need is filled in.
    """
    calls, found, record = [], [], {}
    both = mixup.mixup_alpha > 0 and mixup.cutmix_alpha > 0
    real = {name: getattr(np.random, name) for name in ("rand", "beta", "randint")}
    real_box = timm.data.mixup.cutmix_bbox_and_lam

    def noted(name):
        def call(*args, **kwargs):
            value = real[name](*args, **kwargs)
            calls.append((name, args, np.atleast_1d(value)))
            return value
        return call

    def box_and_share(*args, **kwargs):
        (top, bottom, left, right), share = real_box(*args, **kwargs)
        found.append(([top, left, bottom, right], share))
        return (top, bottom, left, right), share

    with mock.patch.multiple(np.random, **{name: noted(name) for name in real}), \
            mock.patch.multiple(timm.data.mixup, rand_bbox=official_box, rand_bbox_minmax=official_box_minmax,
                                cutmix_bbox_and_lam=box_and_share):
        yield record

    uniforms = [value for name, _, value in calls if name == "rand"]
    betas = [(args[0], value) for name, args, value in calls if name == "beta"]
    whole = [int(value[0]) for name, _, value in calls if name == "randint"]
    if mixup.mode == "batch":
        mixed = uniforms[0] < mixup.mix_prob
        switch = (uniforms[1] if mixed[0] else np.array([0.5])) if both else None
        cut = switch < mixup.switch_prob if both else np.array([mixup.cutmix_alpha > 0])
        beta = betas[0][1] if mixed[0] else np.array([0.5])
        probabilities = uniforms[0]
    else:
        switch = uniforms[0] if both else None
        probabilities = uniforms[-1]
        mixed = probabilities < mixup.mix_prob
        cut = switch < mixup.switch_prob if both else np.full(len(mixed), mixup.cutmix_alpha > 0)
        beta = np.where(cut, betas[0][1], betas[-1][1])
    count = len(mixed)
    shares, boxes = np.where(mixed, beta, 1.0), np.zeros([count, 4], dtype=np.int64)
    per_box = len(whole) // max(1, len(found))
    integers = np.zeros([per_box, count], dtype=np.int64)
    for place, index in enumerate(np.flatnonzero(mixed & cut)):
        boxes[index], shares[index] = found[place]
        integers[:, index] = whole[place * per_box: (place + 1) * per_box]
    record.update(shares=shares, boxes=boxes, betas=beta, alphas=np.where(cut, mixup.cutmix_alpha, mixup.mixup_alpha),
                  uniforms=np.array([switch, probabilities] if both else [probabilities]), integers=integers)


def mixup():
    """Boxes, shares, images and targets of whole batches."""
    rng = generator("mixup")
    images, labels = rng.standard_normal([6, 1, 15, 10]).astype(np.float32), rng.integers(0, 5, 6)
    arrays, cases = {"images": images, "labels": labels}, []
    for mode in ("batch", "pair", "elem"):
        for mixup_alpha, cutmix_alpha, minmax, prob, repeats in [
                (0.8, 0.0, None, 1.0, 1), (0.0, 1.0, None, 1.0, 2), (0.8, 1.0, None, 0.7, 3),
                (0.0, 0.0, (0.2, 0.7), 0.8, 2)]:
            settings = dict(mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, cutmix_minmax=minmax, prob=prob,
                            mode=mode)
            reference = timm.data.mixup.Mixup(**settings, num_classes=5)
            for _ in range(repeats if mode != "batch" else 2 * repeats):
                np.random.seed((SEED + len(cases)) % 2 ** 32)
                with recorded_mixup(reference) as record:
                    mixed, targets = reference(torch.from_numpy(images.copy()), torch.from_numpy(labels))
                name = str(len(cases))
                arrays.update({f"{name}/{key}": value for key, value in record.items()})
                arrays.update({f"{name}/images": mixed.numpy(), f"{name}/targets": targets.numpy()})
                cases.append(settings)
    write("mixup", arrays, cases=cases, label_smoothing=0.1, num_classes=5)


def main():
    FOLDER.mkdir(exist_ok=True)
    positions()
    mae()
    weights = vit()
    pretrain()
    finetune(weights)
    linprobe(weights)
    transforms()
    randaug()
    erasing()
    mixup()
    total = sum(path.stat().st_size for path in FOLDER.glob("*.npz"))
    print("\n".join(f"{path.name:18} {path.stat().st_size / 1024:7.1f} kB" for path in sorted(FOLDER.glob("*.npz"))))
    print(f"{'together':18} {total / 1024:7.1f} kB")
    if total > 2e6:
        raise SystemExit("more than the 2 MB that the repository is to carry")


if __name__ == "__main__":
    main()
