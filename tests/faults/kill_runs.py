"""Kill runs at random moments and between file operations, resume them, and compare with undisturbed runs.

    python tests/faults/kill_runs.py --kills 100 --seed 0 --record kills.json
    python tests/faults/kill_runs.py --kills 0 --operations all --record operations.json

Random moments (--kills) hit real processes, launcher and workers included. Forked children are hit before every
operation on a file of the output folder (--operations): by SIGKILL, by a loss of power that takes data not flushed to
the disk, and by the signals of a scheduler. Nothing may be lost: the last checkpoint with
weights, moments, scaler, accuracies, and log.txt must be those of the undisturbed run, bit for bit.
"""

import argparse
import itertools
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import small_runs
from real_runs import RealRun, signal_to
from small_runs import PAUSED, Case, differences, progress

EPOCHS = 6  # of a run that is killed at random moments
STEPS = 11  # of an epoch, in one process
LIVES = (6, 10)  # kills before a run is left in peace
SETUP_SECONDS = 2.5  # within which most of the time before the first step lies
TINY_MINUTES = 0.001  # 60 ms, a step or two

CASES = [
    Case("pretrain"),
    Case("pretrain", workers=2, policy=["--save_steps", 2], more=["--accum_iter", 3]),
    Case("pretrain", policy=["--save_steps", 1, "--save_async", "--keep", 2]),
    Case("pretrain", processes=2, policy=["--save_every_minutes", TINY_MINUTES]),
    Case("finetune", workers=2),
    Case("finetune", policy=["--save_steps", 2]),
    Case(
        "finetune", workers=2, processes=2, policy=["--save_steps", 1, "--save_async"], more=["--dist_eval"]
    ),
    Case("finetune", policy=["--save_every_minutes", TINY_MINUTES, "--keep", 1], more=["--fused_adamw"]),
    Case("linprobe", workers=2, policy=["--save_steps", 1]),
    Case("linprobe", policy=["--save_every_minutes", TINY_MINUTES, "--save_async"]),
    Case("linprobe", processes=2, policy=["--save_steps", 2]),
]

OPERATION_CASES = [
    Case(script, policy=policy)
    for script, policy in itertools.product(
        small_runs.SCRIPTS, ([], ["--save_steps", 2], ["--save_steps", 1, "--save_async", "--keep", 1])
    )
]
OPERATION_CASES += [
    Case("finetune", workers=2, policy=["--save_steps", 2]),
    Case("pretrain", processes=2, policy=["--save_steps", 2]),
]
OPERATION_EPOCHS = 2


class Kills:
    """Kills at random moments.

    Args:
        folder: for data, references and runs.
        rng: random.Random.
    """

    def __init__(self, folder, rng):
        self.folder, self.rng = folder, rng
        self.data = small_runs.make_data(folder / "data")
        self.wholes = {}

    def round(self, case, most):
        """Kill a run of `case` up to `most` times, until it ends; returns a record."""
        start = time.monotonic()
        whole = self._whole(case)
        run_dir = Path(tempfile.mkdtemp(dir=self.folder))
        out, lost, kills, lives = run_dir / "out", [], [], 0
        left = min(most, self.rng.randint(*LIVES))
        reached = progress(out)
        while True:
            lives += 1
            run = RealRun(
                case.words(self.data, out, epochs=EPOCHS),
                processes=case.processes,
                output_dir=out,
                logs=run_dir / f"life{lives}",
            )
            killed = self._kill(run, case) if left > 0 else None
            code, seconds = run.finish()
            if killed is None:
                if code != 0:
                    lost.append(f"life {lives}, left in peace, ended with {code}: {_tail(run)}")
                break
            left -= 1
            kills.append({**killed, "exit_code": code, "seconds_to_end": seconds})
            lost += [
                f"life {lives}, {killed['signal']} while {killed['phase']}: {line}"
                for line in _unexpected(killed, code, case, _tail(run))
            ]
            now = progress(out)
            if now < reached:
                lost.append(
                    f"life {lives}, {killed['signal']} while {killed['phase']}: checkpoints went "
                    "back from "
                    f"{reached} to {now}"
                )
            reached = max(now, reached)
            if code is None or len(lost) > 5:
                break
            if code == 0:
                break
        lost += differences(whole, out)
        if not lost:
            shutil.rmtree(run_dir)
        return {
            "case": case.name,
            "lives": lives,
            "kills": kills,
            "lost": lost,
            **({"kept_in": str(run_dir)} if lost else {}),
            "seconds": round(time.monotonic() - start, 1),
        }

    def _whole(self, case):
        """Return the folder of the undisturbed run."""
        if case.name not in self.wholes:
            folder = self.folder / f"whole{len(self.wholes)}"
            run = RealRun(
                case.words(self.data, folder, epochs=EPOCHS),
                processes=case.processes,
                output_dir=folder,
                logs=self.folder / f"{folder.name}_logs",
            )
            code, _ = run.finish()
            if code != 0:
                raise RuntimeError(f"{case.name}: the undisturbed run ended with {code}\n{_tail(run, 30)}")
            self.wholes[case.name] = folder
        return self.wholes[case.name]

    def _kill(self, run, case):
        """Wait for a random moment and send a random signal; returns a record, or None if the run has ended."""
        rng, steps = self.rng, STEPS // case.processes
        moment = rng.choices(["setup", "step", "epoch end", "writing"], [1, 4, 2, 4])[0]
        if moment == "setup":
            arrived = run.wait(rng.uniform(0, SETUP_SECONDS))
        elif moment == "step":
            arrived = run.wait_for_lines(r"Epoch: \[\d+\]  \[", rng.randint(1, 3 * steps))
        elif moment == "epoch end":
            arrived = run.wait_for_lines("Averaged stats", rng.randint(1, 2))
        else:
            arrived = run.wait_for_lines(r"Epoch: \[\d+\]  \[", 1) and run.wait_for_writing(
                rng.randint(1, 12)
            )
        delay = rng.uniform(0, 0.03) if moment != "setup" else 0.0
        if not arrived or not run.wait(delay):
            return None
        roles = run.roles()
        choices = {"SIGKILL to all": 10, "SIGTERM": 2, "SIGINT": 1, "SIGTERM to all": 1, "SIGINT to all": 1}
        if roles["launcher"]:
            choices |= {"SIGTERM to the launcher": 2, "SIGKILL to a process": 3}
        if roles["worker"]:
            choices["SIGKILL to a worker"] = 3
        chosen = rng.choices(list(choices), list(choices.values()))[0]
        name, _, target = chosen.partition(" to ")
        number, phase = getattr(signal, name), run.phase()
        if target == "the launcher":
            targets = roles["launcher"]
        elif target == "a worker":
            targets = [rng.choice(roles["worker"])]
        elif target == "a process":
            targets = [rng.choice(roles["main"] or roles["launcher"])]
        elif target == "all":
            targets = run.pids()
        else:
            targets = roles["main"] or roles["launcher"]
        if chosen == "SIGKILL to all":
            run.kill()
        else:
            for pid in targets:
                signal_to(pid, number)
        return {"signal": chosen, "phase": phase, "after": moment, "delay_ms": round(1000 * delay, 1)}


def _unexpected(killed, code, case, tail):
    """Return errors about an exit code, as lines."""
    name = killed["signal"]
    if code is None:
        return [f"hung: {tail}"]
    if name == "SIGKILL to all":
        allowed = {-signal.SIGKILL}
    # of one process among others: any end but a hang; it may have been at its own
    elif name.startswith("SIGKILL"):
        return []
    else:
        number = getattr(signal, name.split()[0])
        allowed = {PAUSED, 0}
        if case.processes > 1:
            allowed |= {number, -number}  # the launcher's own
        if killed["phase"] == "setup":
            allowed |= {-number, 128 + number, 1}  # before there is anything to save
    return [] if code in allowed else [f"exit code {code} is none of {sorted(allowed)}: {tail}"]


def _tail(run, lines=4):
    return " | ".join((run.own_said() + run.said()).strip().splitlines()[-lines:])


class Operations:
    """Faults at the operations on files.

    Args:
        sample: how many operations a case and fault is tried at; None: all.
    """

    def __init__(self, folder, rng, sample):
        import file_operations  # brings Paddle, which random kills do without
        import forked_runs

        self.forked, self.operations = forked_runs, file_operations
        self.folder, self.rng, self.sample = folder, rng, sample
        self.data = small_runs.make_data(folder / "data_of_operations")
        self.faults = {
            "SIGKILL": file_operations.kill,
            "loss of power": file_operations.lose_power,
            "SIGTERM": file_operations.send(signal.SIGTERM),
            "SIGINT": file_operations.send(signal.SIGINT),
            "SIGTERM to all": file_operations.send(signal.SIGTERM, everyone=True),
        }

    def case(self, case, faults=None):
        """Yield a record for every fault of FAULTS."""
        whole = Path(tempfile.mkdtemp(dir=self.folder)) / "out"
        ended, names = self._run(case, whole)
        if set(ended.codes) != {0}:
            raise RuntimeError(
                f"{case.name}: the undisturbed run ended with {ended.codes}\n{ended.said[-2000:]}"
            )
        for fault in faults or self.faults:
            yield self._fault(case, fault, whole, names)

    def _fault(self, case, fault, whole, names):
        start, lost, codes = time.monotonic(), [], Counter()
        numbers = range(len(names))
        if self.sample is not None and self.sample < len(names):
            numbers = sorted(self.rng.sample(numbers, self.sample))
        reached, lives = (-1, 0), 0
        first_checkpoint = next(at for at, name in enumerate(names) if "checkpoint" in name)
        for number in numbers:
            out = Path(tempfile.mkdtemp(dir=self.folder)) / "out"
            at, found = number, []
            while True:
                lives += 1
                ended, done = self._run(case, out, at, self.faults[fault])
                struck = at is not None and len(done) > at
                found += self._unexpected(
                    ended, fault if struck else None, early=at is not None and at < first_checkpoint
                )
                if not struck:
                    break
                codes[str(ended.code)] += 1
                # The later, the further; but the operations of two threads come in varying orders.
                if (
                    at == number
                    and fault in ("SIGKILL", "loss of power")
                    and "--save_async" not in case.policy
                ):
                    now = progress(out)
                    if now < reached:
                        found.append(
                            f"checkpoints are at {now}, and were at {reached} at an earlier operation"
                        )
                    reached = max(now, reached)
                if ended.code == 0:
                    break
                # Sometimes once more, in the life that continues it.
                at = self.rng.randrange(len(names)) if self.rng.random() < 0.2 else None
            found += differences(whole, out)
            lost += [f"at operation {number}, {names[number]}: {line}" for line in found]
            if not found:
                shutil.rmtree(out.parent)
        return {
            "case": case.name,
            "fault": fault,
            "operations": len(names),
            "tried": len(numbers),
            "lives": lives,
            "exit_codes": codes,
            "lost": lost,
            "seconds": round(time.monotonic() - start, 1),
        }

    def _run(self, case, out, at=None, act=None):
        operations = self.operations.FileOperations(out, at, act)
        ended = self.forked.run(
            case.words(self.data, out, epochs=OPERATION_EPOCHS),
            processes=case.processes,
            said_in=out.parent / "output.txt",
            prepare=operations.install,
        )
        return ended, operations.operations()

    def _unexpected(self, ended, fault, *, early):
        allowed = {0}
        if fault in ("SIGKILL", "loss of power"):
            allowed = {-signal.SIGKILL}
        elif fault is not None:
            number = getattr(signal, fault.split()[0])
            allowed = {PAUSED, 0, *([-number, 128 + number] if early else [])}
        tail = " | ".join(ended.said.strip().splitlines()[-4:])
        if ended.hung and not early:
            return [f"hung: {tail}"]
        # One process that leaves before the training leaves others waiting for it; the launcher would end
        # them.
        codes = ended.codes[:1] if early else ended.codes
        return (
            []
            if set(codes) <= allowed
            else [f"exit codes {ended.codes} are not of {sorted(allowed)}: {tail}"]
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="at random moments, at least so many")
    parser.add_argument("--operations", default="0", help="of each case and fault to try: a number, or all")
    parser.add_argument("--cases", default="", help="regular expression: only cases with such a name")
    parser.add_argument("--faults", nargs="+", default=None, help="only these faults at operations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", default="", help="JSON file for the results")
    args = parser.parse_args()
    rng, start = random.Random(args.seed), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="mae_kills_"))
    results = []

    def take(result):
        results.append(result)
        hits = len(result["kills"]) if "kills" in result else result["tried"]
        print(
            f"{result['case']}{', ' + result['fault'] if 'fault' in result else ''}: {hits} hits, "
            f"{result['lives']} lives, {result['seconds']} s, lost: {small_runs.told(result['lost'])}",
            flush=True,
        )

    cases = [case for case in CASES if re.search(args.cases, case.name)]
    if args.kills:
        kills = Kills(folder, rng)
        rounds = itertools.cycle(cases)
        while (left := args.kills - sum(len(result["kills"]) for result in results)) > 0:
            take(kills.round(next(rounds), left))
    if args.operations != "0":
        operations = Operations(folder, rng, None if args.operations == "all" else int(args.operations))
        for case in OPERATION_CASES:
            if re.search(args.cases, case.name):
                for result in operations.case(case, args.faults):
                    take(result)
    random_kills = [kill for result in results for kill in result.get("kills", [])]
    lost = [f"{result['case']}: {line}" for result in results for line in result["lost"]]
    totals = {
        "kills at random moments": len(random_kills),
        "by signal": Counter(kill["signal"] for kill in random_kills),
        "by phase": Counter(kill["phase"] for kill in random_kills),
        "faults at operations": sum(result.get("tried", 0) for result in results),
        "by fault": dict(
            _sums((result["fault"], result["tried"]) for result in results if "fault" in result)
        ),
        "lives": sum(result["lives"] for result in results),
        "lost": lost,
        "seconds": round(time.monotonic() - start),
    }
    small_runs.write_record(args.record, {"arguments": vars(args), "totals": totals, "results": results})
    if not lost:
        shutil.rmtree(folder)
    return 1 if lost else 0


def _sums(pairs):
    sums = Counter()
    for name, number in pairs:
        sums[name] += number
    return sums


if __name__ == "__main__":
    sys.exit(main())
