"""Predictors (see util.infer.predictors) of a checkpoint: its model as it was trained, or a program kept beside the file."""
import os
import threading
from typing import NamedTuple

import paddle

from util.compute import amp as precision
from util.compute import operations
from util.infer import class_names, model_info, trained_model
from util.look import encoder_features
from util.system import distributed
from util.weights import checkpoint, formats


class Checkpoint(NamedTuple):
    """A checkpoint that was read: its path, its content, and what the file was before it was read."""

    path: str
    state: dict
    status: os.stat_result

    @classmethod
    def read(cls, path, *, trusted=False):
        status = os.stat(path) if os.path.exists(path) else None
        return cls(path, checkpoint.read(path, trusted=trusted), status)


class Dynamic:
    """The predictor of a models_vit.VisionTransformer in eval mode.

    Args:
        kinds: () for its logits, or features of util.look.feature_file.KINDS.
        many: prepare the weights for many calls (on a CPU).
    """

    def __init__(self, model, *, device, dtype=None, kinds=(), many=True):
        self.model, self.kinds, self.precision = model, kinds, dtype or "float32"
        self.context = (operations.packed(model, dtype or "float32") if device == "cpu" and many
                        else precision.autocast(dtype))
        self.lock = threading.Lock()

    @paddle.no_grad()
    def __call__(self, images):
        with self.lock, self.context():
            images = paddle.to_tensor(images)
            found = encoder_features.extract_features(self.model, images, self.kinds) if self.kinds else {"logits": self.model(images)}
            return {name: value.astype("float32").numpy() for name, value in found.items()}


def open_model(file, models, *, engine, device, amp, tensorrt_batch=0, many=True, features=(), mean=None,
               std=None, **sizes):
    """(predictor, info) of a Checkpoint; see util.infer.predictors.open_model."""
    if not features:
        return _open_classifier(file, models, engine, device, amp, tensorrt_batch, many, sizes, (mean, std))
    if engine == "inference":
        raise ValueError("--features: by itself --engine inference makes programs of classifiers only; use --engine "
                         "paddle, or export the encoder: tools/export.py --encoder")
    return _open_encoder(file, models, device, amp, many, features, sizes, (mean, std))


def _open_classifier(file, models, engine, device, amp, tensorrt_batch, many, sizes, normalization):
    path, state, status = file
    name, described = trained_model.describe(path, state, models, **sizes)
    model = trained_model.build(name, described, state, models)
    info = model_info.of_model(model, name=name, task="classification", outputs={"logits": (model.num_classes,)},
                               normalization=_normalization(state, model, normalization),
                               classes=class_names.of_checkpoint(state, model.num_classes))
    if engine == "inference":
        from util.infer import static_engine  # loads what a dynamic graph does not need
        device, dtype = inference_on(device, amp)
        return static_engine.open_predictor(
            path, {"name": name, **described}, lambda: trained_model.load(path, state, model),
            image_shape=info["input"]["shape"][1:], device=device, dtype=dtype, tensorrt_batch=tensorrt_batch,
            status=status), info
    device = distributed.init(device)
    dtype = precision.resolve(amp, device)
    return Dynamic(trained_model.load(path, state, model), device=device, dtype=dtype, many=many), info


def _open_encoder(file, models, device, amp, many, kinds, sizes, normalization):
    device = distributed.init(device)
    dtype = precision.resolve(amp, device)
    model = trained_model.encoder(file.path, file.state, models, **sizes)
    info = model_info.of_model(model, name=trained_model.name_of(model, models), task="features",
                               outputs=encoder_features.shapes(model, kinds),
                               normalization=_normalization(file.state, model, normalization),
                               norm=encoder_features.norm_of(model))
    info["source"] = {"file": os.path.basename(file.path), "weights_sha256": formats.checksum(file.state["model"])}
    return Dynamic(model, device=device, dtype=dtype, kinds=tuple(kinds), many=many), info


def _normalization(state, model, given):
    mean, std = given
    return trained_model.normalization(state, model.patch_embed.in_chans, mean=mean, std=std)


def inference_on(device, amp):
    """(device, dtype) for util.infer.static_engine, of the flags --device and --amp."""
    device = distributed.init(device)
    # Its bfloat16 needs no more than the processor; util.infer.static_engine looks at that.
    return device, "bfloat16" if device == "cpu" and amp == "bf16" else precision.resolve(amp, device)
