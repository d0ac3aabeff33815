"""Communication between training processes. With one process every function returns at once.

Paddle is imported inside the functions, because inference with ONNX Runtime uses this module without Paddle.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import paddle


def init(device: str) -> str:
    """Choose the device, and connect the processes that `python -m paddle.distributed.launch` started.

    Args:
        device: "auto" (a GPU if Paddle sees one), "gpu", "cpu", or "cuda" as in the official code.

    Returns "gpu" or "cpu". Raises ValueError if there is no such device.
    """
    import paddle
    import paddle.distributed as dist

    if device not in ("auto", "gpu", "cpu", "cuda"):
        raise ValueError(f"--device {device}: expected auto, gpu, cpu or cuda")
    has_gpu = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    device = {"auto": "gpu" if has_gpu else "cpu", "cuda": "gpu"}.get(device, device)
    if device == "gpu" and not has_gpu:
        raise ValueError(
            "--device gpu: Paddle sees no GPU; install paddlepaddle-gpu and a driver, or pass --device cpu"
        )
    paddle.set_device(f"gpu:{dist.ParallelEnv().device_id}" if device == "gpu" else "cpu")
    if world_size() > 1:
        dist.init_parallel_env()
    return device


def rank() -> int:
    """Return the rank of this process, from 0."""
    import paddle.distributed as dist

    return dist.get_rank()


def world_size() -> int:
    """Return the number of processes."""
    import paddle.distributed as dist

    return dist.get_world_size()


def is_main() -> bool:
    """Return True in the first process."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process has called it."""
    if world_size() > 1:
        import paddle.distributed as dist

        dist.barrier()


def all_sum(values: Iterable[float]) -> list[float]:
    """Return the sum of each value over all processes. Blocks until every process has called it."""
    if world_size() == 1:
        return list(values)
    import paddle
    import paddle.distributed as dist

    total = paddle.to_tensor(list(values), dtype="float64")
    dist.all_reduce(total)
    return [float(value) for value in total.numpy()]


def all_bytes(data: bytes) -> list[bytes]:
    """Return the `data` of every process, by rank. Blocks until every process has called it."""
    if world_size() == 1:
        return [data]
    lengths = all_sum([len(data) if process == rank() else 0 for process in range(world_size())])
    ends = np.cumsum(lengths).astype(int)
    joined = np.zeros(ends[-1])  # eight bytes for each byte, so only for short messages
    joined[ends[rank()] - len(data) : ends[rank()]] = np.frombuffer(data, np.uint8)
    return [part.tobytes() for part in np.split(np.array(all_sum(joined), np.uint8), ends[:-1])]


def data_parallel(model: paddle.nn.Layer) -> paddle.nn.Layer:
    """Return a model whose backward pass averages the gradients over the processes."""
    import paddle

    return paddle.DataParallel(model) if world_size() > 1 else model


def without_parallel(model: paddle.nn.Layer) -> paddle.nn.Layer:
    """Return the model inside a `data_parallel` wrapper, or the model itself."""
    import paddle

    return model._layers if isinstance(model, paddle.DataParallel) else model


def share_statistics(model: paddle.nn.Layer) -> None:
    """Broadcast the running statistics of BatchNorm from the first process, which writes checkpoints."""
    if world_size() > 1:
        import paddle.distributed as dist

        for name, value in model.state_dict().items():
            if name.endswith(("._mean", "._variance")):
                dist.broadcast(value, src=0)


def gradient_sync(model: paddle.nn.Layer, last: bool) -> contextlib.AbstractContextManager:
    """Return the context for a micro-batch. Only the `last` one before an update synchronises gradients."""
    import paddle

    if isinstance(model, paddle.DataParallel) and not last:
        return model.no_sync()
    return contextlib.nullcontext()
