"""Golden vectors of data: transforms.npz, evaluation.npz, randaug.npz, erasing.npz and mixup.npz."""

import hashlib
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import timm.data.auto_augment
import timm.data.mixup
import torch
import torchvision.transforms as T
from PIL import Image
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation

from tools.maintain.golden.common import SEED, generator, write
from tools.maintain.golden.recorded_draws import our_name, recorded, recorded_mixup, seed_all


def picture(height: int, width: int, phase: float = 0) -> np.ndarray:
    """Draw uint8 [height, width, 3]: waves of several lengths, a hard edge and a little noise."""
    y, x = np.mgrid[:height, :width].astype(float)
    waves = [
        110 + 60 * np.sin(x / (5 + c) + y / 17 + phase) + 50 * np.cos(y / (4 + c) - x / 23 + c)
        for c in range(3)
    ]
    pixels = np.stack(waves, axis=-1)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = [250, 20, 60]
    pixels += 12 * np.random.default_rng([height, width]).standard_normal(pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def transforms() -> None:
    """Write crop boxes, crops, whole training transforms and evaluation crops."""
    arrays: dict[str, Any] = {}
    seed_all(SEED)
    shapes = [
        (61, 47),
        (40, 90),
        (33, 33),
        (8, 120),
        (100, 8),
        (3, 2),
    ]  # the narrow ones end with the central crop
    libraries = {
        "torchvision": partial(T.RandomResizedCrop.get_params, scale=[0.2, 1.0], ratio=[3 / 4, 4 / 3]),
        "timm": partial(
            RandomResizedCropAndInterpolation.get_params, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)
        ),
    }
    for library, get_params in libraries.items():
        for index in range(36):
            height, width = shapes[index % len(shapes)]
            with recorded() as draws:
                top, left, box_height, box_width = get_params(Image.new("L", (width, height)))
            name = f"boxes/{library}/{index}"
            arrays.update(
                {
                    **draws.arrays(name),
                    f"{name}/size": [width, height],
                    f"{name}/box": [left, top, left + box_width, top + box_height],
                }
            )

    source = picture(61, 47)
    arrays["crops/source"] = source
    # No crop is reduced much more in height than in width: Pillow 13 then begins with the height, and earlier
    # versions with the width, which rounds differently. The files hold for both.
    for index, (box, size) in enumerate(
        [
            ((3, 5, 40, 50), (24, 24)),
            ((0, 0, 47, 61), (32, 16)),
            ((10, 30, 17, 36), (24, 24)),
            ((2, 2, 26, 26), (24, 24)),
            ((0, 20, 47, 21), (12, 12)),
        ]
    ):
        left, top, right, bottom = box
        cropped = T.functional.resized_crop(
            Image.fromarray(source), top, left, bottom - top, right - left, size, T.InterpolationMode.BICUBIC
        )
        arrays.update({f"crops/{index}/box": box, f"crops/{index}/pixels": np.asarray(cropped)})

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pretraining = T.Compose(
        [
            T.RandomResizedCrop((32, 24), scale=(0.2, 1.0), interpolation=T.InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(mean, std),
        ]
    )
    # As in main_finetune.py of the official code.
    finetuning = create_transform(
        (3, 32, 24),
        is_training=True,
        color_jitter=None,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.5,
        re_mode="pixel",
        re_count=1,
        mean=mean,
        std=std,
    )
    for name, transform, count in [("pretrain", pretraining, 4), ("finetune", finetuning, 12)]:
        for index in range(count):
            seed_all(SEED + index)
            with recorded() as draws:
                values = transform(Image.fromarray(source))
            arrays.update({**draws.arrays(f"{name}/{index}"), f"{name}/{index}/values": values.numpy()})
    write(
        "transforms",
        arrays,
        mean=mean,
        std=std,
        scale={"torchvision": [0.2, 1.0], "timm": [0.08, 1.0]},
        reprob=0.5,
    )

    arrays = {}
    for name, pixels in {
        "wide": picture(150, 227),
        "high": picture(131, 90, 1),
        "tiny": picture(17, 20, 2),
        "grey": picture(133, 126, 3)[..., 0],
    }.items():
        arrays[f"{name}/source"] = pixels
        for side in (32, 96, 224, 448):
            # Up to 224 the official share of the resized image is 224 / 256, above it 1.
            transform = create_transform(
                side,
                is_training=False,
                interpolation="bicubic",
                mean=(0.0,),
                std=(1.0,),
                crop_pct=224 / 256 if side <= 224 else 1.0,
            )
            result = np.rint(transform(Image.fromarray(pixels)).numpy() * 255).astype(np.uint8)
            # To keep the file small, every pixel is in the hash, and only some are stored.
            arrays[f"{name}/{side}/sha256"] = np.array(hashlib.sha256(result.tobytes()).hexdigest())
            arrays[f"{name}/{side}/pixels"] = result[:, :: max(1, side // 48), :: max(1, side // 48)]
    write("evaluation", arrays)


def randaug() -> None:
    """Write the results of every operation at several levels, in colour and in grey."""
    colour = picture(22, 28)
    arrays = {"colour/source": colour, "grey/source": colour[..., 1]}
    for mode, levels, fill in [("colour", (0, 1, 4.5, 9, 10), (124, 116, 104)), ("grey", (9,), (117,))]:
        for timm_name in timm.data.auto_augment._RAND_INCREASING_TRANSFORMS:
            for level in levels:
                for negative in (False, True):
                    used: list[int] = []
                    operation = timm.data.auto_augment.AugmentOp(
                        timm_name,
                        prob=1.0,
                        magnitude=level,
                        hparams={"img_mean": fill, "interpolation": Image.Resampling.BICUBIC},
                    )

                    def negate(value, used=used, negative=negative):
                        used.append(1)
                        return -value if negative else value

                    signed = mock.patch.object(timm.data.auto_augment, "_randomly_negate", negate)
                    if timm_name == "PosterizeIncreasing" and level == 10:
                        result = np.zeros_like(colour)  # no bits are kept, which Pillow 13 refuses
                    else:
                        with signed:
                            result = np.asarray(operation(Image.fromarray(arrays[f"{mode}/source"])))
                    if used or not negative:
                        arrays[f"{mode}/{our_name(timm_name)}/{-level if negative else level}"] = result
    write("randaug", arrays, fill={"colour": [124, 116, 104], "grey": [117]})


def erasing() -> None:
    """Write random erasing in its three modes, with one and with up to three boxes."""
    # Low, so that some boxes are as high as the image, which counts as not fitting.
    image = generator("erasing").standard_normal([3, 7, 45]).astype(np.float32)
    arrays: dict[str, Any] = {"image": image}
    cases: list[list] = []
    for mode in ("const", "rand", "pixel"):
        for count in (1, 3):
            transform = RandomErasing(0.7, mode=mode, max_count=count, device="cpu")
            for _ in range(3):
                seed_all(SEED + len(cases))
                with recorded() as draws:
                    result = transform(torch.from_numpy(image.copy())).numpy()
                arrays.update({**draws.arrays(f"{len(cases)}"), f"{len(cases)}/result": result})
                cases.append([mode, count])
    write("erasing", arrays, prob=0.7, cases=cases)


def mixup() -> None:
    """Write boxes, shares, images and targets of whole batches."""
    rng = generator("mixup")
    images, labels = rng.standard_normal([6, 1, 15, 10]).astype(np.float32), rng.integers(0, 5, 6)
    arrays: dict[str, Any] = {"images": images, "labels": labels}
    cases: list[dict[str, Any]] = []
    for mode in ("batch", "pair", "elem"):
        for mixup_alpha, cutmix_alpha, minmax, prob, repeats in [
            (0.8, 0.0, None, 1.0, 1),
            (0.0, 1.0, None, 1.0, 2),
            (0.8, 1.0, None, 0.7, 3),
            (0.0, 0.0, (0.2, 0.7), 0.8, 2),
        ]:
            settings = dict(
                mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, cutmix_minmax=minmax, prob=prob, mode=mode
            )
            reference = timm.data.mixup.Mixup(**settings, num_classes=5)
            for _ in range(repeats if mode != "batch" else 2 * repeats):
                np.random.seed((SEED + len(cases)) % 2**32)
                with recorded_mixup(reference) as record:
                    mixed, targets = reference(torch.from_numpy(images.copy()), torch.from_numpy(labels))
                name = str(len(cases))
                arrays.update({f"{name}/{key}": value for key, value in record.items()})
                arrays.update({f"{name}/images": mixed.numpy(), f"{name}/targets": targets.numpy()})
                cases.append(settings)
    write("mixup", arrays, cases=cases, label_smoothing=0.1, num_classes=5)
