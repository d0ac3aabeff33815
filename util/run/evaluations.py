"""Evaluations of a run: when they are due, which epoch is the best, and what the log says about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from util.run import confusion, epoch_log
from util.run.run_state import RunState
from util.run.settings import Schedule
from util.system import console, distributed

Result = Mapping[str, Any]  # of an engine's `evaluate`


def evaluated_epochs(every: int, epochs: int) -> set[int]:
    """Return the epochs after which a run evaluates: every `every`-th and the last; none if `every` is 0."""
    return {*range(every - 1, epochs, every), epochs - 1} if every else set()


class Evaluations:
    """Evaluates the weights and the averaged weights of --ema, and keeps the best scores in the run's state.

    Args:
        state: of the run.
        schedule: settings; `val_every`, `epochs` and `decay_rate` are used.
    """

    def __init__(self, state: RunState, schedule: Schedule) -> None:
        self.state, self.schedule = state, schedule
        self.epochs = evaluated_epochs(schedule.val_every, schedule.epochs)

    def run(
        self,
        epoch: int,
        evaluate: Callable[..., Result],
        after_batch: Callable[[], None],
    ) -> tuple[Result | None, Result | None]:
        """Evaluate after `epoch` if it is due.

        Args:
            epoch: number of the epoch.
            evaluate: the engine's function; called with `after_batch`, which it calls after each batch.
            after_batch: called without arguments.

        Returns the result of the weights and that of the averaged weights; None for either that is not
        evaluated.
        """
        if epoch not in self.epochs:
            return None, None
        plain = evaluate(after_batch=after_batch)
        if self.state.ema is None:
            return plain, None
        with self.state.ema.in_place():
            return plain, evaluate(after_batch=after_batch)

    def record(
        self, epoch: int, plain: Result, averaged: Result | None, scalars: Any
    ) -> tuple[bool, dict[str, Any]]:
        """Print an evaluation and add it to VisualDL.

        Args:
            epoch: number of the epoch.
            plain: result of the weights.
            averaged: result of the averaged weights, or None.
            scalars: VisualDL writer, or None.

        The best epoch, and --sched plateau, follow the averaged weights if there are any.

        Returns whether the epoch is the best so far, and its entries of log.txt.
        """
        best = self._judge(epoch, plain if averaged is None else averaged)
        score = (
            f"Max accuracy: {self.state.max_accuracy:.2f}%"
            if "acc1" in plain
            else f"Min loss: {self.state.min_loss:.4f}"
        )
        results = {"test": plain} if averaged is None else {"test": plain, "test_ema": averaged}
        if averaged is not None:
            console.say(epoch_log.evaluation(plain))
        line = epoch_log.evaluation(plain) if averaged is None else epoch_log.evaluation(averaged, ema=True)
        console.say(f"{line}   {score}")
        entries: dict[str, Any] = {}
        for prefix, result in results.items():
            for name in ("loss", "acc1", "acc5"):
                if name in result:
                    entries[f"{prefix}_{name}"] = result[name]
                    if scalars:
                        scalars.add_scalar(f"perf/{prefix}_{name}", result[name], epoch)
        if plain["left_out"]:  # the accuracy covers fewer images
            entries["test_left_out"] = plain["left_out"]
        if "acc1" in plain:
            entries["n_parameters"] = sum(
                p.size for p in self.state.model.parameters() if not p.stop_gradient
            )
        return best, entries

    def _judge(self, epoch: int, result: Result) -> bool:
        """Update the best scores and the plateau schedule. Returns whether the epoch is the best so far."""
        state = self.state
        if "acc1" in result:
            best, score = result["acc1"] > state.max_accuracy, result["acc1"]
            state.max_accuracy = max(state.max_accuracy, result["acc1"])
            if best:
                state.confusion = confusion.pack(result["confusion"], epoch)
        else:
            best, score = result["loss"] < state.min_loss, -result["loss"]
            state.min_loss = min(state.min_loss, result["loss"])
        # All processes use the score of the first one: scores may differ in the last digit between
        # processes, but learning rates must not.
        if state.plateau is not None and state.plateau.observe(
            epoch, distributed.all_sum([score if distributed.is_main() else 0.0])[0]
        ):
            console.say(
                f"no better evaluation in {state.plateau.patience + 1} epoch(s): the learning rate "
                f"falls to {self.schedule.decay_rate} of what it was; reductions so far: "
                f"{state.plateau.reductions}"
            )
        return best
