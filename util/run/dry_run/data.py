"""Data of a dry run: counts of images and classes, and unreadable images among a sample."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from util.data.bad_images import MORE, BadImages
from util.data.loaders import Loader, Samples
from util.images.decode import UnreadableImage
from util.run.dry_run.memory import available_cores
from util.run.dry_run.verdict import Verdict
from util.system import distributed

READING_SECONDS = 15  # for loading images, training and val together
ALL_CLASSES = 20  # up to so many classes are listed one by one
SMALLEST = 3  # classes that are named otherwise
IMBALANCE = 10  # images of the largest class to those of the smallest, from which on there is a hint
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Checked:
    """Result of loading a sample of the images of a split, over all processes.

    Attributes:
        total: images of the split.
        tried: images that were loaded.
        bad: {name: reason} of unreadable images; more may be added later.
        seconds: duration, in each process.
        threads: loading threads of all processes.
        cpu: processor seconds of all processes.
    """

    total: int
    tried: int
    bad: dict[str, str]
    seconds: float
    threads: float
    cpu: float

    def loading_seconds(self, num_workers: int, cores: float) -> tuple[float, float]:
        """Estimate the seconds per image of a training process: with all its cores, and by its workers.

        Args:
            num_workers: workers of the process.
            cores: cores of the process; workers cannot use more at once.
        """
        cpu = self.cpu / self.tried
        if self.cpu >= 0.9 * self.seconds * distributed.world_size():
            # Bound by computing, where Python's threads interfere.
            return cpu / cores, cpu / min(num_workers, cores)
        return cpu / cores, self.seconds * self.threads / self.tried / num_workers  # bound by the drive

    def reason(self, action: str, split: str) -> str:
        """Return why --bad_images `action` would end the run, or ""."""
        expected = max(len(self.bad), round(len(self.bad) / self.tried * self.total))
        allowed = BadImages(action, split, self.total).allowed
        if not self.bad or expected <= allowed:
            return ""
        name, why = min(self.bad.items())
        if action == "error":
            more = f" (and {len(self.bad) - 1} more)" if len(self.bad) > 1 else ""
            return (
                f"{split}: {name} cannot be read: {why}{more}. Repair such pictures, take them out of "
                "the data, or pass --bad_images skip."
            )
        about = "" if self.tried == self.total else "about "
        return (
            f"{split}: {about}{expected:,} of {self.total:,} pictures cannot be read, such as {name}: "
            f"{why}; --bad_images skip goes on without 1 % at most, here {allowed:,}."
        )


def check_images(samples: Samples, seconds: float, threads: int) -> Checked:
    """Load as many samples as `seconds` allow, evenly spread and always in the same order.

    Every process must call it, and takes its share.

    Args:
        samples: images with the transform of training.
        seconds: time limit.
        threads: of this process.
    """
    order = itertools.islice(spread(len(samples)), distributed.rank(), None, distributed.world_size())
    started = time.perf_counter()

    def work() -> tuple[int, dict[str, str], float]:
        tried, bad, cpu = 0, {}, time.thread_time()
        while tried == 0 or time.perf_counter() < started + seconds:
            index = next(order, None)
            if index is None:
                break
            tried += 1
            try:
                samples[0, index]
            except UnreadableImage as error:
                bad[error.name] = error.reason
        return tried, bad, time.thread_time() - cpu

    with ThreadPoolExecutor(threads) as pool:
        results = [future.result() for future in [pool.submit(work) for _ in range(threads)]]
    seconds = time.perf_counter() - started
    tried, cpu, all_threads = distributed.all_sum(
        [sum(tried for tried, _, _ in results), sum(cpu for _, _, cpu in results), threads]
    )
    mine = {name: why for _, bad, _ in results for name, why in bad.items()}
    parts = distributed.all_bytes(json.dumps(mine).encode())
    return Checked(
        len(samples),
        int(tried),
        {name: why for part in parts for name, why in json.loads(part).items()},
        seconds=seconds,
        threads=all_threads,
        cpu=cpu,
    )


def spread(total: int) -> Iterator[int]:
    """Yield each number below `total` once, so that any first part of them is evenly spread.

    They are steps of the golden section modulo `total`. Threads may share the iterator.
    """
    step = next(step for step in itertools.count(max(1, round(GOLDEN * total))) if math.gcd(step, total) == 1)
    return map(lambda number: number * step % total, iter(range(total)))


def tell_images(verdict: Verdict, splits: Mapping[str, Loader], outputs: int | None) -> None:
    """Print the numbers of images and classes.

    Args:
        verdict: takes the lines.
        splits: loaders of "train" and perhaps "val".
        outputs: --nb_classes; None in pretraining.
    """
    sources = {split: loader.source for split, loader in splits.items()}
    for split, source in sources.items():
        verdict.line(
            split,
            f"{len(source):,} pictures"
            + ("" if source.classes is None else f" of {len(source.classes):,} classes"),
        )
    train, classes = sources["train"], sources["train"].classes
    if train.labels is None or classes is None or outputs is None:
        verdict.line("classes", "not read: pretraining has no use for them")
        return
    counts = {
        split: np.bincount(source.labels, minlength=len(classes))
        for split, source in sources.items()
        if source.labels is not None
    }
    verdict.line(
        "classes",
        "the same in train and val"
        + (
            f"; --nb_classes {outputs} leaves {outputs - len(classes)} outputs without a class"
            if outputs > len(classes)
            else ""
        ),
    )
    if len(classes) <= ALL_CLASSES:
        width = max(map(len, classes))
        for name, *numbers in zip(classes, *counts.values(), strict=True):
            of_splits = zip(counts, numbers, strict=True)
            told = "  ".join(f"{split} {number:,}" for split, number in of_splits)
            verdict.line("", f"{name:<{width}}  {told}")
    else:
        for split, number in counts.items():
            ascending = np.argsort(number, kind="stable")
            smallest = ", ".join(f"{classes[at]} {number[at]:,}" for at in ascending[:SMALLEST])
            verdict.line(
                "",
                f"{split}: {number.min():,} to {number.max():,} pictures a class, median "
                f"{np.median(number):,.0f}; smallest: {smallest}",
            )
    least, most = counts["train"].min(), counts["train"].max()
    if least == 0:
        empty = [classes[at] for at in np.flatnonzero(counts["train"] == 0)]
        verdict.line(
            "hint",
            f"{len(empty)} of {len(classes)} classes have no training pictures: "
            f"{', '.join(empty[:SMALLEST])}{', ...' if len(empty) > SMALLEST else ''}",
        )
    elif most >= IMBALANCE * least:
        verdict.line(
            "hint",
            f"the largest class has {most / least:.0f} times the training pictures of the "
            "smallest: accuracy will mostly be that of the large ones",
        )


def tell_unreadable(verdict: Verdict, splits: Mapping[str, Loader]) -> dict[str, Checked]:
    """Load a sample of each split, and print the unreadable images. Returns {split: Checked}."""
    checked: dict[str, Checked] = {}
    left, total = float(READING_SECONDS), sum(len(loader.samples) for loader in splits.values())
    for number, (split, loader) in enumerate(splits.items(), 1):
        seconds = left if number == len(splits) else left * min(len(loader.samples) / total, 0.8)
        threads = min(max(loader.num_workers, math.ceil(available_cores())), 32)  # some drives answer slowly
        checked[split] = found = check_images(loader.samples, seconds, threads)
        left -= found.seconds
        verdict.line(
            "reading",
            f"checked {found.tried:,} of {found.total:,} {split} pictures in "
            f"{found.seconds:.1f} s: "
            + (f"{len(found.bad):,} cannot be read:" if found.bad else "all can be read"),
        )
        for name, why in sorted(found.bad.items())[:MORE]:
            verdict.line("", f"{name}: {why}")
        if len(found.bad) > MORE:
            verdict.line("", f"and {len(found.bad) - MORE:,} more")
    return checked
