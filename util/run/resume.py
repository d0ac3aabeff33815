"""Resuming a run (--resume): which checkpoint, and at which step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from util.run import checkpoints
from util.run.settings import Saving
from util.run.training_run import TrainingRun
from util.system import console, distributed
from util.weights import checkpoint


def brings_weights(resume: str, output_dir: str) -> bool:
    """Return whether --resume finds a checkpoint, so that the file of --finetune is not needed."""
    return bool(resume) and (resume != "auto" or checkpoints.any_in(output_dir))


def continue_run(run: TrainingRun, path: str) -> None:
    """Continue a run from a checkpoint.

    Args:
        run: that has not begun.
        path: the checkpoint, or "auto" for the newest undamaged one in the folder. Without any, "auto" starts
            a new run. Bare weights are taken with a new optimizer.

    Raises CheckpointError if the file does not fit, and ValueError if its run has other settings.
    """
    path, contents = read(path, run.saving)
    state = run.state
    if contents is None:
        return console.say(
            f"--resume auto: there is no checkpoint in {run.saving.output_dir} yet, so this is a new run"
        )
    if not state.restore(path, contents):
        return console.say(
            f"{path} holds bare weights: taken, with a new optimizer, from epoch {state.start_epoch}"
        )
    run.past.continue_from(path, contents, run.writer.policy)
    place = f"continuing with epoch {state.start_epoch}"
    if state.progress is not None:
        step = same_step(
            path,
            state.progress,
            steps=len(run.loader),
            images_a_step=run.images_a_step,
            accum_iter=run.schedule.accum_iter,
        )
        state.progress = {**state.progress, "step": step}
        place += f" step {step}"
    if state.start_epoch >= run.schedule.epochs:
        place = f"its {state.start_epoch} epochs are all that --epochs asks for"
    console.say(f"resumed {path}: {place}")


def read(path: str, saving: Saving) -> tuple[str, dict[str, Any] | None]:
    """Read the checkpoint of --resume.

    Args:
        path: a file, or "auto" for the newest undamaged checkpoint in the output folder.
        saving: settings.

    Returns the path and its contents, which are None if "auto" finds no checkpoint. Raises CheckpointError if
    the file cannot be read, and ValueError if processes see different checkpoints.
    """
    if path != "auto":
        return path, checkpoint.read_checkpoint(path, trusted=saving.trust_checkpoint, continues=True)
    folder = saving.output_dir
    if not folder:
        raise ValueError(
            "--resume auto: looks for checkpoints in --output_dir, which is empty; name a "
            "folder, or the checkpoint"
        )
    found, contents, complaints = checkpoints.newest(folder, trusted=saving.trust_checkpoint)
    for complaint in complaints:
        console.say(f"--resume auto passes over a checkpoint that it cannot use: {complaint}")
    place = json.dumps([found and found.name, contents and checkpoints.position(contents)])
    seen = [part.decode() for part in distributed.all_bytes(place.encode())]
    if len(set(seen)) > 1:
        raise ValueError(
            f"--resume auto: the processes see different checkpoints in {folder}: "
            f"{', '.join(seen)}; it must be a folder that all of them share"
        )
    return str(found), contents


def same_step(
    path: str, progress: Mapping[str, Any], *, steps: int, images_a_step: int, accum_iter: int
) -> int:
    """Return the step of this run that follows as many images as `progress` has seen.

    Args:
        path: checkpoint, for the error.
        progress: position in its epoch, with `steps` and `images_a_step` of its run.
        steps: of an epoch of this run.
        images_a_step: images per step of this run, over all processes.
        accum_iter: micro-batches per update.

    Raises ValueError if no update begins there.
    """
    if progress["step"] == progress["steps"]:
        return steps
    step, rest = divmod(progress["step"] * progress["images_a_step"], images_a_step)
    if rest or step % accum_iter:
        raise ValueError(
            f"--resume {path}: written within an epoch, where an update must have as many "
            "images as before; resume one from the end of an epoch, checkpoint-EPOCH.pd"
        )
    return min(step, steps)
