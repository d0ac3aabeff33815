"""What the numbers of a run say: verdicts by fixed rules, warnings, and what a healthy run looks like beside it.

Everything here is language-neutral: (key of util.report.wording, {name: value}).
"""
import itertools
import math
import statistics
from pathlib import Path

import yaml

from util.look.curves import Range, Series, Zone
from util.report import run_record
from util.run import flag_facts

NOTHING = 0.97      # of the loss of predicting nothing: who stays above has learned nothing
ENOUGH = 3          # epochs from which on there is a verdict
RISEN = 0.03        # by which part the mean of the newest losses has to be above the lowest mean before,
CERTAIN = 4         # and by how many standard errors, of long curves; of short ones
FEW = 3             # by 1 + FEW / (second differences) as many: at most 1 of 100 flat noisy curves of a length rises
DIVERGED = 2        # the newest losses to the greatest before, whatever the scatter
TREND = 0.01        # by which a loss falls within the newest epochs if something is being learned
MOST_RECORDS = 3    # reference curves in a chart
WAITING = 10.0      # per cent of an epoch spent waiting for data, as for util.run.epoch_log.advice

# The loss of the official code: ViT-B, normalised pixels, ImageNet-1k, effective batch 4096 (312 updates an epoch),
# warm-up 15 epochs; as its users have reported it: beyond_masking issue 1, and near the end facebookresearch/mae
# issue 21.
OFFICIAL_PRETRAINING = [(0, 0.9499), (1, 0.7824), (5, 0.6815), (10, 0.5883), (12, 0.5675)]
OFFICIAL_LATE = 0.42
# Least and greatest accuracy of four seeds of the official code, ImageNet-1k, after so many epochs: its FINETUNE.md.
OFFICIAL_FINETUNING = {"vit_base_patch16": (100, 83.46, 83.66), "vit_large_patch16": (50, 85.76, 85.88)}
OFFICIAL_PROBE = {"vit_base_patch16": (90, 67.8)}   # facebookresearch/mae, FINETUNE.md


# ---- what is expected

def uniform_loss(run):
    """The loss of a classifier that finds all its outputs equally likely, or None."""
    outputs = run.option("nb_classes", int)
    return math.log(outputs) if outputs and outputs > 1 and not run.pretraining else None


def chance(run):
    """Accuracy in per cent without looking: of the most frequent class if that is known, else of one of so many."""
    if run.pretraining:
        return None
    if run.confusion is not None and run.confusion[0].sum():
        return 100 * float(run.confusion[0].sum(axis=1).max() / run.confusion[0].sum())
    classes = run.option("nb_classes", int)
    return 100 / classes if classes and classes > 0 else None


def zones(runs, name):
    """[(key, {name: value}, Zone without a label)] of a chart of `name`: where nothing has been learned."""
    if name in ("train_loss", "test_loss", "test_ema_loss") and all(run.pretraining for run in runs):
        return [("zone_zero", {}, Zone("", 1.0))] if all(run.option("norm_pix_loss", bool) for run in runs) else []
    if name in ("train_loss", "test_loss", "test_ema_loss"):
        found = {uniform_loss(run) for run in runs}
        return [("zone_uniform", {"loss": f"{loss:.3f}"}, Zone("", loss)) for loss in found
                if len(found) == 1 and loss is not None]
    if name in ("test_acc1", "test_ema_acc1"):
        found = {chance(run) and round(chance(run), 6) for run in runs}
        return [("zone_chance", {"accuracy": f"{value:.3g}"}, Zone("", value, above=False)) for value in found
                if len(found) == 1 and value is not None]
    return []


def expected(runs, name, records):
    """[(key, {name: value}, Series or Range without a label)]: what healthy runs of these settings showed in `name`.

    Args:
        runs: those of the chart; something is shown only if it applies to all of them.
        records: of `recorded`, for each run.
    """
    found = []
    if name == "train_loss" and all(map(_is_official_pretraining, runs)):
        warmup = {run.option("warmup_epochs", (int, float)) for run in runs}
        longest = max((run.lines[-1]["epoch"] for run in runs if run.lines), default=0)
        key = "official_curve" if warmup == {15} else "official_curve_warmup"
        found.append((key, {"warmup": ", ".join(map(str, sorted(warmup, key=str)))},
                      Series("", OFFICIAL_PRETRAINING, None)))
        if longest >= 400:
            found.append(("official_late", {}, Range("", OFFICIAL_LATE, OFFICIAL_LATE)))
    if name == "test_acc1":
        official = {_official_accuracy(run) for run in runs}
        if len(official) == 1 and None not in official:
            key, epochs, low, high = official.pop()
            found.append((key, {"epochs": epochs, "low": low, "high": high}, Range("", low, high)))
    different = {(record.folder.name, record.name): record for record in records if record is not None}
    if name != "train_lr" and len(different) <= MOST_RECORDS:
        found += [("recorded", {"record": "/".join(key)}, Series("", record.points(name), None))
                  for key, record in different.items() if record.points(name)]
    return found


def recorded(run, root):
    """The RunRecord of the run in `root`, the project's records/, that had the same settings; None if there is none."""
    for path in sorted(Path(root).glob("*/*.options.yaml")):
        name = path.name.removesuffix(".options.yaml")
        log = path.with_name(f"{name}.log.txt")
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
        if log.exists() and _same_settings(run, options):
            return run_record.read_log_only(log, name, options)
    return None


def _same_settings(run, others):
    """Whether a run had the options of a record, which was made by one process in the project's folder."""
    options = run.options
    names, known = options.keys() - flag_facts.VARIES, others.keys() - flag_facts.VARIES
    # A newer version may have more options; those must be switched off, or do what was done before there were they.
    if "model" not in known or known - names or any(options[name] != others[name] for name in known):
        return False
    before = flag_facts.before(probe=not options.keys() & {"mask_ratio", "layer_decay"})
    if any(options[name] not in (None, False, 0, "", "off", "auto", before.get(name)) for name in names - known):
        return False
    if run.batch is None or run.batch != others.get("batch_size", 0) * others.get("accum_iter", 1):
        return False
    for name in ("data_path", "finetune"):
        mine, theirs = (Path(str(one.get(name) or "")).parts for one in (options, others))
        if mine[-len(theirs):] != theirs if theirs else mine:
            return False
    return True


def _is_official_pretraining(run):
    return (run.options.get("model") == "mae_vit_base_patch16" and run.option("norm_pix_loss", bool) is True
            and run.options.get("mask_ratio") == 0.75 and _side(run) == 224 and run.batch == 4096
            and run.options.get("patch_size") in (None, 16) and run.options.get("in_chans", 3) == 3
            and not run.options.get("encoder_mask_tokens") and not run.options.get("finetune"))


def _official_accuracy(run):
    options = run.options
    if options.get("nb_classes") != 1000 or not options.get("finetune") or _side(run) != 224:
        return None
    model = run.option("model", str)
    if options.get("layer_decay") is None and "drop_path" not in options and model in OFFICIAL_PROBE:
        epochs, accuracy = OFFICIAL_PROBE[model]
        return ("official_probe", epochs, accuracy, accuracy) if options.get("epochs") == epochs else None
    if (model in OFFICIAL_FINETUNING and options.get("mixup") == 0.8 and options.get("cutmix") == 1.0
            and options.get("global_pool") is True):
        epochs, low, high = OFFICIAL_FINETUNING[model]
        return ("official_finetuning", epochs, low, high) if options.get("epochs") == epochs else None
    return None


def _side(run):
    size = run.options.get("input_size")
    sizes = set(size) if isinstance(size, list) else {size}
    return sizes.pop() if len(sizes) == 1 else None


# ---- verdicts

def verdicts(run, record=None):
    """[(key, {name: value}, whether it is bad)], the bad ones first; what happened, in numbers, always.

    Args:
        record: a RunRecord with the same settings, or None.
    """
    train, test = run.points("train_loss"), run.points("test_loss")
    found = [(key, {"epoch": epoch}, True) for key, name in (("train_lost", "train_loss"), ("test_lost", "test_loss"))
             if (epoch := _not_finite_since(run, name)) is not None]
    if not train:
        return found or [("no_epochs", {}, False)]
    enough = len(train) >= ENOUGH
    nothing = _nothing_learned(run, train, test) if enough else None
    rising = _rises_since(train)
    if nothing:
        found.append((*nothing, True))
    elif rising is not None:
        found.append(("train_rises", {"epoch": rising, "least": f"{dict(train)[rising]:.4g}",
                                      "last": f"{train[-1][1]:.4g}"}, True))
    elif enough and min(y for _, y in train) > 0.99 * train[0][1]:
        found.append(("train_flat", {"first": f"{train[0][1]:.4g}", "last": f"{train[-1][1]:.4g}"}, True))
    worse = _rises_since(test)
    if worse is not None and rising is None and train[-1][1] < dict(train).get(worse, math.inf):
        found.append(("overfits", {"epoch": worse, "least": f"{dict(test)[worse]:.4g}",
                                   "last": f"{test[-1][1]:.4g}"}, True))
    elif worse is not None:
        found.append(("test_rises", {"epoch": worse, "least": f"{dict(test)[worse]:.4g}",
                                     "last": f"{test[-1][1]:.4g}"}, True))
    if len(train) == 1:
        found.append(("one_epoch", {"loss": f"{train[0][1]:.4g}"}, False))
    else:
        found.append(("went", {"first": f"{train[0][1]:.4g}", "last": f"{train[-1][1]:.4g}",
                               "epochs": len(train)}, False))
    if best := run.best():
        found.append(("best_accuracy", {"accuracy": f"{best[1]:.2f}", "epoch": best[0]}, False))
    then = dict(record.points("train_loss")).get(train[-1][0]) if record is not None else None
    if then is not None:
        found.append(("beside_record", {"epoch": train[-1][0], "loss": f"{train[-1][1]:.4g}", "then": f"{then:.4g}"},
                      False))
    if not enough:
        found.append(("too_few", {"epochs": ENOUGH}, False))
    return found


def _nothing_learned(run, train, test):
    if run.pretraining:
        least, newest = min(y for _, y in train), train[-max(ENOUGH, len(train) // 10):]
        warm = newest[0][0] + 1 >= (run.option("warmup_epochs", (int, float)) or 0)
        stays = (run.option("norm_pix_loss", bool) and warm and all(NOTHING < y < 2 - NOTHING for _, y in newest)
                 and newest[0][1] - newest[-1][1] < TREND)
        return ("stays_at_one", {"least": f"{least:.4g}"}) if stays and least > NOTHING else None
    best, without_looking, loss = run.best(), chance(run), _blind_loss(run)
    if best is None or without_looking is None or best[1] > 1.1 * without_looking:
        return None
    if loss is not None and test and min(y for _, y in test) < NOTHING * loss:
        return None
    return "stays_at_chance", {"best": f"{best[1]:.3g}", "chance": f"{without_looking:.3g}"}


def _blind_loss(run):
    """The loss of a classifier that knows how frequent the classes are and nothing else; None where that is unknown."""
    if run.confusion is None or not run.confusion[0].sum():
        return uniform_loss(run)
    shares = [float(images) / float(run.confusion[0].sum()) for images in run.confusion[0].sum(axis=1) if images]
    return -math.fsum(share * math.log(share) for share in shares)


def _not_finite_since(run, name):
    """The first of the newest epochs all of which have a value that is not finite; None if the newest is finite."""
    epochs = [(line["epoch"], abs(line[name]) < run_record.ENDLESS) for line in run.lines if name in line]
    lost = list(itertools.takewhile(lambda one: not one[1], reversed(epochs)))
    return lost[-1][0] if lost else None


def _rises_since(points):
    """The epoch of the lowest loss, if the newest ones are clearly above the lowest ones before, else None.

    Means of equally many epochs are compared; the scatter of single ones is told by their second differences, in which
    a trend has no part. A loss that leaps at the very end rises too, however few epochs there are.
    """
    count, values = len(points), [y for _, y in points]
    if count < ENOUGH:
        return None
    if any(min(values[-new:]) > DIVERGED * max(values[:-new]) > 0 for new in range(1, min(ENOUGH, count - 1) + 1)):
        return _lowest(points)
    if count == ENOUGH:
        return None
    width = max(min(ENOUGH, count // 2), count // 10)
    newest = statistics.fmean(values[-width:])
    start = min(range(count - 2 * width + 1), key=lambda first: statistics.fmean(values[first:first + width]))
    least = statistics.fmean(values[start:start + width])
    bends = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:])]
    error = 1.4826 * statistics.median(bends) / 6 ** 0.5 * (2 / width) ** 0.5
    if newest - least <= max(RISEN * abs(least), CERTAIN * (1 + FEW / len(bends)) * error):
        return None
    return _lowest(points[start:])


def _lowest(points):
    """The last epoch of the lowest value."""
    return min(points, key=lambda point: (point[1], -point[0]))[0]


# ---- warnings

def warnings(run):
    """[(key, {name: value}, [line, ...])]: what should be known about a run, from what it left; lines say more."""
    found = []
    for name, lines in run.damaged:
        found.append(("damaged_lines", {"lines": lines, "file": name}, []) if lines
                     else ("damaged_file", {"file": name}, []))
    found += [("missing_file", {"file": name}, []) for name in run_record.PARTS if not (run.folder / name).exists()]
    wanted = run.option("epochs", int)
    if wanted and run.lines and run.lines[-1]["epoch"] + 1 < wanted:
        found.append(("ends_early", {"done": len(run.lines), "epochs": wanted}, []))
    before_first = (run.option("start_epoch", int) or 0) - 1
    gaps = [epoch for before, line in zip([before_first, *(line["epoch"] for line in run.lines)], run.lines)
            for epoch in range(before + 1, min(line["epoch"], before + 100))]
    if gaps:
        found.append(("gaps", {"epochs": _few(gaps)}, []))
    endless = sorted({name for line in run.lines for name, value in line.items()
                      if not abs(value) < run_record.ENDLESS})
    if endless:
        found.append(("not_finite_values", {"names": ", ".join(endless)}, []))
    if run.not_finite:
        found.append(("not_finite", {"reports": len(run.not_finite)},
                      [str(one.get("message", one)) for one in run.not_finite[:20]]))
    skipped = [(epoch, count) for epoch, count in run.points("train_skipped_updates") if count]
    if skipped:
        found.append(("skipped_updates", {"updates": f"{sum(count for _, count in skipped):g}",
                                          "epochs": _few([epoch for epoch, _ in skipped])}, []))
    waited = [(epoch, share) for epoch, share in run.points("train_data_wait") if share > WAITING]
    if waited:
        found.append(("data_wait", {"epochs": len(waited), "of": len(run.points("train_data_wait")),
                                    "share": f"{statistics.median(share for _, share in waited):.0f}"}, []))
    left_out = run.points("test_left_out")
    if left_out:
        found.append(("left_out", {"images": f"{max(count for _, count in left_out):g}"}, []))
    for split, rows in run.bad_images.items():
        found.append(("bad_images", {"images": len(rows), "split": split},
                      [f"{name}: {reason}" for name, reason in rows[:20]]
                      + ([f"... {len(rows) - 20}"] if len(rows) > 20 else [])))
    operations = run.environment.get("operations")
    if isinstance(operations, str) and operations.startswith("Paddle's own"):
        found.append(("slow_operations", {"operations": operations}, []))
    if run.environment.get("git_dirty") is True:
        found.append(("git_dirty", {"revision": str(run.environment.get("git_revision"))[:12]}, []))
    if run.earlier:
        found.append(("earlier", {"folders": ", ".join(run.earlier[:5]), "count": len(run.earlier)}, []))
    best, outputs = run.best(), run.option("nb_classes", int)
    if run.confusion and outputs is not None and len(run.confusion[0]) != outputs:
        found.append(("other_outputs", {"classes": len(run.confusion[0]), "outputs": outputs}, []))
    elif best and run.confusion and run.confusion[2] != best[0]:
        found.append(("other_epoch", {"epoch": run.confusion[2], "best": best[0]}, []))
    elif best and run.confusion and run.confusion[0].sum():
        accuracy = 100 * float(run.confusion[0].trace() / run.confusion[0].sum())
        if abs(accuracy - best[1]) > 0.01:
            found.append(("other_confusion", {"accuracy": f"{accuracy:.2f}", "best": f"{best[1]:.2f}"}, []))
    return found


def _few(numbers):
    text = ", ".join(f"{number:g}" for number in numbers[:10])
    return text + (", ..." if len(numbers) > 10 else "")
