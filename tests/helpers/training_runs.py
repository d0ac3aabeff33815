"""Runs of a tiny model on ten images, for tests of what a run saves and resumes."""

import os
import signal

import numpy as np
import paddle
from scripts import read_state

from util.compute import amp
from util.data.bad_images import BadImages
from util.data.loaders import train_loader
from util.optim.ema import EMA
from util.run import checkpoints, resume_rules
from util.run.resume import continue_run
from util.run.run_state import RunState
from util.run.settings import Saving, Schedule
from util.run.training_run import TrainingRun
from util.system import signals

OPTIONS = {
    "start_epoch": 0,
    "val_every": 1,
    "epochs": 9,
    "print_freq": 20,
    "seed": 5,
    "lr": None,
    "batch_size": 2,
    "accum_iter": 2,
    "keep": None,
    "save_every": None,
    "save_steps": 0,
    "save_every_minutes": 0.0,
    "save_async": False,
    "on_nan": "stop",
    "allow_changes": None,
    "trust_checkpoint": False,
    "resume": "",
    "decay_rate": 0.5,
    "log_dir": "",
}
TRAINED = {"lr": 1e-4, "loss": 0.5, "images_per_s": 9.0}


def result(acc1, left_out=0):
    """An evaluation of a classifier of two classes."""
    return {
        "loss": 2.0,
        "acc1": acc1,
        "acc5": 99.0,
        "images": 7,
        "left_out": left_out,
        "confusion": np.array([[round(acc1), 3], [2, 300]]),
    }


class Ones:
    """A source of images, all of which are ones."""

    labels = None

    def __init__(self, names):
        self.names = names

    def __len__(self):
        return len(self.names)

    def name(self, index):
        return f"/data/{self.names[index]}.jpg"

    def open(self, index):
        return np.ones([2], "float32")


def start_run(
    folder,
    resume=None,
    *,
    options=(),
    names="abcdefghij",
    classes=("cat", "dog"),
    evaluates=True,
    bad_images="error",
    averages=False,
    plateau=None,
    **described,
):
    """Begin a run in `folder` of a new model, with OPTIONS changed by `options`."""
    options = {**OPTIONS, "output_dir": str(folder), **dict(options)}
    model = paddle.nn.Linear(2, 3)
    model.bias.stop_gradient = True
    optimizer = paddle.optimizer.AdamW(0.1, parameters=[model.weight])
    model(paddle.ones([1, 2])).sum().backward()
    optimizer.step()
    optimizer.clear_grad()
    loader = train_loader(
        Ones(names),
        lambda image, rng: (image,),
        options["batch_size"],
        0,
        seed=5,
        bad_images=BadImages(bad_images, "train", len(names)),
    )
    described = {
        "architecture": {"name": "tiny"},
        "normalization": {"mean": [0.5], "std": [0.5]},
        **described,
    }
    facts = resume_rules.facts(
        loader, options["batch_size"] * options["accum_iter"], classes=classes, **described
    )
    state = RunState(
        model,
        optimizer,
        amp.grad_scaler(None),
        options=options,
        facts=facts,
        ema=EMA(model, optimizer, 0.75) if averages else None,
        plateau=plateau,
    )
    run = TrainingRun(
        state,
        loader,
        loader if evaluates else None,
        saving=Saving.of(options),
        schedule=Schedule.of(options),
        save_freq=20,
    )
    if resume:
        continue_run(run, resume)
    run.begin()
    return run


def train(run, epoch, *, stop_after=None, losses=None):
    """Run the 5 steps of an epoch, with updates after steps 2, 4 and 5 that add 1 to the weights.

    Returns the steps that were done.
    """
    done = []
    log = run.begin_epoch(epoch, tag="loss")
    for step, _ in log.batches(run.loader):
        log.update(step, paddle.to_tensor(float(step) if losses is None else losses[step]), 0.1 * step)
        done.append(step)
        if step % 2 == 1 or step + 1 == log.steps:
            run.state.model.weight.set_value(run.state.model.weight + 1)
            run.after_update(step + 1, skipped=False)
        if step == stop_after:
            return done
    return done


def saved(run):
    """Position of the latest checkpoint: (epoch, steps), or None."""
    path = os.path.join(run.saving.output_dir, "checkpoint-latest.pd")
    return checkpoints.position(read_state(path)) if os.path.exists(path) else None


def epochs_of(folder):
    """{name: epoch} of the checkpoints in a folder."""
    return {
        path.name.removeprefix("checkpoint-").removesuffix(".pd"): read_state(path)["epoch"]
        for path in folder.glob("checkpoint-*.pd")
    }


def fail(*args, **options):
    """Stands for a write to a full disk."""
    raise OSError(28, "No space left on device")


def listen():
    """Listen for signals as a script does; yields, and restores the handlers."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signals.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signals._wish, signals._patient = "", False
