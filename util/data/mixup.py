"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of a batch.

Both are those of the official fine-tuning (timm 0.3.2). The partner of image i of N is image N - 1 - i.
Shape letters: N images, C classes, K draws (1 for the batch, or N).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle

MODES = ("batch", "pair", "elem")


class Mixup:
    """Mix each image with its partner, and their smoothed labels by the same shares.

    Args:
        mixup_alpha: the weight of an image is drawn from Beta(alpha, alpha); 0 switches mixup off (--mixup).
        cutmix_alpha: the same for the share that CutMix leaves outside its box (--cutmix).
        cutmix_minmax: (min, max) side of the box relative to the image, drawn uniformly; switches CutMix on
            (--cutmix_minmax). None: the box follows from the share.
        prob: probability of mixing at all (--mixup_prob).
        switch_prob: probability of CutMix if both are on (--mixup_switch_prob).
        mode: one draw for the "batch", for each "pair" of partners, or for each image, "elem" (--mixup_mode).
        label_smoothing: share of the target that goes to all classes evenly (--smoothing).
        num_classes: C.

    Raises ValueError for a wrong value.
    """

    def __init__(
        self,
        mixup_alpha: float,
        cutmix_alpha: float,
        cutmix_minmax: tuple[float, float] | None = None,
        *,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        label_smoothing: float = 0.1,
        num_classes: int,
    ) -> None:
        for flag, value in (("--mixup", mixup_alpha), ("--cutmix", cutmix_alpha)):
            if value < 0:
                raise ValueError(f"{flag} {value}: must not be negative")
        if cutmix_minmax is not None:
            if len(cutmix_minmax) != 2 or not 0 <= cutmix_minmax[0] < cutmix_minmax[1] <= 1:
                raise ValueError(
                    f"--cutmix_minmax {' '.join(map(str, cutmix_minmax))}: expected two "
                    "numbers, 0 <= min < max <= 1"
                )
            cutmix_alpha = 1.0
        if mixup_alpha == 0 and cutmix_alpha == 0:
            raise ValueError("Mixup needs --mixup or --cutmix above 0, or --cutmix_minmax.")
        for flag, value in (
            ("--mixup_prob", prob),
            ("--mixup_switch_prob", switch_prob),
            ("--smoothing", label_smoothing),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"{flag} {value}: expected a number from 0 to 1")
        if mode not in MODES:
            raise ValueError(f"--mixup_mode {mode}: unknown; choose from {', '.join(MODES)}")
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha
        self.cutmix_minmax = cutmix_minmax
        self.prob = prob
        self.switch_prob = switch_prob
        self.mode = mode
        self.label_smoothing = label_smoothing
        self.num_classes = num_classes

    def draw(
        self, num_images: int, height: int, width: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw shares float64 [K] and boxes int64 [K, 4] as (top, left, bottom, right).

        A share is the weight of an image's own label; with CutMix, the share of pixels outside its box.
        Without CutMix the box is empty.
        """
        count = {"batch": 1, "pair": num_images // 2, "elem": num_images}[self.mode]
        if self.mixup_alpha > 0 and self.cutmix_alpha > 0:
            cut = rng.random(count) < self.switch_prob
        else:
            cut = np.full(count, self.cutmix_alpha > 0)
        alpha = np.where(cut, self.cutmix_alpha, self.mixup_alpha)
        shares = rng.beta(alpha, alpha)
        mixed = rng.random(count) < self.prob
        if self.cutmix_minmax is None:
            boxes = draw_boxes(height, width, shares, rng)
        else:
            boxes = draw_boxes_minmax(height, width, self.cutmix_minmax, count, rng)
        boxes[~(cut & mixed)] = 0
        covered = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (height * width)
        shares = np.where(mixed, np.where(cut, 1 - covered, shares), 1.0)
        if self.mode == "pair":
            shares, boxes = np.concatenate([shares, shares[::-1]]), np.concatenate([boxes, boxes[::-1]])
        return shares, boxes

    def __call__(
        self, images: paddle.Tensor, labels: paddle.Tensor, rng: np.random.Generator
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Mix images float32 [N, 3, H, W] and labels int64 [N] -> images, soft targets float32 [N, C].

        Raises ValueError if N is odd.
        """
        num_images, _, height, width = images.shape
        if num_images % 2:
            raise ValueError(
                "--batch_size: --mixup and --cutmix mix pairs of images, and a batch has "
                f"{num_images}; choose an even --batch_size"
            )
        shares, boxes = self.draw(num_images, height, width, rng)
        targets = mix_targets(labels, shares, self.num_classes, self.label_smoothing)
        return mix_images(images, shares, boxes), targets


def mixing(
    mixup_alpha: float, cutmix_alpha: float, cutmix_minmax: tuple[float, float] | None = None, **more: Any
) -> Mixup | None:
    """Return Mixup with these arguments, or None if all three are off."""
    if mixup_alpha == 0 and cutmix_alpha == 0 and cutmix_minmax is None:
        return None
    return Mixup(mixup_alpha, cutmix_alpha, cutmix_minmax, **more)


def draw_boxes(height: int, width: int, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw CutMix's boxes [K, 4]: the image's aspect ratio, 1 - share of its area, clipped at the borders."""
    side = np.sqrt(1 - shares)
    # timm 0.3.2 uses floor(side / 2) on both sides of the centre; later versions allow odd sides.
    half_height = (height * side).astype(np.int64) // 2
    half_width = (width * side).astype(np.int64) // 2
    y = rng.integers(0, height, size=len(shares))
    x = rng.integers(0, width, size=len(shares))
    return np.stack(
        [
            np.clip(y - half_height, 0, height),
            np.clip(x - half_width, 0, width),
            np.clip(y + half_height, 0, height),
            np.clip(x + half_width, 0, width),
        ],
        axis=1,
    )


def draw_boxes_minmax(
    height: int, width: int, minmax: tuple[float, float], count: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw boxes [count, 4] inside the image; sides lie between min and max times the image's (`minmax`)."""
    sides = []
    for size in (height, width):
        low, high = (int(size * part) for part in minmax)
        if low == high:
            raise ValueError(
                f"--cutmix_minmax {minmax[0]} {minmax[1]}: leaves no whole number of pixels to "
                f"choose from for a side of {size}; widen it"
            )
        sides.append(rng.integers(low, high, size=count))
    box_height, box_width = sides
    # In timm 0.3.2 a box never touches the lower or right border; later versions allow it.
    top = rng.integers(0, height - box_height)
    left = rng.integers(0, width - box_width)
    return np.stack([top, left, top + box_height, left + box_width], axis=1)


def mix_images(images: paddle.Tensor, shares: np.ndarray, boxes: np.ndarray) -> paddle.Tensor:
    """Replace the pixels of images [N, C, H, W] in `boxes` [K, 4] by the partner's.

    Images with an empty box are blended with the partner by `shares` [K].
    """
    height, width = images.shape[2:]
    top, left, bottom, right = (boxes[:, i, None] for i in range(4))
    rows = (top <= np.arange(height)) & (np.arange(height) < bottom)  # [K, H]
    columns = (left <= np.arange(width)) & (np.arange(width) < right)  # [K, W]
    cut = rows.any(axis=1) & columns.any(axis=1)

    def on_device(array):
        return paddle.to_tensor(array.astype(np.float32), place=images.place)

    # The pixel masks are built on the device from rows and columns: N * (H + W) numbers are copied, not N * H
    # * W.
    inside = on_device(rows)[:, None, :, None] * on_device(columns)[:, None, None, :]
    weight = on_device(np.where(cut, 1.0, shares))[:, None, None, None] - inside
    return images * weight + paddle.flip(images, axis=[0]) * (1 - weight)


def mix_targets(
    labels: paddle.Tensor, shares: np.ndarray, num_classes: int, label_smoothing: float
) -> paddle.Tensor:
    """Return smoothed one-hot targets float32 [N, C], blended with the partner's by `shares` [K]."""
    one_hot = paddle.nn.functional.one_hot(labels, num_classes)
    smooth = one_hot * (1 - label_smoothing) + label_smoothing / num_classes
    weight = paddle.to_tensor(shares.astype(np.float32), place=labels.place)[:, None]
    return smooth * weight + paddle.flip(smooth, axis=[0]) * (1 - weight)
