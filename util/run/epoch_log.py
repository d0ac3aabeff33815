"""What a run tells while it goes on: console lines or a progress bar, the means of an epoch, VisualDL points."""
import datetime
import math
import statistics
import time
from collections import deque

import numpy as np
import paddle
from tqdm import tqdm

from util.run import visualdl_writer
from util.system import console, distributed
from util.system.console import say

# All of it fits into 80 columns, which tqdm's own form would cut off before the images/s.
BAR = "{desc} |{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"
SECONDS_BETWEEN_LINES = 30
MOST_UNREAD = 20  # losses; until they are read, several processes do not know either whether one is to stop


def evaluation(result, *, ema=False):
    """The line of an evaluation, in the form of the official code; in pretraining there is a loss alone.

    Args:
        ema: whether it is one of averaged weights.
    """
    line = "* EMA " if ema else "* "
    line += (f"Acc@1 {result['acc1']:.3f} Acc@5 {result['acc5']:.3f} loss {result['loss']:.3f}" if "acc1" in result
             else f"val loss {result['loss']:.4f}")
    if result["left_out"]:
        line += f" ({result['images']} pictures; {result['left_out']} left out that cannot be read)"
    return line


def advice(share, share_later, num_workers):
    """A sentence about waiting for more than a tenth of the time, else "".

    Args:
        share, share_later: parts of an epoch, and of an epoch without its first batch, that steps waited for data.
        num_workers: of the loader; None if it does not say.
    """
    if share <= 0.1:
        return ""
    if share_later <= 0.1:
        return (f"waited for data {100 * share:.0f} % of the time, mostly for the first batch, when the workers start "
                "(longer epochs wait less)")
    now = "" if num_workers is None else f" (now {num_workers})"
    return (f"waited for data {100 * share:.0f} % of the time: raise --num_workers{now}, pack the images with "
            "tools/pack_dataset.py, or use --image_backend fast")


class EpochLog:
    """Times the steps of an epoch, averages what it is told, shows it: a bar on a terminal, else a line now and then.

    A loss stays on the device until a line is due, since reading it waits for the device; on a CPU there is no wait
    and each is read at once. What is read is the mean over all processes, so all of them see a bad value together; and
    a number travels with it that lets them end together if they have met too many pictures that cannot be read.

    Waiting for data is all the time until the loader hands out a batch, the first one included, for which the workers
    have to start. A GPU may still be at work on earlier steps then: there it is what the GPU can wait at most.
    """

    def __init__(self, epoch, steps, *, print_freq=20, scalars=None, tag="train_loss", read_every=None, wishes=None):
        """
        Args:
            print_freq: steps between lines.
            scalars: a VisualDL writer or None; gets `tag`, lr and grad_norm at 1000 ths of an epoch, whatever the batch
                size, and the speed at the end.
            read_every: steps between readings of the loss; None: 1 on a CPU, else print_freq, at most MOST_UNREAD.
            wishes: gives the (stop, save) that this process wishes, as numbers; their sums over the processes are in
                `wished` after each reading; those of a single process, after each step. None: nobody wishes anything.
        """
        self.epoch, self.steps, self.print_freq = epoch, steps, print_freq
        self.scalars, self.tag = scalars, tag
        self.read_every = read_every or (min(print_freq, MOST_UNREAD) if paddle.get_device() != "cpu" else 1)
        self.wishes, self.wished = wishes or (lambda: (0, 0)), (0, 0)
        self.first_step = 0
        self.pending, self.losses, self.lrs = [], [], []
        self.pending_norms, self.grad_norms = [], []  # (step, norm) of each update
        self.step_time, self.data_time = deque(maxlen=20), deque(maxlen=20)
        self.waited = self.waited_first = 0.0  # seconds for all batches, and for the first one
        self.seconds, self.running = 0.0, False
        self.images, self.skipped, self.num_workers, self.bad_images = 0, 0, None, None

    def progress(self, step):
        """The plain values from which `restore` makes this log of the first `step` steps again."""
        seconds = time.perf_counter() - self.start if self.running else self.seconds
        return {"epoch": self.epoch, "step": step, "losses": np.array(self.losses), "lrs": np.array(self.lrs),
                "grad_norms": np.array(self.grad_norms).reshape(-1, 2), "images": self.images,
                "skipped": self.skipped, "seconds": seconds, "waited": self.waited, "waited_first": self.waited_first}

    def restore(self, progress, step):
        """Continue the epoch that `progress` is of, before step `step`.

        With another division into steps than it was made with, each of them gets the means.
        """
        for name in ("losses", "lrs"):
            values = progress[name].tolist()
            if len(values) != step:
                values = [statistics.fmean([value for value in values if math.isfinite(value)] or [math.nan])] * step
            setattr(self, name, values)
        self.grad_norms = [(int(at), norm) for at, norm in progress.get("grad_norms", np.empty([0, 2])).tolist()]
        for name in ("images", "skipped", "seconds", "waited", "waited_first"):
            setattr(self, name, progress[name])
        self.first_step = step

    def batches(self, loader):
        """Yield (step, batch), measuring how long each batch and each step took."""
        self.num_workers = getattr(loader, "num_workers", None)
        self.bad_images = getattr(loader, "bad_images", None)
        last = time.perf_counter()
        self.start, self.running = last - self.seconds, True
        show_bar = console.shows_bars() and distributed.is_main()
        self.bar = tqdm(total=self.steps, initial=self.first_step, desc=f"epoch {self.epoch}", leave=False,
                        bar_format=BAR) if show_bar else None
        for step, batch in enumerate(loader, self.first_step):
            ready = time.perf_counter()
            self.data_time.append(ready - last)
            self.waited += ready - last
            if step == self.first_step:
                self.waited_first += ready - last
            self.images += batch[0].shape[0] * distributed.world_size()
            yield step, batch
            now = time.perf_counter()
            self.step_time.append(now - last)
            last = now
            if self.bar:
                self.bar.update()
            elif step % self.print_freq == 0 or step + 1 == self.steps:
                say(self._line(step))
        self.seconds, self.running = time.perf_counter() - self.start, False
        if self.bar:
            self.bar.close()

    def update(self, step, loss, lr):
        """Take the loss (0-D tensor, mean over this process's images) of a step that is about to go backward.

        Returns the first step whose loss turned out not to be finite on some process, or None. ValueError for too many
        unreadable pictures.
        """
        self.pending.append(loss)
        self.lrs.append(lr)
        if step % self.read_every == 0 or step + 1 == self.steps:
            return self.read()
        if distributed.world_size() == 1:  # nobody else has to agree, and no device to tell
            self.wished = self.wishes()
        return None

    def update_made(self, step, norm):
        """Take the norm of the gradient (0-D tensor, the same on every process) of the update that ends in `step`."""
        self.pending_norms.append((step, norm))

    def read(self):
        """Read the losses that are still on the device; returns as `update`. Blocks until every process has called it.

        `own_losses` are those of this process, from step `steps_read` on.
        """
        self.steps_read = first = len(self.losses)
        self.own_losses = [value.item() for value in self.pending]
        *sums, stop, save, unreadable = distributed.all_sum([
            *self.own_losses, *self.wishes(),
            0 if self.bad_images is None else len(self.bad_images.new)])
        self.wished = stop, save
        if unreadable:
            self.bad_images.share()
        read = [value / distributed.world_size() for value in sums]
        self.pending = []
        self.losses += read
        if self.scalars:
            for at, value in enumerate(read, first):
                thousandth = visualdl_writer.thousandth(self.epoch, at / self.steps)
                self.scalars.add_scalar(self.tag, value, thousandth)
                self.scalars.add_scalar("lr", self.lrs[at], thousandth)
        self._read_norms()
        if self.bar and read:
            self.bar.set_postfix_str(f"loss {read[-1]:.4f}, lr {self.lrs[-1]:.1e}, {self._rate():.0f} images/s",
                                     refresh=False)
        return next((at for at, value in enumerate(read, first) if not math.isfinite(value)), None)

    def _read_norms(self):
        """Those of finite gradients: the others are of updates that loss scaling has left out."""
        for at, norm in self.pending_norms:
            value = norm.item()
            if math.isfinite(value):
                self.grad_norms.append((at, value))
                if self.scalars:
                    self.scalars.add_scalar("grad_norm", value, visualdl_writer.thousandth(self.epoch, at / self.steps))
        self.pending_norms = []

    def means(self):
        """{"lr", "loss", "grad_norm"}: means over the epoch, as log.txt has them, the last one over its updates, where
        there were any; what follows is over all processes.

        "images_per_s"; and "data_wait", the per cent of the epoch that a step waited for data, in the process where it
        is most: the others wait for that one. "skipped_updates", where there are any: how many were left out because a
        loss was not finite; such a loss is in no mean. Blocks until every process has called it.
        """
        share, share_later = self._shares_waited()
        data_wait, images_per_s = round(100 * share, 1), round(self.images / self.seconds, 1)
        say(f"Epoch: [{self.epoch}] Total time: {datetime.timedelta(seconds=int(self.seconds))} "
            f"({self.seconds / self.steps:.4f} s / it, {data_wait:.1f} % waiting for data)")
        means = {"lr": statistics.fmean(self.lrs),
                 "loss": statistics.fmean([loss for loss in self.losses if math.isfinite(loss)] or [math.nan])}
        self._read_norms()  # of the last update, which was made after the last loss was read
        if self.grad_norms:
            means["grad_norm"] = statistics.fmean(norm for _, norm in self.grad_norms)
        say(f"Averaged stats: lr: {means['lr']:.3e}  loss: {means['loss']:.4f}")
        say(advice(share, share_later, self.num_workers))
        say("" if self.bad_images is None else self.bad_images.summary())
        if self.scalars:
            self.scalars.add_scalar("data_wait", data_wait, self.epoch)
            self.scalars.add_scalar("images_per_s", images_per_s, self.epoch)
        skipped = {"skipped_updates": self.skipped} if self.skipped else {}
        return {**means, **skipped, "images_per_s": images_per_s, "data_wait": data_wait}

    def _shares_waited(self):
        """Parts of the epoch, and of the epoch without its first batch, spent waiting for data; over the processes."""
        later = self.seconds - self.waited_first
        mine = [self.waited / self.seconds, (self.waited - self.waited_first) / later if later > 0 else 0.0]
        rank, size = distributed.rank(), distributed.world_size()
        every = distributed.all_sum([share if process == rank else 0.0 for share in mine for process in range(size)])
        return max(every[:size]), max(every[size:])

    def _rate(self):
        return self.images / (time.perf_counter() - self.start)

    def _line(self, step):
        per_step = (time.perf_counter() - self.start) / (step + 1)
        eta = datetime.timedelta(seconds=int(per_step * (self.steps - step - 1)))
        width = len(str(self.steps))
        parts = [f"Epoch: [{self.epoch}]", f"[{step:{width}d}/{self.steps}]", f"eta: {eta}"]
        if self.losses:
            recent = statistics.median_low(self.losses[-20:])
            parts += [f"lr: {self.lrs[-1]:.3e}", f"loss: {recent:.4f} ({statistics.fmean(self.losses):.4f})"]
        parts += [f"time: {statistics.fmean(self.step_time):.4f}", f"data: {statistics.fmean(self.data_time):.4f}"]
        if paddle.get_device() != "cpu":
            parts.append(f"max mem: {paddle.device.cuda.max_memory_allocated() / 2 ** 20:.0f}")
        return "  ".join(parts)
