"""Course of a training run, from one update to the next; its parts lie in modules of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from util.run import checkpoints, confusion, run_folder, visualdl_writer
from util.run.checkpoint_writer import CheckpointWriter
from util.run.epoch_log import EpochLog
from util.run.evaluations import Evaluations, Result
from util.run.nan_guard import NanGuard
from util.run.past import Past
from util.run.run_state import RunState
from util.run.settings import Saving, Schedule
from util.run.step_sync import StepSync
from util.system import console, distributed, signals
from util.weights import checkpoint

if TYPE_CHECKING:
    from util.data.loaders import Loader
    from util.run.monitor import Monitor


class TrainingRun:
    """Conducts a run: opens its folder, logs and saves its epochs, and stops it on request.

    Only the first process writes; if it cannot, all processes end.

    Args:
        state: what is trained.
        loader: training batches, of util.data.loaders.train_loader.
        val_loader: of util.data.loaders.eval_loader; None for a run without evaluation.
        saving, schedule: settings.
        save_freq: epochs between numbered checkpoints if --save_every and --keep are not given.
    """

    def __init__(
        self,
        state: RunState,
        loader: Loader,
        val_loader: Loader | None = None,
        *,
        saving: Saving,
        schedule: Schedule,
        save_freq: int,
    ) -> None:
        self.state, self.loader, self.val_loader = state, loader, val_loader
        self.saving, self.schedule = saving, schedule
        self.images_a_step = schedule.batch_size * distributed.world_size()
        self.updates_per_epoch = -(-len(loader) // schedule.accum_iter)
        state.bad_images = [one.bad_images for one in (loader, val_loader) if one is not None]
        state.evaluates = val_loader is not None
        self.past = Past(saving, schedule)
        self.writer = CheckpointWriter(
            state, saving, schedule, updates_per_epoch=self.updates_per_epoch, save_freq=save_freq
        )
        self.nan_guard = NanGuard(state, loader, saving)
        self.evaluations = Evaluations(state, schedule)
        self.scalars: Any = None  # VisualDL writer
        self.looked = False  # whether reconstructions were drawn after this epoch

    @property
    def log_dir(self) -> str:
        """Folder of the VisualDL log, "" for none."""
        return self.saving.output_dir if self.saving.log_dir is None else self.saving.log_dir

    # ---- beginning

    def begin(self) -> None:
        """Prepare the folder. Call it after all options have been checked."""
        self.state.lines = self.past.lines
        self.writer.together(self._prepare)
        for bad_images in self.state.bad_images:
            bad_images.write()  # those of the checkpoint
        progress = self.state.progress
        share = progress["step"] / len(self.loader) if progress else 0.0
        self.scalars = self.writer.scalars = visualdl_writer.open_writer(
            self.log_dir, place=None if self.past.aside is None else (self.state.start_epoch, share)
        )
        self.writer.start()
        signals.wait_for_update()

    def _prepare(self) -> None:
        if self.state.start_epoch < self.schedule.epochs:
            size = checkpoint.checkpoint_size(self.state.model, ema=self.state.ema is not None)
            needed, free = self.writer.check_space(size, self.past.aside)
            console.say(
                f"checkpoints need up to {checkpoints.in_words(needed)} in {self.saving.output_dir}, "
                f"where {checkpoints.in_words(free)} are free"
            )
        run_folder.start(
            self.saving.output_dir, self.state.options, aside=self.past.aside, lines=self.state.lines
        )
        if self.past.complete:
            self.past.complete()
        confusion.write(self.saving.output_dir, self.state.confusion, self.state.classes)

    def begin_epoch(self, epoch: int, *, tag: str) -> EpochLog:
        """Return the log of an epoch, and position the loader where the run continues.

        Args:
            epoch: number of the epoch.
            tag: VisualDL name of the training loss.
        """
        sync = StepSync(
            print_freq=self.saving.print_freq,
            requests=self.writer.requests,
            read_every=1 if self.saving.on_nan == "skip" else None,
        )
        self.log = EpochLog(
            epoch,
            len(self.loader),
            print_freq=self.saving.print_freq,
            scalars=self.scalars,
            tag=tag,
            sync=sync,
        )
        progress, self.state.progress = self.state.progress, None
        if progress is not None:
            self.log.restore(progress, progress["step"])
        self.loader.sampler.set_epoch(epoch, self.log.first_step)
        return self.log

    # ---- within an epoch

    def after_update(self, steps: int, *, skipped: bool) -> None:
        """Update the average of the weights, and save and stop if that is due; called after each update.

        Args:
            steps: steps of the epoch that are done.
            skipped: whether the update was left out.
        """
        self.nan_guard.count(skipped=skipped)
        self.log.skipped += skipped
        if self.state.ema is not None and not skipped:
            self.state.ema.update()
        stop, save = self.log.sync.requested
        due = save or self.writer.due(self.log.epoch, -(-steps // self.schedule.accum_iter))
        if steps == len(self.loader) and self.val_loader is None and not stop:
            due = False  # the end of the epoch saves
        if not (stop or due):
            return
        bad = self.log.read()  # losses that are still on a GPU: none that is NaN may get into a checkpoint
        if bad is not None:
            self.nan_guard.handle(self.log, bad, self.state.model, None)
        self._save_within(steps)
        self.log.sync.requested = 0, 0
        if stop:
            self._stop(f"in epoch {self.log.epoch} after step {steps} of {len(self.loader)}")

    def evaluate(self, epoch: int, evaluate: Callable[..., Result]) -> tuple[Result | None, Result | None]:
        """Evaluate the weights and their average if that is due, see `Evaluations.run`."""
        return self.evaluations.run(epoch, evaluate, self.stop_in_evaluation)

    def stop_in_evaluation(self) -> None:
        """Stop the run if that is requested; several processes go on, because they cannot agree here."""
        if signals.wished() and distributed.world_size() == 1:
            if self.state.ema is not None:
                self.state.ema.put_back()
            self._save_within(len(self.loader))
            self._stop(f"in the evaluation of epoch {self.log.epoch}, which will be repeated")

    def _save_within(self, steps: int) -> None:
        """Save after so many steps of the epoch under way."""
        self.writer.save(
            self.log.epoch - 1,
            progress={
                **self.log.progress(steps),
                "steps": len(self.loader),
                "images_a_step": self.images_a_step,
            },
        )

    # ---- ending

    def look(self, monitor: Monitor, epoch: int) -> dict[str, float]:
        """Draw reconstructions if that is due. Returns entries of log.txt, in the first process."""
        self.looked = monitor.due(epoch)
        if not self.looked:
            return {}
        sight = monitor.look(epoch) if distributed.is_main() else None
        if sight is not None:
            sheet = sight.sheet
        self.writer.together(lambda: run_folder.write_sheet(self.saving.output_dir, epoch, sheet))
        return {} if sight is None else sight.record(epoch, self.scalars)

    def end_epoch(
        self,
        epoch: int,
        trained: Mapping[str, float],
        tested: Result | None = None,
        averaged: Result | None = None,
    ) -> None:
        """Log and save an epoch, and stop the run if that is requested.

        Args:
            epoch: number of the epoch.
            trained: means of training.
            tested: result of `evaluate` for the weights, or None.
            averaged: result of `evaluate` for the averaged weights, or None.
        """
        line: dict[str, Any] = {f"train_{name}": value for name, value in trained.items()}
        best = False
        if tested is not None:
            best, entries = self.evaluations.record(epoch, tested, averaged, self.scalars)
            line |= entries
        self.writer.save(epoch, line={**line, "epoch": epoch}, best=best)
        if self.looked:
            self.writer.together(lambda: run_folder.write_curves(self.saving.output_dir, self.state.lines))
        stop = any(distributed.all_sum([bool(signals.wished())]))
        if stop and epoch + 1 < self.schedule.epochs:
            self._stop(f"after epoch {epoch}")

    def finish(self) -> None:
        """Wait until the last checkpoint and the last VisualDL points are written."""
        self.writer.finish()
        if self.scalars:
            self.scalars.close()

    def _stop(self, place: str) -> None:
        """End the run, which has just been saved."""
        self.finish()
        again = "the same command" + ("" if self.saving.resume == "auto" else " with --resume auto")
        by = signals.wished() or "a signal to another process"
        saved = f"{again} continues there"
        if not self.saving.output_dir:
            saved = "nothing is saved, since --output_dir is empty"
        raise signals.Stopped(f"stopped by {by} {place}; {saved}")
