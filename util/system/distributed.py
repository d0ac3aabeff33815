"""Who this process is among the others. Everything works unchanged with one process.

Paddle is imported where it is needed: what answers by ONNX Runtime comes here too, and runs without it.
"""
from contextlib import nullcontext

import numpy as np


def init(device):
    """Choose the device and join the processes that `python -m paddle.distributed.launch` started.

    Args:
        device: "auto" (a GPU if this Paddle has one), "gpu", "cpu", or the official "cuda".
    Returns: "gpu" or "cpu".
    """
    import paddle
    import paddle.distributed as dist
    if device not in ("auto", "gpu", "cpu", "cuda"):
        raise ValueError(f"--device {device}: expected auto, gpu, cpu or cuda")
    has_gpu = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    device = {"auto": "gpu" if has_gpu else "cpu", "cuda": "gpu"}.get(device, device)
    if device == "gpu" and not has_gpu:
        raise ValueError("--device gpu: this Paddle sees no GPU (paddlepaddle-gpu and a driver are needed); "
                         "pass --device auto or cpu")
    paddle.set_device(f"gpu:{dist.ParallelEnv().device_id}" if device == "gpu" else "cpu")
    if world_size() > 1:
        dist.init_parallel_env()
    return device


def rank():
    import paddle.distributed as dist
    return dist.get_rank()


def world_size():
    import paddle.distributed as dist
    return dist.get_world_size()


def is_main():
    return rank() == 0


def barrier():
    """Wait until every process is here."""
    if world_size() > 1:
        import paddle.distributed as dist
        dist.barrier()


def all_sum(values):
    """[float, ...] -> their sums over all processes, as floats. Blocks until every process has called it."""
    if world_size() == 1:
        return list(values)
    import paddle
    import paddle.distributed as dist
    total = paddle.to_tensor(list(values), dtype="float64")
    dist.all_reduce(total)
    return total.tolist()


def all_bytes(data):
    """bytes -> [those of process 0, those of process 1, ...]. Blocks until every process has called it."""
    if world_size() == 1:
        return [data]
    lengths = all_sum([len(data) if process == rank() else 0 for process in range(world_size())])
    ends = np.cumsum(lengths).astype(int)
    joined = np.zeros(ends[-1])  # eight bytes a byte: for messages, not for arrays
    joined[ends[rank()] - len(data):ends[rank()]] = np.frombuffer(data, np.uint8)
    return [part.tobytes() for part in np.split(np.array(all_sum(joined), np.uint8), ends[:-1])]


def data_parallel(model):
    """The model whose backward averages the gradients over the processes."""
    import paddle
    return paddle.DataParallel(model) if world_size() > 1 else model


def without_parallel(model):
    """The model inside `data_parallel`."""
    import paddle
    return model._layers if isinstance(model, paddle.DataParallel) else model


def share_statistics(model):
    """Give every process the first one's running statistics of BatchNorm layers: those are what a checkpoint holds."""
    if world_size() > 1:
        import paddle.distributed as dist
        for name, value in model.state_dict().items():
            if name.endswith(("._mean", "._variance")):
                dist.broadcast(value, src=0)


def gradient_sync(model, last):
    """Context of one micro-batch: only the `last` of a window pays for the exchange of gradients."""
    import paddle
    return model.no_sync() if isinstance(model, paddle.DataParallel) and not last else nullcontext()
