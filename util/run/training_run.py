"""What outlives an update of training: how far it is, its checkpoints, its log, its best accuracy."""
import json
import math
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import paddle

from util.run import checkpoints, confusion, epoch_log, nonfinite, resume_rules, run_folder, visualdl_writer
from util.system import console, distributed, signals
from util.system.atomic_file import atomic_write
from util.weights import checkpoint, loading
from util.weights.architecture import num_heads

MOST_SKIPPED = 2  # updates in a row that --on_nan skip leaves out, as many as in DINOv3


def run_continues(resume, output_dir):
    """Whether --resume will bring weights, so that those of --finetune, which may be gone by then, are not needed."""
    return bool(resume) and (resume != "auto" or checkpoints.any_in(output_dir))


def evaluated_epochs(every, epochs):
    """The numbers of the epochs of a run after which --val_every evaluates."""
    return {*range(every - 1, epochs, every), epochs - 1} if every else set()


class TrainingRun:
    """The folder of a run and what is kept there; only the first process writes, and if it cannot, all end.

    A checkpoint is written between two updates, never within one: there are no gradients to keep. All randomness is a
    function of seed and place (util.system.keyed_random), so that the place is all there is to keep of it.

    Args:
        model, optimizer, scaler: what a checkpoint holds and `resume` restores.
        ema: util.optim.ema.EMA of the model's weights, or None; plateau: util.optim.plateau.Plateau, or None.
        loader, val_loader: of util.data.loaders; the latter None for a run without evaluation.
        output_dir, log_dir: for checkpoints and log.txt, and for VisualDL; "" for none; log_dir None is output_dir.
        options: {name: value} of the run, kept in options.yaml and in every checkpoint; of util.options.training_options.add_training.
        save_freq: epochs between checkpoints under a number of their own, where --save_every and --keep do not say
            otherwise.
        architecture: {"name": ..., keyword arguments of the model}, kept in every checkpoint.
        normalization: {"mean", "std"} of the images, kept likewise.
        classes: the class names in the order of their numbers, for classifiers.
    """

    def __init__(self, model, optimizer, scaler, loader, val_loader=None, *, output_dir, log_dir, options, save_freq,
                 architecture, normalization, classes=None, ema=None, plateau=None):
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.loader, self.val_loader = loader, val_loader
        self.ema, self.plateau = ema, plateau
        self.output_dir, self.log_dir = output_dir, output_dir if log_dir is None else log_dir
        self.options = options
        for name in ("save_steps", "save_every_minutes", "start_epoch"):
            if options[name] < 0:
                raise ValueError(f"--{name} {options[name]}: expected 0 or more")
        every = options["save_every"]
        self.policy = checkpoints.Policy(save_freq if every is None else every, options["keep"], options["epochs"],
                                               milestone=every or checkpoints.MILESTONE)
        self.images_a_step = options["batch_size"] * distributed.world_size()
        self.kept = {"architecture": {**architecture, **num_heads(model)}, "normalization": normalization,
                     "data": resume_rules.fingerprint(loader.dataset.samples.images),
                     "order": resume_rules.digest(loader.dataset.samples.images),
                     "images_an_update": self.images_a_step * options["accum_iter"]}
        if loader.batch_sampler.buffer is not None:
            self.kept["shuffle_buffer"] = loader.batch_sampler.buffer.fingerprint()
        if classes is not None:
            self.kept["classes"] = list(classes)
        resume_rules.check_names(options["allow_changes"] or (), resume_rules.essentials(options, self.kept))
        self.start_epoch = options["start_epoch"]
        self.max_accuracy, self.min_loss = -1.0, math.inf  # worse than any; of classifiers, and of pretraining
        self.confusion = {}         # of the epoch that has it
        self.progress = None        # of the epoch under way in the checkpoint that was resumed
        self.lines = run_folder.read_log(output_dir, self.start_epoch)  # a dict an epoch
        self.aside = None if self.start_epoch == 0 else []  # files of the folder that are not of this run's past
        self.complete = None        # gives the checkpoint that was resumed the names that it may lack
        self.skipped_in_a_row = 0   # updates, by --on_nan skip
        self.looked = False         # whether this epoch's end is drawn
        self.writer, self.writing = ThreadPoolExecutor(1), None

    # ---- beginning and continuing

    def resume(self, path):
        """Continue at the place of the checkpoint at `path`, or with "auto" of the newest whole one in the folder.

        Bare weights are taken with a new optimizer; "auto" without any checkpoint is a new run. CheckpointError for a
        file that does not fit; ValueError if it is of a run with other settings.
        """
        trusted = self.options["trust_checkpoint"]
        if path == "auto":
            path, state = self._newest(trusted)
        else:
            state = checkpoint.read_checkpoint(path, trusted=trusted, continues=True)
        if state is None:
            return console.say(f"--resume auto: there is no checkpoint in {self.output_dir} yet, so this is a new run")
        loading.check_classes(path, state, self.kept.get("classes"))
        loading.resume(path, self.model, self.optimizer, self.scaler, state=state)
        if self.ema is not None:
            self.ema.restore(path, state.get("model_ema", state["model"]))
            console.say("" if "model_ema" in state else f"{path} has no average of weights: --ema begins with its weights")
        whole = "optimizer" in state and "epoch" in state
        if not whole:
            return console.say(f"{path} holds bare weights: taken, with a new optimizer, from epoch {self.start_epoch}")
        resume_rules.check(path, resume_rules.essentials(state.get("args", {}), state),
                           resume_rules.essentials(self.options, self.kept), self.options["allow_changes"] or ())
        self.start_epoch = state["epoch"] + 1
        self.max_accuracy = state.get("max_accuracy", self.max_accuracy)
        self.min_loss = state.get("min_loss", self.min_loss)
        if self.plateau is not None and "plateau" in state:
            self.plateau.restore(state["plateau"])
        self.confusion = state.get("confusion", {})
        self.skipped_in_a_row = state.get("skipped_in_a_row", 0)
        self.aside = None
        if self.output_dir and Path(path).resolve().parent == Path(self.output_dir).resolve():
            self.aside = checkpoints.beyond(self.output_dir, path, state, trusted=trusted)
            if self.aside:  # else there is one picture at most, which this run will draw again
                self.aside += run_folder.drawn_from(self.output_dir, self.start_epoch)
            ended = "progress" not in state and self.policy.numbers(state["epoch"], state["epoch"])
            self.complete = partial(checkpoints.complete, self.output_dir, path,
                                    number=state["epoch"] if ended else None, best=state.get("best", False))
        self.lines = state["log"] if "log" in state else run_folder.read_log(Path(path).parent, self.start_epoch)
        for bad_images in self._bad_images():
            bad_images.restore(state.get("bad_images", {}).get(bad_images.split, {}))
        place = f"epoch {self.start_epoch}"
        if "progress" in state:
            self.progress = {**state["progress"], "step": self._same_place(path, state["progress"])}
            place += f" step {self.progress['step']}"
        done = self.start_epoch >= self.options["epochs"]
        console.say(f"resumed {path}: " + (f"its {self.start_epoch} epochs are all that --epochs asks for" if done
                                           else f"continuing with {place}"))

    def begin(self):
        """Prepare the folder. Call it once everything that can be wrong with the options has been checked."""
        self._together(self._prepare)
        updates = self.options["epochs"] * -(-len(self.loader) // self.options["accum_iter"])
        if self.ema is not None and updates * (1 - self.ema.decay) < 3:
            console.say(f"--ema_decay {self.ema.decay} is meant for longer runs: after the {updates} updates of this one, "
                        f"{self.ema.decay ** updates:.0%} of the average are still the weights that it starts with")
        for bad_images in self._bad_images():
            bad_images.write()  # those that the checkpoint knows of
        share = self.progress["step"] / len(self.loader) if self.progress else 0.0
        self.scalars = visualdl_writer.open_writer(
            self.log_dir, place=None if self.aside is None else (self.start_epoch, share))
        self.last_saved = time.monotonic()
        signals.wait_for_update()

    def _prepare(self):
        if self.start_epoch < self.options["epochs"]:
            needed, free = self.check_space(checkpoint.checkpoint_size(self.model, ema=self.ema is not None))
            console.say(f"checkpoints need up to {checkpoints.in_words(needed)} in {self.output_dir}, where "
                        f"{checkpoints.in_words(free)} are free")
        run_folder.start(self.output_dir, self.options, aside=self.aside, lines=self.lines)
        if self.complete:
            self.complete()
        confusion.write(self.output_dir, self.confusion, self.kept.get("classes", ()))

    def check_space(self, size):
        """(bytes that checkpoints of `size` bytes still need, bytes free); ValueError if they do not fit."""
        return checkpoints.check_space(self.output_dir, size, self.policy, self.start_epoch,
                                             best=self.val_loader is not None, aside=self.aside)

    def begin_epoch(self, epoch, *, tag):
        """The EpochLog of an epoch, whose loader is made to begin where the run has got to."""
        self.log = epoch_log.EpochLog(epoch, len(self.loader), print_freq=self.options["print_freq"],
                                    scalars=self.scalars, tag=tag, wishes=self._wishes,
                                    read_every=1 if self.options["on_nan"] == "skip" else None)
        progress, self.progress = self.progress, None
        if progress is not None:
            self.log.restore(progress, progress["step"])
        self.loader.batch_sampler.set_epoch(epoch, self.log.first_step)
        return self.log

    # ---- while it goes on

    def after_update(self, steps, *, skipped):
        """Follow the weights, and save and end where that is due; engines call it after each update.

        Args:
            steps: steps of the epoch that are done.
            skipped: whether the update was left out.
        """
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        self.log.skipped += skipped
        if self.ema is not None and not skipped:
            self.ema.update()
        stop, save = self.log.wished
        save_steps, accum_iter = self.options["save_steps"], self.options["accum_iter"]
        updates = self.log.epoch * -(-len(self.loader) // accum_iter) + -(-steps // accum_iter)
        due = save or (save_steps and updates % save_steps == 0)
        if due and not stop and steps == len(self.loader) and self.val_loader is None:
            due = False  # the end of the epoch saves
        if not (stop or due):
            return
        bad = self.log.read()  # what a GPU has not told yet must not get into a checkpoint unseen
        if bad is not None:
            self.not_finite(self.log, bad, self.model, None)
        self._save_within(steps)
        self.log.wished = 0, 0
        if stop:
            self._stop(f"in epoch {self.log.epoch} after step {steps} of {len(self.loader)}")

    def during_evaluation(self):
        """End where that is wished; to be called after each batch of an evaluation.

        Several processes wait for its end instead, since they cannot agree in the middle.
        """
        if signals.wished() and distributed.world_size() == 1:
            if self.ema is not None:
                self.ema.put_back()
            self._save_within(len(self.loader))
            self._stop(f"in the evaluation of epoch {self.log.epoch}, which will be repeated")

    def tested(self, epoch, evaluate):
        """What an evaluation after this epoch gives, and what it gives with the averaged weights; None for what is not.

        There is one after every N-th epoch of --val_every and after the last, and one of averages with --ema.

        Args:
            evaluate: called with after_batch, a function to be called after each batch.
        """
        if epoch not in evaluated_epochs(self.options["val_every"], self.options["epochs"]):
            return None, None
        plain = evaluate(after_batch=self.during_evaluation)
        if self.ema is None:
            return plain, None
        with self.ema.in_place():
            return plain, evaluate(after_batch=self.during_evaluation)

    def not_finite(self, log, step, model, inputs):
        """What --on_nan says about a loss that is not finite; arguments as for `util.run.nonfinite.stop`, or no inputs.

        Either way it leaves a report: not_finite_EPOCH_STEP.json, with what each process has found. Blocks until every
        process has called it.
        """
        found = nonfinite.first_non_finite(model, None if inputs is None else lambda: model(*inputs))
        images, sampler = self.loader.dataset.samples.images, self.loader.batch_sampler
        lost = [name for name, p in model.named_parameters() if not paddle.isfinite(p).all().item()]  # and statistics
        mine = {"not_finite": lost, "loss": str(log.own_losses[step - log.steps_read]), "first_not_finite": found,
                "pictures": [images.name(index) for index in sampler.indices(log.epoch, step)]}
        processes = [json.loads(part) for part in distributed.all_bytes(json.dumps(mine).encode())]
        # Of the processes that have found something the first one is quoted; the others' numbers are all finite.
        error = nonfinite.error(log, step, next((one["first_not_finite"] for one in processes
                                              if one["first_not_finite"]), {}))
        report = self._report(log, step, str(error), processes)
        if self.options["on_nan"] == "stop":
            raise FloatingPointError(f"{error}{report}. No checkpoint was written after it. Go on without such "
                                     "updates: --on_nan skip")
        if self.skipped_in_a_row == MOST_SKIPPED:
            raise FloatingPointError(f"{error}{report}. --on_nan skip leaves out {MOST_SKIPPED} updates in a row, "
                                     "and this would be one more")
        lost = sorted({name for one in processes for name in one["not_finite"]})
        if lost:
            raise FloatingPointError(f"{error}{report}. --on_nan skip cannot help, since these are affected already: "
                                     f"{', '.join(lost[:3])}{', ...' if lost[3:] else ''}")
        console.say(f"{error}{report}. This update is left out")

    def look(self, monitor, epoch):
        """Entries of the log after `epoch`; the sheet goes to reconstructions/ and VisualDL. {} if no look is due.

        Args:
            monitor: util.run.monitor.Monitor; it looks on the first process only, and the others have no entries.
        """
        self.looked = monitor.due(epoch)
        if not self.looked:
            return {}
        sight = monitor.look(epoch) if distributed.is_main() else None
        if self.output_dir:
            self._together(lambda: run_folder.write_sheet(self.output_dir, epoch, sight.sheet))
        if sight is None:
            return {}
        mean = statistics.fmean(sight.entropies)
        if self.scalars:
            self.scalars.add_image("reconstructions", np.array(sight.sheet), epoch)
            self.scalars.add_scalar("watched/attention_entropy", mean, epoch)
            for block, value in enumerate(sight.entropies):
                self.scalars.add_scalar(f"watched/attention_entropy_block_{block:02d}", value, epoch)
        return {"attention_entropy": mean}

    def end_epoch(self, epoch, trained, tested=None, averaged=None):
        """Log and save an epoch, and end the run if that is wished.

        Args:
            trained: means of training; tested, averaged: of `tested`, if the epoch was evaluated. The best epoch, and
                what --sched plateau follows, is that of the averaged weights where there are some.
        """
        line = {f"train_{name}": value for name, value in trained.items()}
        best = False
        if tested is not None:
            best = self._judge(epoch, tested if averaged is None else averaged)
            record = (f"Max accuracy: {self.max_accuracy:.2f}%" if "acc1" in tested else f"Min loss: {self.min_loss:.4f}")
            told = [("test", tested)] if averaged is None else [("test", tested), ("test_ema", averaged)]
            if averaged is not None:
                console.say(epoch_log.evaluation(tested))
            console.say(f"{epoch_log.evaluation(told[-1][1], ema=averaged is not None)}   {record}")
            for prefix, result in told:
                for name in ("loss", "acc1", "acc5"):
                    if name in result:
                        line[f"{prefix}_{name}"] = result[name]
                        if self.scalars:
                            self.scalars.add_scalar(f"perf/{prefix}_{name}", result[name], epoch)
            if tested["left_out"]:  # the accuracy is that of fewer images
                line["test_left_out"] = tested["left_out"]
            if "acc1" in tested:
                line["n_parameters"] = sum(p.size for p in self.model.parameters() if not p.stop_gradient)
        self._save(epoch, line={**line, "epoch": epoch}, best=best)
        if self.looked:
            self._together(lambda: run_folder.write_curves(self.output_dir, self.lines))
        wished = any(distributed.all_sum([bool(signals.wished())]))
        if wished and epoch + 1 < self.options["epochs"]:
            self._stop(f"after epoch {epoch}")

    def finish(self):
        """Return once the last checkpoint and the last points are written."""
        self._together(self._written)
        if self.scalars:
            self.scalars.close()

    # ----

    def _judge(self, epoch, result):
        """Whether the evaluation of an epoch is the best so far, by accuracy or, without one, by loss; keep what is."""
        if "acc1" in result:
            best, score = result["acc1"] > self.max_accuracy, result["acc1"]
            self.max_accuracy = max(self.max_accuracy, result["acc1"])
            if best:
                self.confusion = confusion.pack(result["confusion"], epoch)
        else:
            best, score = result["loss"] < self.min_loss, -result["loss"]
            self.min_loss = min(self.min_loss, result["loss"])
        # The first process's score: those of others may differ in the last digit, and the rate must not.
        if self.plateau is not None and self.plateau.observe(
                epoch, distributed.all_sum([score if distributed.is_main() else 0.0])[0]):
            console.say(f"no better evaluation in {self.plateau.patience + 1} epoch(s): the learning rate falls to "
                        f"{self.options['decay_rate']} of what it was; reductions so far: {self.plateau.reductions}")
        return best

    def pack(self, epoch, **more):
        """The state of the run after `epoch`, as `checkpoint.pack`."""
        state = checkpoint.pack(self.model, self.optimizer, self.scaler, epoch, self.options, **self.kept, **more)
        if self.ema is not None:
            state["model_ema"] = {**state["model"], **self.ema.arrays()}
        if self.plateau is not None:
            state["plateau"] = self.plateau.state()
        return state

    def _report(self, log, step, message, processes):
        """Leave what is known about a loss that is not finite in a file; the clause that says where."""
        if not self.output_dir:
            return ""
        file = Path(self.output_dir, f"not_finite_{log.epoch}_{step}.json")
        try:
            if distributed.is_main():
                with atomic_write(file, "w") as f:
                    json.dump({"epoch": log.epoch, "step": step, "lr": log.lrs[step],
                               "scaler": checkpoint.plain(self.scaler.state_dict()), "message": message,
                               "processes": processes}, f, indent=2, default=np.ndarray.tolist)
        except OSError as error:
            return f"; its report could not be written ({error})"
        return f"; more in {file}"

    def _newest(self, trusted):
        if not self.output_dir:
            raise ValueError("--resume auto: looks for checkpoints in --output_dir, which is empty; name a folder, or "
                             "the checkpoint")
        path, state, complaints = checkpoints.newest(self.output_dir, trusted=trusted)
        for complaint in complaints:
            console.say(f"--resume auto passes over a checkpoint that it cannot use: {complaint}")
        place = json.dumps([path and path.name, state and checkpoints.position(state)])
        seen = [part.decode() for part in distributed.all_bytes(place.encode())]
        if len(set(seen)) > 1:
            raise ValueError(f"--resume auto: the processes see different checkpoints in {self.output_dir}: "
                             f"{', '.join(seen)}; it must be a folder that all of them share")
        return path, state

    def _same_place(self, path, progress):
        """The step of this run's epoch that follows as many images as `progress` has seen."""
        if progress["step"] == progress["steps"]:
            return len(self.loader)
        step, rest = divmod(progress["step"] * progress["images_a_step"], self.images_a_step)
        if rest or step % self.options["accum_iter"]:
            raise ValueError(f"--resume {path}: it was written within an epoch, where an update must have as many "
                             "images as before; resume a checkpoint from the end of an epoch, checkpoint-EPOCH.pd")
        return min(step, len(self.loader))

    def _bad_images(self):
        return [loader.bad_images for loader in (self.loader, self.val_loader) if loader is not None]

    def _wishes(self):
        """(whether this process is to stop, whether it is time to save), for all processes to agree about."""
        minutes = self.options["save_every_minutes"]
        late = minutes and distributed.is_main() and time.monotonic() - self.last_saved >= 60 * minutes
        return bool(signals.wished()), bool(late)

    def _save_within(self, steps):
        """Write a checkpoint from within the epoch under way, of which so many steps are done."""
        self._save(self.log.epoch - 1, progress={
            **self.log.progress(steps), "steps": len(self.loader), "images_a_step": self.images_a_step})

    def _save(self, epoch, *, progress=None, line=None, best=False):
        """Write a checkpoint after `epoch`, and `progress` of the next one; before it, log and confusion matrix.

        In this order: whoever is killed in between repeats the epoch, and replaces them.
        """
        self._together(partial(self._write, epoch, progress, line, best))
        self.last_saved = time.monotonic()

    def _write(self, epoch, progress, line, best):
        self._written()
        bad = [name for name, p in self.model.named_parameters() if not paddle.isfinite(p).all().item()]
        if bad:
            raise FloatingPointError(f"the weights are not finite after an update ({', '.join(bad[:3])}, ...): not "
                                     "saved, the last checkpoint is from before")
        if line is not None:
            self.lines = [*self.lines, line]
            run_folder.write_log(self.output_dir, self.lines)
        if best:
            confusion.write(self.output_dir, self.confusion, self.kept.get("classes", ()))
        more = {"log": self.lines, "skipped_in_a_row": self.skipped_in_a_row,
                "bad_images": {bad_images.split: dict(bad_images.reasons) for bad_images in self._bad_images()}}
        if self.val_loader is not None:
            more["best"] = best  # whether this is it
            if "classes" in self.kept:
                more["max_accuracy"], more["confusion"] = self.max_accuracy, self.confusion
            else:
                more["min_loss"] = self.min_loss
        if progress is not None:
            more["progress"] = progress
        state = self.pack(epoch, **more)
        number = epoch if line is not None and self.policy.numbers(epoch, epoch) else None
        if self.scalars:
            self.scalars.flush()  # what is drawn is not behind what is saved
        write = partial(checkpoints.save, self.output_dir, state, number=number, best=best, policy=self.policy)
        if self.options["save_async"]:
            self.writing = self.writer.submit(write)
        else:
            write()

    def _written(self):
        """Wait for the checkpoint that is being written in the background, and raise what went wrong with it."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def _together(self, write):
        """Let the first process `write`; if it fails, all processes raise."""
        error = None
        if self.output_dir and distributed.is_main():
            try:
                write()
            except (OSError, ValueError, FloatingPointError) as caught:
                error = caught
        if not any(distributed.all_sum([error is not None])):
            return
        if isinstance(error, OSError):
            raise ValueError(f"--output_dir {self.output_dir}: could not be written to ({error}). What was saved "
                             "before is whole: make room and continue with --resume auto") from error
        raise error or ValueError(f"--output_dir {self.output_dir}: the first process, which writes there, has failed")

    def _stop(self, place):
        """End the run, which has just been saved."""
        self.finish()
        again = "the same command" + ("" if self.options["resume"] == "auto" else " with --resume auto")
        by = signals.wished() or "a signal to another process"
        raise signals.Stopped(f"stopped by {by} {place}; " + (
            f"{again} continues there" if self.output_dir else "nothing is saved, since --output_dir is empty"))
