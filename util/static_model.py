"""A classifier as a static Paddle program, kept beside its checkpoint, and the Paddle Inference predictor that runs it.

The program is the model's own forward pass in float32, for any number of images, with one change of form: query, key and
value are three products instead of one, which lets oneDNN read each of them where it lies. On an AMD EPYC that takes
a tenth off a batch of 16, and it keeps bfloat16 from going back to float32 between the products.
"""
import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import inference, nn

from util import cpu_runtime

VERSION = 1         # of what `_export` writes
TOLERANCE = 1e-4    # of a logit, or of the largest if that is above 1, against the model that was exported
ABANDONED = 3600    # seconds after which an unfinished export is taken for that of a process that was killed
CHECKED_IMAGES = 2

# Those with a bfloat16 kernel that Paddle 2.6 finishes a program with: its concat fails. Paddle 3 chooses by itself.
BFLOAT16_OPERATIONS = {"fc", "matmul_v2", "fused_matmul", "softmax", "layer_norm", "elementwise_add",
                       "fused_elementwise_add", "gelu", "reshape2", "transpose2", "fused_transpose"}


class Predictor:
    """float32 images [N, C, height, width] -> float32 logits [N, classes], numpy arrays both. One thread at a time."""

    def __init__(self, config):
        with _silence():
            self._predictor = inference.create_predictor(config)
        self._images = self._predictor.get_input_handle(self._predictor.get_input_names()[0])
        self._logits = self._predictor.get_output_handle(self._predictor.get_output_names()[0])
        self._has_run = False

    def __call__(self, images):
        self._images.copy_from_cpu(np.ascontiguousarray(images, "float32"))
        with contextlib.nullcontext() if self._has_run else _silence():  # its kernels print at their first run
            self._predictor.run()
        self._has_run = True
        return self._logits.copy_to_cpu()


def open_predictor(checkpoint, architecture, make_model, *, image_shape, device, dtype=None, tensorrt_batch=0,
                   status=None):
    """The Predictor of a classifier; the first call for a checkpoint exports its program, which takes seconds.

    The program lies in a folder beside the checkpoint, <its name>.paddle-<version>-<hash>, and is made again for another
    state of the file, another Paddle or another architecture; where that place cannot be written it lives in a temporary
    folder until it is loaded. Those of earlier states of the file are removed.

    Args:
        checkpoint: path of the file that the weights are from.
        architecture: plain values that say, with the weights, what the model is.
        make_model: called without arguments if an export is needed; the model in eval mode, with its weights. It is
            not usable afterwards.
        image_shape: [C, height, width].
        device: "cpu" (with oneDNN) or "gpu".
        dtype: None for float32, "bfloat16" or "float16" (a GPU only) for products in it.
        status: os.stat of the checkpoint from before it was read: another file may stand in its place since.
        tensorrt_batch: on a GPU, the largest batch, and TensorRT runs the program; 0 for Paddle's own kernels.

    Raises ValueError for what this device cannot do, and for a program that does not compute what the model does.
    """
    _check(device, dtype, tensorrt_batch)
    checkpoint = Path(checkpoint).resolve()
    stamp, about = _digest(_state(status or checkpoint.stat())), _digest([VERSION, architecture])
    family = f"{checkpoint.name}.paddle-{paddle.__version__}-"
    folder = checkpoint.with_name(f"{family}{stamp}{about}")

    def load(folder, dtype=dtype, tensorrt_batch=tensorrt_batch):
        return Predictor(_config(folder, image_shape, device, dtype, tensorrt_batch))

    if all(file.is_file() for file in _files(folder)):  # it got its name once it was whole
        try:
            return load(folder)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{folder}: this exported program cannot be loaded ({str(error).strip().splitlines()[-1]}); "
                             "remove the folder, and it is made again") from error
    with tempfile.TemporaryDirectory() as temporary:
        try:
            part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=checkpoint.parent))
            part.chmod(0o755)
        except OSError:  # a place that cannot be written
            part = Path(temporary)
        try:
            _export(make_model(), image_shape, part, load)
            if part != Path(temporary):
                part = _publish(part, folder, family, stamp)
            return load(part)
        finally:
            if part != folder:
                shutil.rmtree(part, ignore_errors=True)


def _check(device, dtype, tensorrt_batch):
    if device == "cpu" and tensorrt_batch:
        raise ValueError("--trt: TensorRT runs on a GPU only; leave it out")
    assert not (device == "cpu" and dtype == "float16")
    if device == "cpu" and dtype == "bfloat16" and not cpu_runtime.features() & {"avx512_bf16", "amx_bf16"}:
        raise ValueError("--amp bf16: this CPU has neither avx512_bf16 nor amx_bf16; pass --amp off")


def _state(status):
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _digest(values):
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _files(folder):
    """Program and weights of an export; Paddle 3 writes model.json, Paddle 2 model.pdmodel."""
    program = folder / "model.json"
    return program if program.is_file() else folder / "model.pdmodel", folder / "model.pdiparams"


def _publish(part, folder, family, stamp):
    """Give the export in `part` its name, and remove those of earlier states of its checkpoint; where it is then."""
    for file in part.iterdir():  # the name must not reach the disk before what it stands for
        with open(file, "rb") as f:
            os.fsync(f.fileno())
    try:
        part.rename(folder)
    except OSError:  # another process was first
        return part
    with os.scandir(folder.parent) as entries:
        stale = [entry.path for entry in entries
                 if (entry.name.startswith(family) and not entry.name.startswith(family + stamp))
                 or (entry.name.startswith(f".{family}") and time.time() - entry.stat().st_mtime > ABANDONED)]
    for path in stale:
        shutil.rmtree(path, ignore_errors=True)
    return folder


def _export(model, image_shape, folder, load):
    """Write the program of `model` into `folder`; ValueError unless it computes the same in float32, as `load` runs it."""
    images = np.random.default_rng(0).standard_normal([CHECKED_IMAGES, *image_shape]).astype("float32")
    with paddle.no_grad():
        expected = model(paddle.to_tensor(images)).numpy()
    for block in model.blocks:
        block.attn = SeparateAttention(block.attn)
    if isinstance(model.head, nn.Sequential):  # of a linear probe
        model.head = _without_norm(*model.head)
    with _silence():
        program = paddle.jit.to_static(model, full_graph=True, input_spec=[
            paddle.static.InputSpec([None, *image_shape], "float32", name="images")])
        paddle.jit.save(program, str(folder / "model"))
    found = load(folder, dtype=None, tensorrt_batch=0)(images)
    difference = float(np.abs(found - expected).max()) / max(1.0, float(np.abs(expected).max()))
    if not difference <= TOLERANCE:
        raise ValueError(f"--engine inference: the exported program differs from the model by {difference:.1e} in a "
                         f"logit, more than {TOLERANCE:.0e}; use --engine paddle")


def _without_norm(norm, linear):
    """One linear map that does what BatchNorm1D and the linear map behind it do: Paddle Inference crashes on the first."""
    mean, variance, weight, bias = (value.numpy().astype("float64") for value in
                                    (norm._mean, norm._variance, linear.weight, linear.bias))
    weight = weight / np.sqrt(variance + norm._epsilon)[:, None]
    with paddle.LazyGuard():
        merged = nn.Linear(*weight.shape)
    merged.weight.set_value(weight.astype("float32"))
    merged.bias.set_value((bias - mean @ weight).astype("float32"))
    return merged


class SeparateAttention(nn.Layer):
    """The layer.Attention given, with products of their own for query, key and value, and the scale in the query's."""

    sdpa = False  # Paddle Inference fuses the written-out form

    def __init__(self, attention):
        super().__init__()
        self.num_heads, self.proj = attention.num_heads, attention.proj
        weight, bias = attention.qkv.weight.numpy(), attention.qkv.bias.numpy()
        self.dim = len(weight)
        with paddle.LazyGuard():  # no initial values, which take a third of a second in ViT-B
            self.query, self.key, self.value = (nn.Linear(self.dim, self.dim) for _ in range(3))
        scale = np.float32((self.dim // self.num_heads) ** -0.5)
        for place, (linear, factor) in enumerate(((self.query, scale), (self.key, 1), (self.value, 1))):
            third = slice(place * self.dim, (place + 1) * self.dim)
            linear.weight.set_value(np.ascontiguousarray(weight[:, third] * factor))
            linear.bias.set_value(bias[third] * factor)

    def forward(self, x):
        weights = F.softmax(paddle.matmul(self._heads(self.query(x)), self._heads(self.key(x)), transpose_y=True))
        mixed = paddle.matmul(weights, self._heads(self.value(x)))  # [N, H, L, C]
        return self.proj(mixed.transpose([0, 2, 1, 3]).reshape([0, 0, self.dim]))

    def _heads(self, x):
        return x.reshape([0, 0, self.num_heads, self.dim // self.num_heads]).transpose([0, 2, 1, 3])  # [N, H, L, C]


def _config(folder, image_shape, device, dtype, tensorrt_batch):
    program, weights = _files(folder)
    config = inference.Config(str(program), str(weights))
    config.disable_glog_info()
    if device == "gpu":
        precision = {None: inference.PrecisionType.Float32, "float16": inference.PrecisionType.Half,
                     "bfloat16": inference.PrecisionType.Bfloat16}[dtype]
        config.enable_use_gpu(256, 0, precision)  # MB at the start; it grows
        if tensorrt_batch:
            config.enable_tensorrt_engine(workspace_size=1 << 30, max_batch_size=tensorrt_batch, min_subgraph_size=3,
                                          precision_mode=precision, use_static=False, use_calib_mode=False)
            least, most = {"images": [1, *image_shape]}, {"images": [tensorrt_batch, *image_shape]}
            config.set_trt_dynamic_shape_info(least, most, most)
        return config
    config.disable_gpu()
    config.enable_mkldnn()
    # The number that Paddle itself computes with: util.cpu_runtime has set it.
    config.set_cpu_math_library_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]))
    if dtype == "bfloat16":
        with _silence():
            config.enable_mkldnn_bfloat16()
        if paddle.__version__.startswith("2."):
            config.set_bfloat16_op(BFLOAT16_OPERATIONS)
    return config


@contextlib.contextmanager
def _silence():
    """Keep what Paddle's C++ prints on both streams away from the answers; shown after all if the body raises."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
        try:
            yield
        except BaseException:
            os.lseek(printed.fileno(), 0, os.SEEK_SET)
            os.write(kept[1], printed.read())
            raise
        finally:
            for number, stream in enumerate(kept, start=1):
                os.dup2(stream, number)
                os.close(stream)
