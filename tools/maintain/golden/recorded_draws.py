"""Recorders of the random numbers that timm and torchvision draw."""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import timm.data.auto_augment
import timm.data.mixup
import torch


@dataclass
class Draws:
    """Random numbers in the order of the calls, one list for each kind. Ranges are [low, high)."""

    random: list[float] = field(default_factory=list)
    uniform: list[tuple[float, float, float]] = field(default_factory=list)  # low, high, value
    integers: list[tuple[int, int, int]] = field(default_factory=list)  # low, high, value
    normal: list[tuple[float, float, float]] = field(default_factory=list)  # mean, std, value
    pixels: list[np.ndarray] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        kinds: dict[str, Any] = {
            "random": self.random,
            "uniform": self.uniform,
            "integers": self.integers,
            "normal": self.normal,
            "pixels": np.concatenate([p.reshape(-1) for p in self.pixels]) if self.pixels else [],
            "operations": self.operations,
        }
        return {f"{prefix}/draws/{kind}": np.array(values) for kind, values in kinds.items() if len(values)}


@contextmanager
def recorded() -> Iterator[Draws]:
    """Give a Draws that records the random numbers of timm and torchvision inside the block."""
    draws = Draws()
    real = {
        "random": random.random,
        "uniform": random.uniform,
        "randint": random.randint,
        "gauss": random.gauss,
        "rand": torch.rand,
        "torch_randint": torch.randint,
        "torch_uniform": torch.Tensor.uniform_,
        "torch_normal": torch.Tensor.normal_,
        "choice": np.random.choice,
    }

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
        # timm negates above 0.5; our code reads a number below 0.5 as a minus sign.
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

    with (
        mock.patch.multiple(random, random=plain, uniform=uniform, randint=randint, gauss=gauss),
        mock.patch.multiple(torch, rand=rand, randint=torch_randint),
        mock.patch.multiple(torch.Tensor, uniform_=torch_uniform, normal_=torch_normal),
        mock.patch.object(np.random, "choice", choice),
        mock.patch.object(timm.data.auto_augment, "_randomly_negate", negate),
    ):
        yield draws


def our_name(operation: str) -> str:
    """Remove the suffix of a variant from timm's name of a RandAugment operation."""
    return operation.removesuffix("Increasing").removesuffix("Rel")


def seed_all(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def official_box(
    shape: Sequence[int], lam: float, margin: float = 0.0, count: int | None = None
) -> tuple[int, int, int, int]:
    """Draw a CutMix box as timm 0.3.2 does: (top, bottom, left, right).

    Newer versions round odd sides differently.
    """
    height, width = shape[-2:]
    half_height, half_width = int(height * math.sqrt(1 - lam)) // 2, int(width * math.sqrt(1 - lam)) // 2
    y, x = np.random.randint(0, height), np.random.randint(0, width)
    return (
        max(y - half_height, 0),
        min(y + half_height, height),
        max(x - half_width, 0),
        min(x + half_width, width),
    )


def official_box_minmax(
    shape: Sequence[int], minmax: Sequence[float], count: int | None = None
) -> tuple[int, int, int, int]:
    """Draw a box of drawn sides as timm 0.3.2 does: (top, bottom, left, right).

    It never touches the lower and the right border; in newer versions it may.
    """
    sides = [np.random.randint(int(size * minmax[0]), int(size * minmax[1])) for size in shape[-2:]]
    top, left = (np.random.randint(0, size - side) for size, side in zip(shape[-2:], sides, strict=True))
    return top, top + sides[0], left, left + sides[1]


@contextmanager
def recorded_mixup(mixup: timm.data.mixup.Mixup) -> Iterator[dict[str, Any]]:
    """Give a dict that, after the block, holds shares [K], boxes [K, 4] and their draws.

    A box is (top, left, bottom, right). K is the number of draws for a batch: 1, or one for each pair or
    image. The draws are one array for each kind, as a vectorized implementation needs them. Numbers that timm
    did not draw are filled in.
    """
    calls: list[tuple[str, tuple, np.ndarray]] = []
    found: list[tuple[list[int], float]] = []
    record: dict[str, Any] = {}
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

    with (
        mock.patch.multiple(np.random, **{name: noted(name) for name in real}),
        mock.patch.multiple(
            timm.data.mixup,
            rand_bbox=official_box,
            rand_bbox_minmax=official_box_minmax,
            cutmix_bbox_and_lam=box_and_share,
        ),
    ):
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
        integers[:, index] = whole[place * per_box : (place + 1) * per_box]
    record.update(
        shares=shares,
        boxes=boxes,
        betas=beta,
        alphas=np.where(cut, mixup.cutmix_alpha, mixup.mixup_alpha),
        uniforms=np.array([switch, probabilities] if both else [probabilities]),
        integers=integers,
    )
