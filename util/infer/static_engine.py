"""Static Paddle programs, run by Paddle Inference: exported ones, and those kept beside a checkpoint.

See util.infer.program_export for the content of a program.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import inference, nn

from util.compute import onednn
from util.infer import model_info, program_export
from util.system.console import silence

VERSION = 1  # version of the programs that `program_export.export` writes
# Largest allowed difference of a logit from the original model; relative to the largest logit if that
# exceeds 1.
TOLERANCE = 1e-4
ABANDONED = 3600  # age in seconds after which an unfinished export is deleted
CHECKED_IMAGES = 2
INFO = "model_info.json"  # beside an exported program

# Operations that a program of Paddle 2 computes in bfloat16. Programs of Paddle 3 choose by themselves.
BFLOAT16_OPERATIONS = {
    "fc",
    "matmul_v2",
    "fused_matmul",
    "softmax",
    "layer_norm",
    "elementwise_add",
    "fused_elementwise_add",
    "gelu",
    "reshape2",
    "transpose2",
    "fused_transpose",
}


@dataclass(frozen=True)
class Runtime:
    """Device and precision of Paddle Inference.

    Args:
        device: "cpu" (with oneDNN) or "gpu".
        dtype: of products; None for float32, "bfloat16", or on a GPU "float16".
        tensorrt_batch: largest batch for TensorRT, on a GPU; 0 for Paddle's own kernels.

    Raises ValueError for a combination that this machine does not support.
    """

    device: str
    dtype: str | None = None
    tensorrt_batch: int = 0

    def __post_init__(self) -> None:
        if self.device == "cpu" and self.tensorrt_batch:
            raise ValueError("--trt: TensorRT needs a GPU; remove --trt")
        assert not (self.device == "cpu" and self.dtype == "float16")
        if self.device == "cpu" and self.dtype == "bfloat16" and (reason := onednn.bfloat16_missing()):
            raise ValueError(f"--amp bf16: {reason}; pass --amp off")


@dataclass(frozen=True)
class ProgramKey:
    """Identity of the program that is kept for a checkpoint.

    Args:
        checkpoint: file of the weights.
        architecture: plain values that, with the weights, define the model.
        status: of the checkpoint before it was read, because it may have been replaced since; None: its
            present status.
    """

    checkpoint: Path | str
    architecture: Any
    status: os.stat_result | None = None


class ProgramPredictor:
    """Predictor (util.infer.engine) of a static program.

    A program exported for a fixed batch size accepts only that number of images.
    """

    def __init__(self, config: inference.Config, info: dict[str, Any], dtype: str | None = None) -> None:
        self.info, self.precision = info, dtype or "float32"
        with silence():
            self._predictor = inference.create_predictor(config)
        self._images = self._predictor.get_input_handle(self._predictor.get_input_names()[0])
        self._outputs = {
            name: self._predictor.get_output_handle(handle)
            for name, handle in zip(info["outputs"], self._predictor.get_output_names(), strict=True)
        }
        self._has_run, self._lock = False, threading.Lock()

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Compute all outputs."""
        images = np.ascontiguousarray(images, "float32")
        with self._lock:
            self._images.copy_from_cpu(images)
            with contextlib.nullcontext() if self._has_run else silence():  # kernels print at their first run
                self._predictor.run()
            self._has_run = True
            return {name: output.copy_to_cpu() for name, output in self._outputs.items()}


def open_exported(path: Path | str, runtime: Runtime) -> ProgramPredictor:
    """Open a Paddle program of tools/export.py.

    Args:
        path: the folder, or the program in it.

    Raises ValueError for a program of a newer Paddle, and for files that were changed or damaged.
    """
    folder = Path(path)
    if not folder.exists():
        raise ValueError(f"{path}: there is no such file or folder")
    if folder.is_file():
        folder = folder.parent
    program, weights = program_export.files(folder)
    for file in (program, folder / INFO):
        if not file.is_file():
            raise ValueError(f"{folder}: {file.name} is missing; pass a folder written by tools/export.py")
    info = model_info.parse_info((folder / INFO).read_bytes(), folder / INFO)
    _check_files(folder, program, weights, info)
    config = _config(program, weights, info["input"]["shape"], runtime)
    try:
        return ProgramPredictor(config, info, runtime.dtype)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{folder}: Paddle {paddle.__version__} cannot load this program ({_last_line(error)})"
        ) from error


def _check_files(folder, program, weights, info):
    """Raise ValueError for files that could crash the process: of another format, or damaged."""
    if program.suffix == ".json" and program_export.own_format() == "paddle2":
        raise ValueError(
            f"{folder}: Paddle {paddle.__version__} cannot read a program of Paddle 3; export "
            "the checkpoint with --format paddle2, or use Paddle 3"
        )
    written = info.get("files")
    for file in (program, weights):
        if not file.is_file():
            raise ValueError(f"{file}: this file is missing; copy or export the folder again")
        if not isinstance(written, dict) or written.get(file.name) != sha256_of(file):
            raise ValueError(
                f"{file}: checksum mismatch (file changed or damaged); copy or export the folder again"
            )


def sha256_of(path: Path) -> str:
    """Return the SHA256 of a file, in hexadecimal. It takes 0.2 s for the weights of a ViT-B."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def open_cached(
    key: ProgramKey, info: dict[str, Any], make_model: Callable[[], nn.Layer], runtime: Runtime
) -> ProgramPredictor:
    """Open the program kept for a classifier's checkpoint; the first call exports it, which takes seconds.

    The folder <checkpoint>.paddle-<version>-<hash> beside the checkpoint holds it. The hash covers the state
    of the file and the architecture; folders of earlier states are removed. If nothing can be written beside
    the checkpoint, a temporary folder holds the program until it is loaded.

    Args:
        info: of the model, see util.infer.model_info.
        make_model: returns the model in eval mode, with its weights, for the export. The export
            consumes the model; do not use it afterwards.

    Raises ValueError if the program does not compute the same as the model.
    """
    checkpoint = Path(key.checkpoint).resolve()
    stamp, about = _digest(_state(key.status or checkpoint.stat())), _digest([VERSION, key.architecture])
    family = f"{checkpoint.name}.paddle-{paddle.__version__}-"
    folder = checkpoint.with_name(f"{family}{stamp}{about}")

    def load(folder, runtime=runtime):
        return ProgramPredictor(
            _config(*program_export.files(folder), info["input"]["shape"], runtime), info, runtime.dtype
        )

    if all(file.is_file() for file in program_export.files(folder)):  # only complete exports have this name
        try:
            return load(folder)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{folder}: this exported program cannot be loaded ({_last_line(error)}); "
                "remove the folder to have it exported again"
            ) from error
    with tempfile.TemporaryDirectory() as temporary:
        try:
            part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=checkpoint.parent))
            part.chmod(0o755)
        except OSError:  # nothing can be written there
            part = Path(temporary)
        try:
            _export(make_model(), part, lambda folder: load(folder, Runtime(runtime.device)))
            if part != Path(temporary):
                part = _publish(part, folder, family, stamp)
            return load(part)
        finally:
            if part != folder:
                shutil.rmtree(part, ignore_errors=True)


def _state(status):
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _digest(values):
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _last_line(error):
    return str(error).strip().splitlines()[-1]


def _publish(part, folder, family, stamp):
    """Rename the export in `part` to `folder`, remove exports of earlier states; return where it is now."""
    for file in part.iterdir():  # the content must reach the disk before the name
        with open(file, "rb") as f:
            os.fsync(f.fileno())
    try:
        part.rename(folder)
    except OSError:  # another process was faster
        return part
    with os.scandir(folder.parent) as entries:
        stale = [
            entry.path
            for entry in entries
            if (entry.name.startswith(family) and not entry.name.startswith(family + stamp))
            or (entry.name.startswith(f".{family}") and time.time() - entry.stat().st_mtime > ABANDONED)
        ]
    for path in stale:
        shutil.rmtree(path, ignore_errors=True)
    return folder


def _export(model, folder, load):
    """Write the program of `model` into `folder`. Raises ValueError unless it computes the same."""
    shape = [CHECKED_IMAGES, model.patch_embed.in_chans, *model.patch_embed.img_size]
    images = np.random.default_rng(0).standard_normal(shape).astype("float32")
    with paddle.no_grad():
        expected = model(paddle.to_tensor(images)).numpy()
    program_export.export(model, folder)
    found = load(folder)(images)["logits"]
    difference = float(np.abs(found - expected).max()) / max(1.0, float(np.abs(expected).max()))
    if not difference <= TOLERANCE:
        raise ValueError(
            f"--engine inference: a logit of the exported program differs by {difference:.1e} "
            f"from the model's, more than {TOLERANCE:.0e}; use --engine paddle"
        )


def _config(program, weights, shape, runtime):
    """Configure Paddle Inference; `shape` of the input is [images, C, height, width].

    `images` is None for any number.
    """
    config = inference.Config(str(program), str(weights))
    config.disable_glog_info()
    if runtime.device == "gpu":
        _use_gpu(config, shape, runtime)
        return config
    config.disable_gpu()
    config.enable_mkldnn()
    # util.compute.cpu_runtime has set this number for Paddle itself.
    config.set_cpu_math_library_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]))
    if runtime.dtype == "bfloat16":
        with silence():
            config.enable_mkldnn_bfloat16()
        if program.suffix == ".pdmodel":
            config.set_bfloat16_op(BFLOAT16_OPERATIONS)
    return config


def _use_gpu(config, shape, runtime):
    precision = {
        None: inference.PrecisionType.Float32,
        "float16": inference.PrecisionType.Half,
        "bfloat16": inference.PrecisionType.Bfloat16,
    }[runtime.dtype]
    config.enable_use_gpu(256, 0, precision)  # MB at the start; it grows
    if not runtime.tensorrt_batch:
        return
    config.enable_tensorrt_engine(
        workspace_size=1 << 30,
        max_batch_size=runtime.tensorrt_batch,
        min_subgraph_size=3,
        precision_mode=precision,
        use_static=False,
        use_calib_mode=False,
    )
    batch, *image_shape = shape
    least, most = (
        {"images": [count, *image_shape]} for count in (batch or 1, batch or runtime.tensorrt_batch)
    )
    config.set_trt_dynamic_shape_info(least, most, most)
