"""What outlives an epoch of training: where it started, its checkpoints, its log, its best accuracy."""
from util import checkpoint, distributed, run_log


class TrainingRun:
    """The folder of a run and what is kept there; only the first process writes.

    Args:
        model, optimizer, scaler: what a checkpoint holds and `resume` restores.
        output_dir, log_dir: for checkpoints and log.txt, and for VisualDL; "" for none; log_dir None is output_dir.
        options: {name: value} of the run, kept in options.yaml and in every checkpoint.
        architecture: {"name": ..., keyword arguments of the model}, kept in every checkpoint.
        normalization: {"mean", "std"} of the images, kept likewise.
        classes: the class names in the order of their numbers, for classifiers.
    """

    def __init__(self, model, optimizer, scaler, *, output_dir, log_dir, options, architecture, normalization,
                 classes=None):
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.output_dir, self.log_dir = output_dir, output_dir if log_dir is None else log_dir
        self.options = options
        self.kept = {"architecture": architecture, "normalization": normalization}
        if classes is not None:
            self.kept["classes"] = list(classes)
        self.start_epoch, self.max_accuracy = options["start_epoch"], -1.0  # below any accuracy

    def resume(self, path, *, trusted=False):
        """Continue after the epoch that the checkpoint at `path` was written at the end of."""
        state = checkpoint.resume(path, self.model, self.optimizer, self.scaler, trusted=trusted)
        checkpoint.check_classes(path, state, self.kept.get("classes"))
        if "optimizer" in state and "epoch" in state:
            self.start_epoch, self.max_accuracy = state["epoch"] + 1, state.get("max_accuracy", self.max_accuracy)
            done = self.start_epoch >= self.options["epochs"]
            run_log.say(f"resumed {path}: " + (f"its {self.start_epoch} epochs are all that --epochs asks for" if done
                                               else f"continuing with epoch {self.start_epoch}"))
        else:
            run_log.say(f"{path} holds bare weights: taken, with a new optimizer, from epoch {self.start_epoch}")

    def begin(self):
        """Prepare the folder. Call it once everything that can be wrong with the options has been checked."""
        run_log.start(self.output_dir, self.options, start_epoch=self.start_epoch)
        self.scalars = run_log.scalar_writer(self.log_dir)

    def epoch_log(self, epoch, steps, *, tag):
        return run_log.EpochLog(epoch, steps, print_freq=self.options["print_freq"], scalars=self.scalars, tag=tag)

    def end_epoch(self, epoch, trained, tested=None, *, numbered):
        """Log and save an epoch.

        Args:
            trained: means of training; tested: of `evaluate`, or None.
            numbered: whether its checkpoint is kept under the epoch's number, too.
        """
        line = {f"train_{name}": value for name, value in trained.items()}
        best = False
        if tested is not None:
            best = tested["acc1"] > self.max_accuracy
            self.max_accuracy = max(self.max_accuracy, tested["acc1"])
            run_log.say(f"{run_log.evaluation(tested)}   Max accuracy: {self.max_accuracy:.2f}%")
            line.update({f"test_{name}": tested[name] for name in ("loss", "acc1", "acc5")})
            if tested["left_out"]:  # the accuracy is that of fewer images
                line["test_left_out"] = tested["left_out"]
            line["n_parameters"] = sum(p.size for p in self.model.parameters() if not p.stop_gradient)
            if self.scalars:
                for name in ("acc1", "acc5", "loss"):
                    self.scalars.add_scalar(f"perf/test_{name}", tested[name], epoch)
        if self.output_dir and distributed.is_main():
            more = self.kept if tested is None else {**self.kept, "max_accuracy": self.max_accuracy}
            state = checkpoint.pack(self.model, self.optimizer, self.scaler, epoch, self.options, **more)
            checkpoint.save(self.output_dir, epoch, state, numbered=numbered, best=best)
            run_log.append(self.output_dir, **line, epoch=epoch)
        distributed.barrier()
