"""What computes a model's answers: Paddle, Paddle Inference or ONNX Runtime, behind one call.

A predictor is a function from normalised float32 images [N, C, height, width] to {name of output: float32 array, the
first axis N}, numpy arrays all. Several threads may call it at once; it computes for one after the other. Its
`precision` is the type in which it computes products.

Paddle is imported by those who need it: ONNX Runtime answers where there is none.
"""
from pathlib import Path

import numpy as np

ENGINES = ("paddle", "inference", "onnxruntime")
PROGRAMS = (".json", ".pdmodel")  # of Paddle 3 and of Paddle 2
EXPORTED = ("model.json", "model.pdmodel", "model.pdiparams", "model_info.json")  # what is in an exported folder
FLAGS = {"name": "model", "img_size": "input_size", "num_classes": "nb_classes"}  # where they have other names


def engine_of(path, engine=None):
    """Which of ENGINES runs what is at `path`: `engine`, or else the one that fits it; ValueError for others."""
    if _is_onnx(path):
        what, fitting = "an ONNX file", ("onnxruntime",)
    elif is_exported(path):
        what, fitting = "an exported Paddle program", ("inference",)
    else:
        what, fitting = "a checkpoint", ("paddle", "inference")
    if engine in (None, *fitting):
        return engine or fitting[0]
    how = "leave --engine out"
    if engine == "onnxruntime" and what == "a checkpoint":
        how = f"export it first: python tools/export.py --resume {path} --output {Path(path).with_suffix('.onnx').name}"
    raise ValueError(f"--engine {engine}: {path} is {what}, for {' or '.join(fitting)}; {how}")


def is_exported(path):
    """Whether a path is that of an ONNX file, of a folder of tools/export.py, or of the program in one."""
    path = Path(path)
    return (_is_onnx(path) or path.suffix.lower() in PROGRAMS
            or (path.is_dir() and any((path / name).exists() for name in EXPORTED)))


def _is_onnx(path):
    return Path(path).suffix.lower() == ".onnx"


def open_model(path, models, *, engine=None, device="auto", amp="auto", batch_size=8, many=True, tensorrt=False,
               features=(), trusted=False, file=None, mean=None, std=None, **sizes):
    """(predictor, util.infer.model_info of what it runs) for a checkpoint, an exported Paddle program or an ONNX file.

    Args:
        models: of models_vit; None will do for an ONNX file.
        engine: of ENGINES; None for the one that fits the file.
        device, amp: as the flags.
        batch_size: the largest that TensorRT shall take.
        many: it will be called many times, which pays for the preparation of the weights.
        tensorrt: on a GPU, engine "inference" lets TensorRT compute.
        features: instead of logits these outputs, of util.look.feature_file.KINDS, of a checkpoint of any kind.
        trusted: see util.weights.checkpoint.read_checkpoint.
        file: the util.infer.paddle_engine.Checkpoint at `path`, if it was read already.
        mean, std: of the images, one number a channel, where they are not to be the checkpoint's.
        sizes: name, img_size, patch_size, in_chans, num_classes and global_pool where they are not to be the
            checkpoint's.
    """
    engine = engine_of(path, engine)
    if tensorrt and engine != "inference":
        raise ValueError("--trt is for --engine inference; add that or leave --trt out")
    tensorrt_batch = batch_size if tensorrt else 0
    if not is_exported(path):
        from util.infer import paddle_engine
        return paddle_engine.open_model(
            file or paddle_engine.Checkpoint.read(path, trusted=trusted), models, engine=engine, device=device,
            amp=amp, tensorrt_batch=tensorrt_batch, many=many, features=features, mean=mean, std=std,
            **sizes)
    return _open_exported(path, engine, device, amp, tensorrt_batch, features, sizes)


def _open_exported(path, engine, device, amp, tensorrt_batch, features, sizes):
    for name, value in sizes.items():
        if value is not None:
            raise ValueError(f"--{FLAGS.get(name, name)}: an exported model is what it is; leave the flag out, or "
                             "export the checkpoint again with it")
    if engine == "onnxruntime":
        from util.infer import onnx_engine
        if amp not in ("auto", "off"):
            raise ValueError(f"--amp {amp}: an ONNX file computes in float32; leave the flag out")
        predictor, info = onnx_engine.open_exported(path, device)
    else:
        from util.infer import paddle_engine, static_engine
        device, dtype = paddle_engine.inference_on(device, amp)
        predictor, info = static_engine.open_exported(path, device=device, dtype=dtype, tensorrt_batch=tensorrt_batch)
    if missing := [kind for kind in features if kind not in info["outputs"]]:
        raise ValueError(f"--features {' '.join(missing)}: {path} gives {', '.join(info['outputs'])}; export its "
                         "checkpoint with tools/export.py --encoder")
    batch = info["input"]["shape"][0]
    return predictor if batch is None else FixedBatch(predictor, batch), info


class FixedBatch:
    """A predictor for any number of images, by one that takes just `batch` of them."""

    def __init__(self, predictor, batch):
        self.predictor, self.batch, self.precision = predictor, batch, predictor.precision

    def __call__(self, images):
        parts = [self._padded(images[start:start + self.batch]) for start in range(0, len(images), self.batch)]
        return {name: np.concatenate([part[name] for part in parts])[:len(images)] for name in parts[0]}

    def _padded(self, images):
        missing = self.batch - len(images)
        return self.predictor(np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else images)
