"""--dry_run: would this run go well? Data, schedule, memory, disk and time of a run, without writing anything.

Reasons against the run are collected and told together at the end; what stops every run before (wrong options, classes
that differ) has been an error by then.
"""
import contextlib
import itertools
import json
import math
import multiprocessing
import os
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import paddle

from util.compute import cpu_runtime
from util.data.bad_images import MORE, BadImages
from util.images.decode import UnreadableImage
from util.run.checkpoints import in_words
from util.run.epoch_log import EpochLog
from util.run.training_run import evaluated_epochs
from util.system import distributed
from util.weights import sealed_pickle

try:
    import resource
except ImportError:  # Windows, where nothing limits memory
    resource = None

READING_SECONDS = 15    # for looking at pictures, training and val together
MICRO_BATCHES = 4       # of an update, at most: more of them need no more memory and teach nothing about time
QUICK, UPDATES = 0.3, 10    # updates that take less than so many seconds are measured by so many
EVAL_BATCHES = 3
ALL_CLASSES = 20        # so many are listed one by one
SMALLEST = 3            # classes that are named where there are more
IMBALANCE = 10          # pictures of the largest class to one of the smallest, from which on there is a hint
GOLDEN = (math.sqrt(5) - 1) / 2


def examine(run, loader, train, *, lr_at, val_loader=None, evaluate=None):
    """Print what is to be known about a run that is about to begin; ValueError with all reasons against it.

    Every process must call it. A few updates are really made, so that model and optimizer are of no use afterwards.

    Args:
        run: util.run.training_run.TrainingRun, resumed if it is to be.
        train: the engine's train_one_epoch as a function (model, loader, *, log, accum_iter).
        lr_at: the learning rate as a function of the fractional epoch.
        val_loader, evaluate: for classifiers; `evaluate` is the engine's as a function (model, loader).
    """
    report = _Report()
    options = run.options
    splits = [("train", loader)] if val_loader is None else [("train", loader), ("val", val_loader)]
    report.line("dry run", f"{distributed.world_size()} process(es) on {paddle.get_device()}; nothing is written, and "
                           "what is trained is thrown away")
    _tell_images(report, splits, options.get("nb_classes"))
    checked = _tell_unreadable(report, splits)
    _tell_schedule(report, loader, lr_at, options, run.start_epoch)

    for _, of_split in splits:
        of_split.bad_images = _Noted("skip", of_split.bad_images.split, of_split.bad_images.total)
    memory = Memory.now()
    step, tested = _steps(report, run, loader, train, memory, val_loader, evaluate)
    size = _checkpoint_size(run) if step else None  # before the next line: packing takes memory, too
    _tell_memory(report, memory, [part.workers for part in (step, tested) if part])
    _tell_disk(report, run, size, classifier=evaluate is not None)
    if step:
        _tell_time(report, [(loader, step, checked["train"]), (val_loader, tested, checked.get("val"))],
                   options["epochs"] - run.start_epoch, _evaluations(options))
    for split, of_split in splits:
        checked[split].bad.update(of_split.bad_images.reasons)  # those met in the updates
        report.against(checked[split].reason(options["bad_images"], split))
    report.end()


class _Report:
    """Lines under titles, on the first process, and what speaks against the run on any."""

    def __init__(self):
        self.reasons = []

    def line(self, title, text):
        if distributed.is_main():
            print(f"{title:<12}{text}", flush=True)

    def against(self, reason):
        """Keep a reason not to start the run; nothing for an empty one."""
        if reason and reason not in self.reasons:
            self.reasons.append(reason)

    def end(self):
        """Tell the verdict; ValueError, on all processes, if any of them has reasons."""
        told = distributed.all_bytes(json.dumps(self.reasons).encode())
        reasons = list(dict.fromkeys(reason for part in told for reason in json.loads(part)))
        if reasons:
            raise ValueError(f"dry run: {len(reasons)} reason(s) why this run would not go well:" + "".join(
                f"\n  {number}. {reason}" for number, reason in enumerate(reasons, 1)))
        self.line("dry run:", "nothing found that would stop this run")


# ---- data

def _tell_images(report, splits, outputs):
    sources = {split: loader.dataset.samples.images for split, loader in splits}
    for split, images in sources.items():
        report.line(split, f"{len(images):,} pictures" + ("" if images.labels is None else
                                                          f" of {len(images.classes):,} classes"))
    if sources["train"].labels is None:
        report.line("classes", "not read: pretraining has no use for them")
        return
    classes = sources["train"].classes  # datasets.check_same_classes has compared them
    counts = {split: np.bincount(images.labels, minlength=len(classes)) for split, images in sources.items()}
    report.line("classes", "the same in train and val"
                + (f"; --nb_classes {outputs} leaves {outputs - len(classes)} outputs without a class"
                   if outputs > len(classes) else ""))
    if len(classes) <= ALL_CLASSES:
        width = max(map(len, classes))
        for name, *numbers in zip(classes, *counts.values()):
            report.line("", f"{name:<{width}}  " + "  ".join(f"{split} {number:,}"
                                                             for split, number in zip(counts, numbers)))
    else:
        for split, number in counts.items():
            smallest = ", ".join(f"{classes[at]} {number[at]:,}" for at in np.argsort(number, kind="stable")[:SMALLEST])
            report.line("", f"{split}: {number.min():,} to {number.max():,} pictures a class, median "
                            f"{np.median(number):,.0f}; smallest: {smallest}")
    least, most = counts["train"].min(), counts["train"].max()
    if least == 0:
        empty = [classes[at] for at in np.flatnonzero(counts["train"] == 0)]
        report.line("hint", f"{len(empty)} of {len(classes)} classes have no training pictures: "
                            f"{', '.join(empty[:SMALLEST])}{', ...' if len(empty) > SMALLEST else ''}")
    elif most >= IMBALANCE * least:
        report.line("hint", f"the largest class has {most / least:.0f} times the training pictures of the smallest: "
                            "accuracy will mostly be that of the large ones")


class Checked:
    """What looking at pictures of a split has found, over all processes.

    total, tried: pictures; bad: {name: reason} of those that cannot be read, to which others may be added; share: of
    those tried that cannot be read; seconds: that it took each process; threads: of them all; cpu: processor seconds of
    them all.
    """

    def __init__(self, total, tried, bad, *, seconds, threads, cpu):
        self.total, self.tried, self.bad, self.share = total, tried, bad, len(bad) / tried
        self.seconds, self.threads, self.cpu = seconds, threads, cpu

    def loading_seconds(self, num_workers, cores):
        """Roughly, what a picture takes a training process: (all its cores together, its workers).

        Args:
            cores: of the process; workers cannot use more at once.
        """
        cpu = self.cpu / self.tried
        if self.cpu >= 0.9 * self.seconds * distributed.world_size():
            return cpu / cores, cpu / min(num_workers, cores)  # computing, in which Python's threads disturb each other
        return cpu / cores, self.seconds * self.threads / self.tried / num_workers  # waiting for the drive

    def reason(self, action, split):
        """Why --bad_images `action` would end the run, or ""."""
        expected = max(len(self.bad), round(self.share * self.total))
        allowed = BadImages(action, split, self.total).allowed
        if not self.bad or expected <= allowed:
            return ""
        name, why = min(self.bad.items())
        if action == "error":
            more = f" (and {len(self.bad) - 1} more)" if len(self.bad) > 1 else ""
            return (f"{split}: {name} cannot be read: {why}{more}. Repair such pictures, take them out of the data, or "
                    "pass --bad_images skip.")
        about = "" if self.tried == self.total else "about "
        return (f"{split}: {about}{expected:,} of {self.total:,} pictures cannot be read, such as {name}: {why}; "
                f"--bad_images skip goes on without 1 % at most, here {allowed:,}.")


def check_pictures(samples, seconds, threads):
    """Load as many samples as `seconds` allow, evenly spread, always in the same order; returns Checked.

    Every process must call it, and does its part.

    Args:
        samples: util.data.loaders.Samples: what is looked at is what training does with a picture.
        threads: of this process.
    """
    order = itertools.islice(spread(len(samples)), distributed.rank(), None, distributed.world_size())
    started = time.perf_counter()

    def work():
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

    tried, bad, cpu = 0, {}, 0.0
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work) for _ in range(threads)]:
            one_tried, one_bad, one_cpu = future.result()
            tried, cpu = tried + one_tried, cpu + one_cpu
            bad.update(one_bad)
    seconds = time.perf_counter() - started
    tried, cpu, threads = distributed.all_sum([tried, cpu, threads])
    parts = distributed.all_bytes(json.dumps(bad).encode())
    return Checked(len(samples), int(tried), {name: why for part in parts for name, why in json.loads(part).items()},
                   seconds=seconds, threads=threads, cpu=cpu)


def spread(total):
    """An iterator over range(total), each number once, whose beginning is evenly spread however long it is.

    Steps of the golden section, modulo `total`. Threads may share it.
    """
    step = next(step for step in itertools.count(max(1, round(GOLDEN * total))) if math.gcd(step, total) == 1)
    return map(lambda number: number * step % total, iter(range(total)))


def _tell_unreadable(report, splits):
    """{split: Checked}."""
    checked, left = {}, READING_SECONDS
    total = sum(len(loader.dataset) for _, loader in splits)
    for split, loader in splits:
        samples = loader.dataset.samples
        seconds = left if split == splits[-1][0] else left * min(len(samples) / total, 0.8)
        threads = min(max(loader.num_workers, math.ceil(_cores())), 32)  # some drives are slow to answer
        checked[split] = found = check_pictures(samples, seconds, threads)
        left -= found.seconds
        report.line("reading", f"checked {found.tried:,} of {found.total:,} {split} pictures in {found.seconds:.1f} s: "
                    + (f"{len(found.bad):,} cannot be read:" if found.bad else "all can be read"))
        for name, why in sorted(found.bad.items())[:MORE]:
            report.line("", f"{name}: {why}")
        if len(found.bad) > MORE:
            report.line("", f"and {len(found.bad) - MORE:,} more")
    return checked


# ---- schedule

def _tell_schedule(report, loader, lr_at, options, start_epoch):
    steps, accum_iter, epochs = len(loader), options["accum_iter"], options["epochs"]
    batch = options["batch_size"] * distributed.world_size()
    updates, left = -(-steps // accum_iter), epochs - start_epoch
    report.line("an epoch", f"{steps:,} steps, {updates:,} updates of {batch * accum_iter:,} pictures (batch "
                            f"{options['batch_size']} x accum {accum_iter} x {distributed.world_size()} process(es)); "
                            f"pictures left out at its end: {len(loader.dataset) - steps * batch:,}")
    if steps % accum_iter:
        report.line("", f"its last update has {steps % accum_iter} of {accum_iter} micro-batches")
    if left <= 0:
        report.line("epochs", f"nothing is left to do: --resume or --start_epoch begins with epoch {start_epoch}, and "
                              f"--epochs asks for {epochs}")
        return
    report.line("epochs", f"{start_epoch} to {epochs - 1}, {updates * left:,} updates")
    warmup, middle = options["warmup_epochs"], (start_epoch + epochs) / 2
    last = epochs - 1 + (steps - 1) // accum_iter * accum_iter / steps
    when = {start_epoch: "at first", middle: f"at epoch {middle:g}", last: "at the last update"}
    if start_epoch < warmup < epochs:
        when[warmup] = f"after warm-up, at epoch {warmup}"
    report.line("lr", ", ".join(f"{lr_at(epoch):.3g} {text}" for epoch, text in sorted(when.items())))
    if warmup >= epochs:
        report.line("warning", f"--warmup_epochs {warmup} is not less than --epochs {epochs}: the run ends before the "
                               "learning rate is what was asked for")


# ---- two updates

class _Noted(BadImages):
    """Goes on for as long as any picture is left."""

    @property
    def allowed(self):
        return self.total - 1


class FirstBatches:
    """The first batches of a loader, and what they took: as long as the whole one, since engines go by len().

    waits, seconds: for each batch, how long it was waited for, and how long it was at work. On a GPU, until that is
    done. workers: bytes of the processes that load, when the last batch was there.
    """

    def __init__(self, loader, batches):
        self.loader, self.count = loader, batches
        self.bad_images, self.num_workers = loader.bad_images, loader.num_workers
        self.waits, self.seconds, self.workers = [], [], 0

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        batches = iter(self.loader)
        for number in range(self.count):
            asked = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            given = time.perf_counter()
            if number + 1 == self.count:
                self.workers = sum(_private_bytes(worker.pid) for worker in multiprocessing.active_children())
            yield batch
            if paddle.get_device() != "cpu":
                paddle.device.cuda.synchronize()
            self.waits.append(given - asked)
            self.seconds.append(time.perf_counter() - given)
        batches.close()


class _QuietLog(EpochLog):
    """Reads every loss, and says nothing."""

    def batches(self, loader):
        self.bad_images, self.bar = loader.bad_images, None
        yield from enumerate(loader)

    def means(self):
        return {}


class _Part:
    """What was measured of a loader: seconds of work and of waiting a batch, once it runs; bytes of its workers."""

    def __init__(self, batches, warmup):
        self.seconds = statistics.fmean(batches.seconds[warmup:] or batches.seconds)
        self.wait = statistics.fmean(batches.waits[warmup:] or batches.waits)
        self.workers = batches.workers


def _steps(report, run, loader, train, memory, val_loader, evaluate):
    """Make updates and evaluate a few batches; (_Part of training, _Part of evaluation), or None for either."""
    step = tested = None
    parallel = distributed.data_parallel(run.model)
    asked = run.options["accum_iter"]
    accum_iter = min(asked, MICRO_BATCHES)
    loader.batch_sampler.set_epoch(run.start_epoch)
    losses = []

    def make(updates):
        """_Part of training on the first batches, without those of the first update."""
        batches = FirstBatches(loader, updates * accum_iter)
        log = _QuietLog(run.start_epoch, len(loader), print_freq=1)
        train(parallel, batches, log=log, accum_iter=accum_iter)
        losses.extend(log.losses)
        return _Part(batches, accum_iter)

    with _failures(report, "training", memory):
        step = make(2)
        seconds = distributed.all_sum([step.seconds])[0] / distributed.world_size()  # all must come to the same end
        if len(loader) <= accum_iter or accum_iter * seconds < QUICK:
            step = make(UPDATES)
        of = "" if accum_iter == asked else f" (of {accum_iter} micro-batches, not {asked})"
        images = run.options["batch_size"] * distributed.world_size()
        report.line("updates", f"{len(losses) // accum_iter} made{of}, loss {losses[0]:.4f} to {losses[-1]:.4f}; "
                               f"{step.seconds:.3g} s for {images:,} pictures, {images / step.seconds:.3g} pictures/s")
        if not all(map(math.isfinite, losses)):
            report.against(f"the loss of the first updates is not finite: {losses}")
        if evaluate is not None:
            batches = FirstBatches(val_loader, EVAL_BATCHES)
            evaluate(run.model, batches)
            if batches.seconds:  # with shared evaluation, a process may have none
                tested = _Part(batches, 1)
                report.line("evaluation", f"{tested.seconds:.3g} s a batch")
    return step, tested


@contextlib.contextmanager
def _failures(report, where, memory):
    """What goes wrong in the body becomes a reason. A process that fails alone ends at once: others wait for it."""
    try:
        with capped(memory.left / _local_processes()):
            yield
        return
    except FloatingPointError as error:  # met by all processes in the same step
        report.against(str(error))
        report.line("updates", "stopped by a loss that is not finite")
        return
    except (MemoryError, RuntimeError, SystemError) as error:
        if not isinstance(error, MemoryError) and "ResourceExhausted" not in str(error):
            raise
        reason = (f"{where} needs more memory than there is: {in_words(memory.left)} were left of {memory}, for "
                  f"{_local_processes()} process(es). Lower --batch_size and raise --accum_iter, or pass --recompute")
        if paddle.get_device() != "cpu":
            reason = (f"{where} needs more memory than the GPU has. Lower --batch_size and raise --accum_iter, or pass "
                      "--recompute")
    if distributed.world_size() > 1:
        raise ValueError(reason)
    report.line("updates", "stopped for want of memory")
    report.against(reason)


# ---- memory

class Memory:
    """What this machine or container can give: bytes in all and bytes left, and what sets the limit, as words."""

    def __init__(self, total, left, what):
        self.total, self.left, self.what = total, left, what

    def __str__(self):
        return f"{in_words(self.total)} ({self.what})"

    @classmethod
    def now(cls, proc="/proc", cgroups="/sys/fs/cgroup"):
        """By /proc/meminfo and the control groups of this process, of version 1 or 2; what is smaller counts.

        Memory that holds copies of files is counted as left. Without /proc, all is without bounds.
        """
        try:
            info = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path(proc, "meminfo").read_text(), re.MULTILINE))
            found = cls(int(info["MemTotal"]) * 1024, int(info["MemAvailable"]) * 1024, "the machine's")
            groups = Path(proc, "self", "cgroup").read_text().splitlines()
        except OSError:
            return cls(math.inf, math.inf, "not known here")
        for line in groups:
            _, controllers, path = line.split(":", 2)
            version, root, names = (2, Path(cgroups), ("memory.max", "memory.current", "inactive_file"))
            if "memory" in controllers.split(","):
                version, root = 1, root / "memory"
                names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            elif controllers:
                continue
            folder = root / path.lstrip("/")
            for group in (folder, *(parent for parent in folder.parents if parent.is_relative_to(root))):
                with contextlib.suppress(OSError, ValueError, KeyError):  # no such group here, or "max": no limit
                    limit = int((group / names[0]).read_text())
                    kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                    left = limit - int((group / names[1]).read_text()) + int(kept[names[2]])
                    if limit < found.total:
                        found = cls(limit, min(found.left, max(0, left)), f"the limit of cgroup v{version}")
        return found


@contextlib.contextmanager
def capped(more):
    """Within, this process gets a MemoryError instead of more than `more` further bytes; a kernel would kill it.

    Linux alone, and only for training on a CPU: drivers of a GPU map more than they use.
    """
    if resource is None or paddle.get_device() != "cpu" or more == math.inf:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _status("VmData") + int(more)
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _tell_memory(report, memory, workers):
    # The numbers of the other processes count, too: all of a machine share its memory.
    mine = [_status("VmHWM"), max(workers, default=0)]
    processes, local = distributed.world_size(), _local_processes()
    peak, of_workers = (value * local / processes for value in distributed.all_sum(mine))
    if not peak:  # no /proc
        return
    needed = peak + of_workers
    report.line("memory", f"{in_words(peak)} at most"
                + (f", and workers {in_words(of_workers)}" if of_workers else "")
                + f"; there are {memory}")
    if paddle.get_device() != "cpu":
        used = paddle.device.cuda.max_memory_allocated()
        report.line("GPU memory", f"{in_words(used)} at most of "
                                  f"{in_words(paddle.device.cuda.get_device_properties().total_memory)}")
    if needed > memory.total:
        report.against(f"{local} process(es) and their workers need {in_words(needed)} of memory, and there are "
                       f"{memory}. Lower --batch_size or --num_workers")
    elif needed > 0.9 * memory.total:
        report.line("warning", "this is more than nine tenths of the memory")


def _status(name):
    """Bytes of an entry of /proc/self/status; 0 where there is none."""
    try:
        match = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) * 1024


def _private_bytes(pid):
    """Memory that a process has for itself alone; 0 where the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(kilobytes) * 1024 for kilobytes in re.findall(r"^Private_\w+:\s+(\d+) kB", text, re.MULTILINE))


def _local_processes():
    return int(os.environ.get("PADDLE_LOCAL_SIZE", 1))


def _cores():
    """Of this process, of those that it may use with the others of this machine; a part of one if there are few."""
    return cpu_runtime.available_cores() / _local_processes()


# ---- disk

class _Counter:
    """A file that keeps nothing but its length."""

    def __init__(self):
        self.size = 0

    def write(self, data):
        length = memoryview(data).nbytes
        self.size += length
        return length


def _checkpoint_size(run):
    """Bytes of a checkpoint file of this run; 0 in processes that write none."""
    if not distributed.is_main():
        return 0
    counter = _Counter()
    sealed_pickle.dump(run.pack(run.start_epoch), counter)
    return counter.size


def _tell_disk(report, run, size, *, classifier):
    if not run.output_dir:
        report.line("disk", "--output_dir is empty: no checkpoint is written")
        return
    for folder, flag in {run.log_dir: "--log_dir", run.output_dir: "--output_dir"}.items():  # often the same
        report.against(_unwritable(flag, folder) if folder else "")
    if size is None:
        report.line("disk", "not known, since no update was made")
    elif distributed.is_main() and run.start_epoch < run.options["epochs"]:
        most = run.policy.most(run.start_epoch, best=classifier)
        try:
            needed, free = run.check_space(size)
        except ValueError as error:
            report.line("disk", f"a checkpoint takes {in_words(size)}, {most} at most: more than is free")
            report.against(str(error))
        else:
            report.line("disk", f"a checkpoint takes {in_words(size)}, {most} at most: {in_words(needed)} to be "
                                f"written, {in_words(free)} free")


def _unwritable(flag, folder):
    """Why nothing can be written to `folder`, which need not exist; or ""."""
    existing = _existing(folder)
    if not existing.is_dir():
        return f"{flag} {folder}: {existing} is a file, not a folder; name another folder"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"{flag} {folder}: there is no permission to write to {existing}; name another folder"
    return ""


def _existing(folder):
    """`folder`, or the nearest folder or file above it that exists."""
    path = Path(folder).absolute()
    return next(above for above in (path, *path.parents) if above.exists())


# ---- time

def _evaluations(options):
    """How many there are an epoch, on average."""
    once = len(evaluated_epochs(options["val_every"], options["epochs"])) / options["epochs"]
    return 2 * once if options["ema"] else once


def _tell_time(report, parts, epochs, evaluations):
    """`parts`: (loader, _Part, Checked) of training and of evaluation, or None in them; evaluations: an epoch."""
    seconds = {"training": 0.0, "evaluation": 0.0, "waiting for data": 0.0}
    for name, (loader, part, checked), times in zip(seconds, parts, (1, evaluations)):
        if part is not None:
            seconds[name] += times * len(loader) * part.seconds
            seconds["waiting for data"] += times * len(loader) * _waiting(loader, part, checked)
    total = sum(seconds.values())
    report.line("time", f"an epoch takes about {duration(total)} ("
                + ", ".join(f"{name} {100 * of_it / total:.0f} %" for name, of_it in seconds.items() if of_it)
                + (f"), {epochs} of them {duration(epochs * total)}" if epochs > 1 else ")"))


def _waiting(loader, part, checked):
    """Seconds that a batch has to be waited for, or that its workers take from it on a CPU, roughly."""
    if loader.num_workers == 0:
        return part.wait
    images = loader.batch_sampler.batch_size
    of_cores, of_workers = checked.loading_seconds(loader.num_workers, _cores())
    taken = images * of_cores if paddle.get_device() == "cpu" else 0.0
    return max(taken, images * of_workers - part.seconds)


def duration(seconds):
    """Seconds as "3 d 4 h 12 m"; under two minutes as "41 s"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    parts = [(minutes // 1440, "d"), (minutes // 60 % 24, "h"), (minutes % 60, "m")]
    first = next(at for at, (number, _) in enumerate(parts) if number)
    return " ".join(f"{number} {unit}" for number, unit in parts[first:])
