"""Report of --dry_run: would this run go well? Nothing is written, and what is trained is thrown away.

Reasons against the run are collected and told together at the end. What stops every run before that (wrong
options, classes that differ) has been an error by then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import paddle

from util.data.bad_images import BadImages
from util.data.loaders import Loader
from util.optim.update_rule import UpdateRule
from util.run.checkpoints import in_words
from util.run.dry_run.data import Checked, tell_images, tell_unreadable
from util.run.dry_run.memory import Memory, available_cores, tell_memory
from util.run.dry_run.updates import Measured, measure
from util.run.dry_run.verdict import Verdict
from util.run.evaluations import evaluated_epochs
from util.run.training_run import TrainingRun
from util.system import distributed
from util.weights import sealed_pickle


def dry_run(
    run: TrainingRun, train: Callable[..., Any], rule: UpdateRule, evaluate: Callable[..., Any] | None
) -> None:
    """Print what is known about a run that is about to begin.

    Every process must call it. A few updates are really made, so model and optimizer are of no use
    afterwards.

    Args:
        run: resumed, if it is to be.
        train: the engine's train_one_epoch as a function (model, loader, *, log, rule).
        rule: of the run's updates.
        evaluate: the engine's evaluate as a function (model, loader); None for a run without evaluation.

    Raises ValueError with all reasons against the run.
    """
    verdict = Verdict()
    splits = {"train": run.loader} if run.val_loader is None else {"train": run.loader, "val": run.val_loader}
    verdict.line(
        "dry run",
        f"{distributed.world_size()} process(es) on {paddle.get_device()}; nothing is "
        "written, and what is trained is thrown away",
    )
    tell_images(verdict, splits, run.state.options.get("nb_classes"))
    checked = tell_unreadable(verdict, splits)
    _tell_schedule(verdict, run, rule.lr_at)

    actions = {split: loader.bad_images.action for split, loader in splits.items()}
    for loader in splits.values():
        loader.bad_images = _SkipAll("skip", loader.bad_images.split, loader.bad_images.total)
    memory = Memory.now()
    trained, tested = measure(verdict, run, train, rule, evaluate, memory)
    size = _checkpoint_size(run) if trained else None  # before the next line, because packing takes memory
    tell_memory(verdict, memory, [part.workers for part in (trained, tested) if part])
    _tell_disk(verdict, run, size)
    if trained:
        parts = [(run.loader, trained, checked["train"], 1.0)]
        if tested is not None and run.val_loader is not None:
            parts.append((run.val_loader, tested, checked["val"], _evaluations_per_epoch(run)))
        _tell_time(verdict, parts, run.schedule.epochs - run.state.start_epoch)
    for split, loader in splits.items():
        checked[split].bad.update(loader.bad_images.reasons)  # met in the updates
        verdict.against(checked[split].reason(actions[split], split))
    verdict.end()


class _SkipAll(BadImages):
    """Bad images that never end a dry run while any image is left."""

    @property
    def allowed(self) -> int:
        return self.total - 1


# ---- schedule


def _tell_schedule(verdict: Verdict, run: TrainingRun, lr_at: Callable[[float], float]) -> None:
    schedule, start_epoch = run.schedule, run.state.start_epoch
    steps, accum_iter, epochs = len(run.loader), schedule.accum_iter, schedule.epochs
    verdict.line(
        "an epoch",
        f"{steps:,} steps, {run.updates_per_epoch:,} updates of "
        f"{run.images_a_step * accum_iter:,} "
        f"pictures (batch {schedule.batch_size} x accum {accum_iter} x "
        f"{distributed.world_size()} process(es)); pictures left out at its end: "
        f"{len(run.loader.source) - steps * run.images_a_step:,}",
    )
    if steps % accum_iter:
        verdict.line("", f"its last update has {steps % accum_iter} of {accum_iter} micro-batches")
    if start_epoch >= epochs:
        verdict.line(
            "epochs",
            "nothing is left to do: --resume or --start_epoch begins with epoch "
            f"{start_epoch}, and --epochs asks for {epochs}",
        )
        return
    verdict.line(
        "epochs", f"{start_epoch} to {epochs - 1}, {run.updates_per_epoch * (epochs - start_epoch):,} updates"
    )
    warmup, middle = schedule.warmup_epochs, (start_epoch + epochs) / 2
    last = epochs - 1 + (steps - 1) // accum_iter * accum_iter / steps
    when = {start_epoch: "at first", middle: f"at epoch {middle:g}", last: "at the last update"}
    if start_epoch < warmup < epochs:
        when[warmup] = f"after warm-up, at epoch {warmup}"
    verdict.line("lr", ", ".join(f"{lr_at(epoch):.3g} {text}" for epoch, text in sorted(when.items())))
    if warmup >= epochs:
        verdict.line(
            "warning",
            f"--warmup_epochs {warmup} is not less than --epochs {epochs}: the run ends "
            "before the learning rate is what was asked for",
        )


# ---- disk


class _Counter:
    """File that only counts the bytes written to it."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: Any) -> int:
        length = memoryview(data).nbytes
        self.size += length
        return length


def _checkpoint_size(run: TrainingRun) -> int:
    """Return the bytes of a checkpoint of this run; 0 in processes that write none."""
    if not distributed.is_main():
        return 0
    counter: Any = _Counter()  # a file as far as `dump` needs one
    sealed_pickle.dump(run.state.pack(run.state.start_epoch), counter)
    return counter.size


def _tell_disk(verdict: Verdict, run: TrainingRun, size: int | None) -> None:
    output_dir = run.saving.output_dir
    if not output_dir:
        verdict.line("disk", "--output_dir is empty: no checkpoint is written")
        return
    for folder, flag in {run.log_dir: "--log_dir", output_dir: "--output_dir"}.items():  # often the same
        verdict.against(_unwritable(flag, folder) if folder else "")
    if size is None:
        verdict.line("disk", "not known, since no update was made")
    elif distributed.is_main() and run.state.start_epoch < run.schedule.epochs:
        most = run.writer.policy.most(run.state.start_epoch, best=run.state.evaluates)
        try:
            needed, free = run.writer.check_space(size, run.past.aside)
        except ValueError as error:
            verdict.line("disk", f"a checkpoint takes {in_words(size)}, {most} at most: more than is free")
            verdict.against(str(error))
        else:
            verdict.line(
                "disk",
                f"a checkpoint takes {in_words(size)}, {most} at most: {in_words(needed)} "
                f"to be written, {in_words(free)} free",
            )


def _unwritable(flag: str, folder: str) -> str:
    """Return why nothing can be written to `folder`, which need not exist; or ""."""
    path = Path(folder).absolute()
    existing = next(above for above in (path, *path.parents) if above.exists())
    if not existing.is_dir():
        return f"{flag} {folder}: {existing} is a file, not a folder; name another folder"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"{flag} {folder}: there is no permission to write to {existing}; name another folder"
    return ""


# ---- time


def _evaluations_per_epoch(run: TrainingRun) -> float:
    """Return the mean number of evaluations per epoch."""
    once = len(evaluated_epochs(run.schedule.val_every, run.schedule.epochs)) / run.schedule.epochs
    return once if run.state.ema is None else 2 * once


def _tell_time(
    verdict: Verdict, parts: Sequence[tuple[Loader, Measured, Checked, float]], epochs: int
) -> None:
    """Print the estimated time; `parts` are training and perhaps evaluation, with their number per epoch."""
    seconds = {"training": 0.0, "evaluation": 0.0, "waiting for data": 0.0}
    for name, (loader, measured, checked, times) in zip(seconds, parts, strict=False):
        seconds[name] += times * len(loader) * measured.seconds
        seconds["waiting for data"] += times * len(loader) * _waiting(loader, measured, checked)
    total = sum(seconds.values())
    verdict.line(
        "time",
        f"an epoch takes about {duration(total)} ("
        + ", ".join(f"{name} {100 * part / total:.0f} %" for name, part in seconds.items() if part)
        + (f"), {epochs} of them {duration(epochs * total)}" if epochs > 1 else ")"),
    )


def _waiting(loader: Loader, measured: Measured, checked: Checked) -> float:
    """Estimate the seconds per batch that training waits, or loses to the workers on a CPU."""
    if loader.num_workers == 0:
        return measured.wait
    images = loader.sampler.batch_size
    with_all_cores, by_workers = checked.loading_seconds(loader.num_workers, available_cores())
    lost = images * with_all_cores if paddle.get_device() == "cpu" else 0.0
    return max(lost, images * by_workers - measured.seconds)


def duration(seconds: float) -> str:
    """Format seconds as "3 d 4 h 12 m", and under two minutes as "41 s"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    parts = [(minutes // 1440, "d"), (minutes // 60 % 24, "h"), (minutes % 60, "m")]
    first = next(at for at, (number, _) in enumerate(parts) if number)
    return " ".join(f"{number} {unit}" for number, unit in parts[first:])
