"""Static Paddle programs, run by Paddle Inference: exported ones, and a classifier's kept beside its checkpoint.

util.program_export says what is in a program.
"""
import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import paddle
from paddle import inference

from util import model_info, onednn, program_export
from util.silence import silence

VERSION = 1         # of what `program_export.export` writes
TOLERANCE = 1e-4    # of a logit, or of the largest if that is above 1, against the model that was exported
ABANDONED = 3600    # seconds after which an unfinished export is taken for that of a process that was killed
CHECKED_IMAGES = 2
INFO = "model_info.json"  # beside an exported program

# Those with a bfloat16 kernel that a program of Paddle 2 can be computed with; those of Paddle 3 choose by themselves.
BFLOAT16_OPERATIONS = {"fc", "matmul_v2", "fused_matmul", "softmax", "layer_norm", "elementwise_add",
                       "fused_elementwise_add", "gelu", "reshape2", "transpose2", "fused_transpose"}


class Predictor:
    """float32 images [N, C, height, width] -> {name: float32 array, first axis N}, numpy arrays all.

    Several threads may call it; it computes for one after the other. A program for a fixed batch takes no other N.

    Args:
        outputs: their names, in the order in which the program has them.
        dtype: of the products, which `config` asks for; None for float32.
    """

    def __init__(self, config, outputs, dtype=None):
        self.precision = dtype or "float32"
        with silence():
            self._predictor = inference.create_predictor(config)
        self._images = self._predictor.get_input_handle(self._predictor.get_input_names()[0])
        self._outputs = {name: self._predictor.get_output_handle(handle) for name, handle in
                         zip(outputs, self._predictor.get_output_names(), strict=True)}
        self._has_run, self._lock = False, threading.Lock()

    def __call__(self, images):
        images = np.ascontiguousarray(images, "float32")
        with self._lock:
            self._images.copy_from_cpu(images)
            with contextlib.nullcontext() if self._has_run else silence():  # its kernels print at their first run
                self._predictor.run()
            self._has_run = True
            return {name: output.copy_to_cpu() for name, output in self._outputs.items()}


def open_exported(path, *, device, dtype=None, tensorrt_batch=0):
    """(Predictor, info) of what tools/export.py wrote; see util.model_info.

    Args:
        path: the folder, or the program in it.
        device, dtype, tensorrt_batch: as for `open_predictor`.

    Raises ValueError for what this device cannot do, for a program of a newer Paddle, and for files that are not as they
    were written.
    """
    _check(device, dtype, tensorrt_batch)
    folder = Path(path)
    if not folder.exists():
        raise ValueError(f"{path}: there is no such file or folder")
    if folder.is_file():
        folder = folder.parent
    program, weights = program_export.files(folder)
    if not program.is_file():
        raise ValueError(f"{folder}: this folder has no program, neither model.json nor model.pdmodel; name a folder that "
                         "tools/export.py wrote")
    if not (folder / INFO).is_file():
        raise ValueError(f"{folder}: {INFO} is missing, which says what the program takes and gives; name a folder that "
                         "tools/export.py wrote")
    info = model_info.parse((folder / INFO).read_bytes(), folder / INFO)
    if program.suffix == ".json" and program_export.own_format() == "paddle2":  # it would crash the process
        raise ValueError(f"{folder}: a program of Paddle 3, which Paddle {paddle.__version__} cannot read; export the "
                         "checkpoint with --format paddle2, or use Paddle 3")
    written = info.get("files")
    for file in (program, weights):  # a damaged program can crash the process, too
        if not file.is_file():
            raise ValueError(f"{file}: this file is missing; copy or export the folder again")
        if not isinstance(written, dict) or written.get(file.name) != checksum(file):
            raise ValueError(f"{file}: it is not as it was written; copy or export the folder again")
    config = _config(program, weights, info["input"]["shape"], device, dtype, tensorrt_batch)
    try:
        return Predictor(config, info["outputs"], dtype), info
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{folder}: this program cannot be loaded by Paddle {paddle.__version__} "
                         f"({_last_line(error)})") from error


def checksum(path):
    """SHA256 of a file, in hexadecimal; a fifth of a second for the weights of a ViT-B."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
        return Predictor(_config(*program_export.files(folder), [None, *image_shape], device, dtype, tensorrt_batch),
                         ["logits"], dtype)

    if all(file.is_file() for file in program_export.files(folder)):  # it got its name once it was whole
        try:
            return load(folder)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{folder}: this exported program cannot be loaded ({_last_line(error)}); "
                             "remove the folder, and it is made again") from error
    with tempfile.TemporaryDirectory() as temporary:
        try:
            part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=checkpoint.parent))
            part.chmod(0o755)
        except OSError:  # a place that cannot be written
            part = Path(temporary)
        try:
            _export(make_model(), part, load)
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
    if device == "cpu" and dtype == "bfloat16" and (reason := onednn.bfloat16_missing()):
        raise ValueError(f"--amp bf16: {reason}; pass --amp off")


def _state(status):
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _digest(values):
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _last_line(error):
    return str(error).strip().splitlines()[-1]


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


def _export(model, folder, load):
    """Write the program of `model` into `folder`; ValueError unless it computes the same in float32, as `load` runs it."""
    shape = [CHECKED_IMAGES, model.patch_embed.in_chans, *model.patch_embed.img_size]
    images = np.random.default_rng(0).standard_normal(shape).astype("float32")
    with paddle.no_grad():
        expected = model(paddle.to_tensor(images)).numpy()
    program_export.export(model, folder)
    found = load(folder, dtype=None, tensorrt_batch=0)(images)["logits"]
    difference = float(np.abs(found - expected).max()) / max(1.0, float(np.abs(expected).max()))
    if not difference <= TOLERANCE:
        raise ValueError(f"--engine inference: the exported program differs from the model by {difference:.1e} in a "
                         f"logit, more than {TOLERANCE:.0e}; use --engine paddle")


def _config(program, weights, shape, device, dtype, tensorrt_batch):
    """
    Args:
        shape: of its input, [images, C, height, width]; images None for any number.
    """
    config = inference.Config(str(program), str(weights))
    config.disable_glog_info()
    if device == "gpu":
        precision = {None: inference.PrecisionType.Float32, "float16": inference.PrecisionType.Half,
                     "bfloat16": inference.PrecisionType.Bfloat16}[dtype]
        config.enable_use_gpu(256, 0, precision)  # MB at the start; it grows
        if tensorrt_batch:
            config.enable_tensorrt_engine(workspace_size=1 << 30, max_batch_size=tensorrt_batch, min_subgraph_size=3,
                                          precision_mode=precision, use_static=False, use_calib_mode=False)
            batch, *image_shape = shape
            least, most = ({"images": [count, *image_shape]} for count in (batch or 1, batch or tensorrt_batch))
            config.set_trt_dynamic_shape_info(least, most, most)
        return config
    config.disable_gpu()
    config.enable_mkldnn()
    # The number that Paddle itself computes with: util.cpu_runtime has set it.
    config.set_cpu_math_library_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]))
    if dtype == "bfloat16":
        with silence():
            config.enable_mkldnn_bfloat16()
        if program.suffix == ".pdmodel":
            config.set_bfloat16_op(BFLOAT16_OPERATIONS)
    return config
