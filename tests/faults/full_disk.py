"""Runs whose disk is too small or fills up: they stop with an error, lose nothing, and can be resumed.

    python tests/faults/full_disk.py --record full_disk.json

The disk is a small tmpfs in its own mount namespace (`unshare`), which ends with this program. The record says so if
neither root nor a user namespace can mount one. Another tenant fills it to the last byte before any of the
operations on files, or leaves a part of what a checkpoint needs, so that a write fails in its middle.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

NAMESPACE = "MAE_FAULT_NAMESPACE"  # set once we are in it
MIB = 2**20
ROOMY = 400  # MiB, for all that a run writes
EPOCHS = 3
SENTENCE = r"^main_\w+\.py: error: .*(space|disk)"


def enter_namespace():
    """Start this program again where it may mount; why that is not possible, if it is not."""
    reasons = []
    for how in (["unshare", "-m"], ["unshare", "-rm"]):
        try:
            tried = subprocess.run(
                [*how, "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"], capture_output=True, text=True
            )
        except FileNotFoundError:
            return "there is no program unshare"
        if tried.returncode == 0:
            os.execvpe(how[0], [*how, sys.executable, *sys.argv], {**os.environ, NAMESPACE: "1"})
        reasons.append(f"{' '.join(how)}: {tried.stderr.strip()}")
    return "; ".join(reasons)


class Disk:
    """A tmpfs of some MiB at a folder."""

    def __init__(self, folder, size):
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(folder)], check=True)

    def fill(self, leave=0):
        """Another one's file takes all but `leave` bytes."""
        with open(self.folder / "of another", "ab", buffering=0) as f, contextlib.suppress(OSError):
            status = os.statvfs(self.folder)
            os.posix_fallocate(f.fileno(), 0, max(1, status.f_bavail * status.f_frsize - leave))
            while leave == 0:
                f.write(bytes(4096))

    def free(self):
        (self.folder / "of another").unlink(missing_ok=True)

    def empty(self):
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def remove(self):
        subprocess.run(["umount", "-l", str(self.folder)], check=True)


class FullDisk:
    """The tests; each returns a record with what was lost.

    Args:
        folder: for data, logs and the disk.
        rng: random.Random.
    """

    def __init__(self, folder, rng):
        import file_operations
        import forked_runs
        import small_runs

        self.file_operations, self.forked, self.small = file_operations, forked_runs, small_runs
        self.folder, self.rng = folder, rng
        self.data = small_runs.make_data(folder / "data")

    def _run(self, case, out, at=None, act=None):
        operations = self.file_operations.FileOperations(out, at, act)
        ended = self.forked.run(
            case.words(self.data, out, epochs=EPOCHS),
            processes=case.processes,
            said_in=self.folder / "said.txt",
            prepare=operations.install,
        )
        return ended, operations.operations()

    def too_small(self, case):
        """Disks of growing size: a run either refuses before its first epoch, or gets to its end."""
        start, lost, smallest, largest, tried = time.monotonic(), [], 1, ROOMY, 0
        while smallest < largest:
            size = (smallest + largest) // 2
            disk = Disk(self.folder / "disk", size)
            ended, _ = self._run(case, disk.folder / "out")
            tried += 1
            if ended.code == 0:
                largest = size
            else:
                smallest = size + 1
                lost += [f"{size} MiB: {line}" for line in self._wrong(ended)]
                if "Epoch: [" in ended.said:
                    lost.append(f"{size} MiB: it trained before it said so: {_tail(ended)}")
                lost += [f"{size} MiB: left {path.name}" for path in disk.folder.rglob("*.p*")]
            disk.remove()
        return self._record(case, "too small", start, tried, lost, smallest_mib=smallest)

    def fills_up(self, case, sample=None):
        """Filled before an operation, to the last byte or nearly so."""
        start, lost, codes = time.monotonic(), [], Counter()
        disk = Disk(self.folder / "disk", ROOMY)
        whole = self.folder / f"whole of {case.name}"
        out = disk.folder / "out"
        ended, names = self._run(case, out)
        if ended.code != 0:
            raise RuntimeError(f"{case.name}: the undisturbed run ended with {ended.codes}: {_tail(ended)}")
        shutil.copytree(out, whole, dirs_exist_ok=True)
        checkpoint_bytes = (out / "checkpoint-latest.pd").stat().st_size
        numbers = range(len(names))
        if sample is not None and sample < len(numbers):
            numbers = sorted(self.rng.sample(numbers, sample))
        before = self.folder / "before.json"
        for number in numbers:
            disk.empty()
            before.unlink(missing_ok=True)
            leave = self.rng.choice([0, 0, self.rng.randrange(4096, checkpoint_bytes)])

            def fill(operations):
                before.write_text(json.dumps(self.small.progress(out)))
                disk.fill(leave)

            ended, _ = self._run(case, out, number, fill)
            codes[str(ended.code)] += 1
            found = []
            if ended.code != 0 or ended.hung:
                found += self._wrong(ended)
                found += [f"left {path.name}" for path in out.glob("*.part")]
            broken = {path.name for path in out.glob("checkpoint*.pd")} - self.small.whole_checkpoints(
                out
            ).keys()
            found += [f"not whole: {name}" for name in sorted(broken)]
            now = self.small.progress(out)
            if before.exists() and now < (reached := tuple(json.loads(before.read_text()))):
                found.append(f"checkpoints are at {now}, and were at {reached} when the disk was filled")
            disk.free()
            again, _ = self._run(case, out)
            if again.code != 0:
                found.append(f"with space again it ended with {again.codes}: {_tail(again)}")
            found += self.small.differences(whole, out)
            lost += [f"at operation {number}, {names[number]}, {leave} bytes left: {line}" for line in found]
        disk.remove()
        return self._record(case, "fills up", start, len(numbers), lost, exit_codes=codes)

    def fills_up_for_real(self, case):
        """The same through the command line, launcher included, after the first checkpoint."""
        from real_runs import RealRun

        start, lost = time.monotonic(), []
        disk = Disk(self.folder / "disk", ROOMY)
        out = disk.folder / "out"
        words = case.words(self.data, out, epochs=EPOCHS * 3)
        run = RealRun(
            words, processes=case.processes, output_dir=out, logs=Path(tempfile.mkdtemp(dir=self.folder), "l")
        )
        if run.wait_until(lambda: (out / "checkpoint-latest.pd").exists()):
            disk.fill()
        code, _ = run.finish()
        if code != self.small.USER_ERROR or not re.search(
            SENTENCE, run.said() + run.own_said(), re.MULTILINE
        ):
            lost.append(f"exit code {code}: {run.said()[-500:]}{run.own_said()[-500:]}")
        lost += [f"left {path.name}" for path in out.glob("*.part")]
        if not self.small.whole_checkpoints(out):
            lost.append("no checkpoint is whole")
        disk.free()
        again = RealRun(
            words, processes=case.processes, output_dir=out, logs=Path(tempfile.mkdtemp(dir=self.folder), "l")
        )
        code, _ = again.finish()
        if code != 0:
            lost.append(f"with space again it ended with {code}: {again.said()[-500:]}")
        whole = disk.folder / "whole"
        RealRun(
            case.words(self.data, whole, epochs=EPOCHS * 3),
            processes=case.processes,
            output_dir=whole,
            logs=Path(tempfile.mkdtemp(dir=self.folder), "l"),
        ).finish()
        lost += self.small.differences(whole, out)
        disk.remove()
        return self._record(case, "fills up, real processes", start, 1, lost)

    def _wrong(self, ended):
        found = ["hung"] if ended.hung else []
        if set(ended.codes) != {self.small.USER_ERROR}:
            found.append(f"exit codes {ended.codes} instead of {self.small.USER_ERROR}: {_tail(ended)}")
        elif not re.search(SENTENCE, ended.said, re.MULTILINE):
            found.append(f"no sentence about space: {_tail(ended)}")
        if "Traceback" in ended.said:
            found.append(f"a traceback: {_tail(ended)}")
        return found

    @staticmethod
    def _record(case, what, start, tried, lost, **more):
        return {
            "case": case.name,
            "what": what,
            "tried": tried,
            "lost": lost,
            **more,
            "seconds": round(time.monotonic() - start, 1),
        }


def _tail(ended):
    return " | ".join(ended.said.strip().splitlines()[-3:])


def cases(Case):
    policies = {
        "epochs": [],
        "steps": ["--save_steps", 4],
        "async": ["--save_steps", 4, "--save_async", "--keep", 2],
    }
    return [
        *(
            Case(script, policy=policy)
            for script in ("pretrain", "finetune", "linprobe")
            for policy in policies.values()
        ),
        *(Case("pretrain", processes=2, policy=policy) for policy in policies.values()),
        Case("finetune", workers=2, processes=2, policy=policies["async"]),
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--operations", type=int, default=None, help="of a case, to try; not given: all")
    parser.add_argument("--cases", default="", help="regular expression: only cases with such a name")
    parser.add_argument(
        "--only",
        nargs="+",
        default=["too_small", "fills_up", "fills_up_for_real"],
        help="methods of FullDisk",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", default="", help="JSON file for the results")
    args = parser.parse_args()
    skipped = "" if NAMESPACE in os.environ else enter_namespace()
    import small_runs

    if skipped:
        return small_runs.write_record(
            args.record, {"totals": {"skipped": skipped, "lost": []}, "results": []}
        )
    folder = Path(tempfile.mkdtemp(prefix="mae_disk_"))
    disk, start, results = FullDisk(folder, random.Random(args.seed)), time.monotonic(), []
    for case in cases(small_runs.Case):
        if not re.search(args.cases, case.name):
            continue
        for what in args.only:
            if what == "fills_up_for_real" and case.script != "pretrain":
                continue
            results.append(
                disk.fills_up(case, args.operations) if what == "fills_up" else getattr(disk, what)(case)
            )
            result = results[-1]
            print(
                f"{case.name}: {result['what']}: {result['tried']} times, {result['seconds']} s, "
                f"lost: {small_runs.told(result['lost'])}",
                flush=True,
            )
    lost = [f"{result['case']}: {line}" for result in results for line in result["lost"]]
    totals = {
        "full disks": sum(result["tried"] for result in results),
        "lost": lost,
        "seconds": round(time.monotonic() - start),
    }
    small_runs.write_record(args.record, {"arguments": vars(args), "totals": totals, "results": results})
    if not lost:
        shutil.rmtree(folder)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
