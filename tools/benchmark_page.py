"""Write docs/benchmarks.md and docs/benchmarks.zh-CN.md from the records of a folder, and from those of another the tables
between two marks of docs/inference.md and docs/inference.zh-CN.md.

    python tools/benchmark_page.py
    python tools/benchmark_page.py --records records/2026-11-21_speed --inference records/2026-11-22_inference

A record is a JSON file that a script of benchmarks/ wrote with --json. Of each kind a folder may have any number; a
kind that it has none of is left out of the pages, and the tool says which.
"""
import argparse
import json
import math
import re
import shlex
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import sidebyside
from util import cpu_runtime
from util.atomic_file import atomic_write
from util.page_marks import between_marks

RECORDS = ROOT / "records" / "2026-11-21_speed"
KINDS = ["train_step", "train_step_profile", "bfloat16_training", "input_pipeline", "index", "infer", "infer_startup"]
INFERENCE = ROOT / "records" / "2026-11-22_inference"
INFERENCE_KINDS = ["infer", "infer_startup", "serve_load"]

# Kind, pattern of the side's name, measurement, bound of its ratio: at least for images_per_s, at most for others.
GOALS = [
    ("train_step", "onednn float32", "images_per_s", 1.8),
    ("train_step", "onednn bfloat16", "images_per_s", 1.3),
    ("train_step", "onednn .*", "peak_mb", 1.2),
    ("input_pipeline", "pillow", "images_per_s", 1.15),
    ("input_pipeline", "fast", "images_per_s", 1.7),
    ("input_pipeline", ".*, packed", "images_per_s", 3),
    ("infer", ".* float32", "images_per_s", 2),
    ("infer", ".* bfloat16", "images_per_s", 1),
    ("infer_startup", "main_infer .*", "seconds", 1.3),
]
OPPONENTS = ("torch", "import and read")  # how their names begin

TEXTS = {
    "benchmarks.md": dict(
        head="""# Benchmarks

[中文](benchmarks.zh-CN.md)

Written by `python tools/benchmark_page.py` from the records in [records/{folder}](../records/{folder}).
Nothing here was measured on a GPU.

## How to read this

- Every ratio is of the medians of one run, in which the sides took turns. "Round by round" is the median of the ratios
  of single rounds, with the lowest and the highest; where it is far from the ratio of medians, the machine's speed
  changed during the run.
- The machine is a virtual one whose neighbours slow it: absolute numbers vary by up to a factor of two from run to run.
  Ratios are what to compare. The rate of a large matrix product, measured by our side in each round, stands beside the
  training steps.
- Beside the processor stands the instruction set that our side computes with, as the first line of a run names it. With
  another one, rates and ratios are others: AVX2 has half the width of AVX-512 and no products in bfloat16.
- More images/s are better; fewer seconds, milliseconds and megabytes are.
- GFLOP/s of a step count the matrix products of the official computation, for both sides, also where this project
  leaves some of them out without a change of the result.
- In commands, `/path/to/NAME` stands for a file or folder of the machine that was measured on. A `+` after a commit:
  with changes that were not committed.
""",
        goals="Goals and what was reached",
        goal_columns=["what", "record", "side", "measured as", "ratio of medians", "goal", ""],
        within="{}: {}", at_least="at least {}", at_most="at most {}", reached="reached", missed="missed",
        sections={
            "train_step": "A training step", "train_step_profile": "What a training step's time is spent on",
            "bfloat16_training": "Training in bfloat16 beside float32", "input_pipeline": "Input",
            "index": "Listing a large data set", "infer": "Inference",
            "infer_startup": "From the start of main_infer.py to its first answer"},
        titles={
            "train_step":
                "{task} step, {image} x {image} pixels, patch {patch}, width {width}, batch {batch}, {precision}",
            "train_step_profile": "{task} step, {image} x {image} pixels, patch {patch}, width {width}, batch {batch}",
            "bfloat16_training": "The same training with several seeds",
            "input_pipeline": "{source}, {input_size} pixels, batch {batch_size}, worker processes: {num_workers}",
            "index": "{files:,} files in {classes:,} folders", "infer": "{model}, batch {batch_size}, {precision}",
            "infer_startup": "{model}, {precision}"},
        tasks={"pretrain": "Pretraining", "finetune": "Finetuning"},
        sources=["Images from files", "Images from files and packed"],
        measurements={
            "images_per_s": "images/s", "seconds": "seconds", "ms": "ms a batch", "peak_mb": "peak memory, MB",
            "gflops": "GFLOP/s of the step", "matmul_gflops": "GFLOP/s of a large matrix product",
            "share_of_matmul": "share of that rate"},
        side="side", median="{}, median (lowest to highest)", ratio="ratio of medians", each="round by round",
        range="{} ({} to {})",
        origin="[{file}](../records/{folder}/{file}), {date}; {cpu}, {cores} cores, {instruction_set}, {memory_gb} GB{rest}.",
        commit="; commit {}", rounds="; rounds: {}", about="- {sides}: {about}",
        ceiling="A step of nothing but matrix products, all of them at that rate, would be {} times as fast as {}.",
        profile="per cent of a step", step="a step, ms", kinds={},
        training=["precision", "seeds", "steps", "loss of the last epoch of pretraining, mean (lowest to highest)",
                  "accuracy after finetuning, mean (lowest to highest), %"],
        apart=["loss of an epoch of pretraining", "largest of all epochs", "last epoch"],
        between_precisions="bfloat16 and float32 with the same seed, largest difference",
        between_seeds="float32 with different seeds, highest minus lowest",
        tail="""
## What did pay

- 2026-11-21: `index_select` of rows instead of `take_along_axis`: 10 to 20 times as fast for that operation.
- 2026-11-21: `square()` instead of `x ** 2`: 35 ms less a step of ViT-B.
- 2026-11-21: gradients of biases as a product with ones instead of by oneDNN's reduction.
- 2026-11-21: attention in groups of images whose scores fit the cache: 1.2 to 1.8 times as fast for the attention.
- 2026-11-21: norm, branch and residual add fused into one operation: 4 % more; it also saves memory.
- 2026-11-21: gradients freed after an update instead of filled with zeros: a peak 330 MB lower for ViT-B, at no cost in
  time.
- 2026-11-21: weights packed once for inference (`operations.packed`), as oneDNN's products like them best: 6 to 15 % more
  images in float32, 10 to 20 % in bfloat16, for batches of 1 and 5 by ViT-B.

## Tried, and did not pay

2026-11-21, **settings of glibc's malloc** (`mallopt`: no trimming, no threshold for mmap). Page faults of single large
allocations fall tenfold, but a training step gains at most 1 %.

2026-11-21, **huge pages** (`GLIBC_TUNABLES=glibc.malloc.hugetlb=1`): page faults fall from 8,000 to 300 a step of ViT-B,
which takes as long as before.

2026-11-21, **other layouts in training.** Storing weights or gradients in oneDNN's blocked or transposed layouts, or
transposing inputs beforehand, gains nothing over plain row-major: they change at every step.

2026-11-21, **AdamW of a whole group in one operation** on a CPU: 96 instead of 98 ms an update of 112 million parameters,
which the memory's speed decides. `--fused_adamw` is there for a GPU.

2026-11-21, **MKL instead of oneDNN.** MKL on its AVX-512 path (`MKL_DEBUG_CPU_TYPE=7`) reaches oneDNN's float32 rate
for matrix products, but the rest of Paddle's operations stays slow. oneDNN was kept.

2026-11-21, **recomputing the attention weights** in the backward pass instead of keeping them: no faster; it saves
memory only.

2026-11-21, **attention scores in bfloat16**: no gain, and less exact.

2026-11-21, **a cache of 1,024 oneDNN primitives**: memory grows when shapes change. 256 was kept.

Noticed on the way, 2026-11-21: Paddle's own gradient of `layer_norm` on a CPU is wrong when its weight is frozen (3.3.1
and 2.6.2).
"""),
    "benchmarks.zh-CN.md": dict(
        head="""# 性能测试

[English](benchmarks.md)

本页由 `python tools/benchmark_page.py` 根据 [records/{folder}](../records/{folder}) 中的记录生成。没有任何一项是在 GPU 上测的。

## 怎样读这些数字

- 每个比值都是同一次运行中中位数之比，运行时各方轮流进行。“逐轮”一栏是各轮比值的中位数及其最低、最高值；它与中位数之比相差较大时，
  说明运行期间机器速度有变化。
- 机器是虚拟机，会被同一主机上的其他虚拟机拖慢：不同运行之间，绝对数值最多相差一倍。应当比较的是比值。训练步的旁边列出了本项目一方
  每轮测得的大矩阵乘法速率。
- 处理器后面是本项目一方计算时使用的指令集，名称与运行日志第一行中的相同。换一种指令集，速率和比值都会不同：AVX2 的宽度是 AVX-512
  的一半，也没有 bfloat16 乘法。
- 图片/秒越大越好；秒、毫秒和 MB 越小越好。
- 训练步的 GFLOP/s 按官方计算中的矩阵乘法计，双方相同；本项目在不改变结果的前提下省去的部分也计算在内。
- 命令中的 `/path/to/NAME` 代表测试机器上的文件或文件夹。提交号后的 `+` 表示还有未提交的改动。
""",
        goals="目标与结果", goal_columns=["内容", "记录", "哪一方", "度量", "中位数之比", "目标", ""],
        within="{}：{}", at_least="至少 {}", at_most="至多 {}", reached="达到", missed="未达到",
        sections={
            "train_step": "训练步", "train_step_profile": "训练步的时间花在哪里",
            "bfloat16_training": "bfloat16 训练与 float32 对照", "input_pipeline": "输入", "index": "列出大数据集的文件",
            "infer": "推理", "infer_startup": "main_infer.py 从启动到第一个结果"},
        titles={
            "train_step": "{task}步，{image} x {image} 像素，patch {patch}，宽度 {width}，batch {batch}，{precision}",
            "train_step_profile": "{task}步，{image} x {image} 像素，patch {patch}，宽度 {width}，batch {batch}",
            "bfloat16_training": "同样的训练，多个种子",
            "input_pipeline": "{source}，{input_size} 像素，batch {batch_size}，worker 进程数：{num_workers}",
            "index": "{files:,} 个文件，{classes:,} 个文件夹", "infer": "{model}，batch {batch_size}，{precision}",
            "infer_startup": "{model}，{precision}"},
        tasks={"pretrain": "预训练", "finetune": "微调"}, sources=["读取图片文件", "读取图片文件和打包的数据集"],
        measurements={
            "images_per_s": "图片/秒", "seconds": "秒", "ms": "每个 batch 毫秒", "peak_mb": "内存峰值，MB",
            "gflops": "训练步 GFLOP/s", "matmul_gflops": "大矩阵乘法 GFLOP/s", "share_of_matmul": "占该速率"},
        side="哪一方", median="{}，中位数（最低到最高）", ratio="中位数之比", each="逐轮", range="{}（{} 到 {}）",
        origin="[{file}](../records/{folder}/{file})，{date}；{cpu}，{cores} 核，{instruction_set}，{memory_gb} GB{rest}。",
        commit="；提交 {}", rounds="；轮数：{}", about="- {sides}：{about}",
        ceiling="如果一步只有矩阵乘法，并且全部达到该速率，则是 {} 倍于 {}。",
        profile="占一步的百分比", step="一步，毫秒",
        kinds={"matrix products": "矩阵乘法", "all else, by Paddle and Python": "其余，由 Paddle 和 Python 完成"},
        training=["精度", "种子", "步数", "预训练最后一个 epoch 的 loss，平均（最低到最高）",
                  "微调后的准确率，平均（最低到最高），%"],
        apart=["预训练一个 epoch 的 loss", "所有 epoch 中最大", "最后一个 epoch"],
        between_precisions="同一种子的 bfloat16 与 float32，最大差异", between_seeds="不同种子的 float32，最高减最低",
        tail="""
## 有收益的

- 2026-11-21：用 `index_select` 按行取代替 `take_along_axis`：这一操作快 10 到 20 倍。
- 2026-11-21：用 `square()` 代替 `x ** 2`：ViT-B 每步少 35 毫秒。
- 2026-11-21：bias 的梯度用与全 1 矩阵的乘积计算，不用 oneDNN 的 reduction。
- 2026-11-21：注意力按组计算，每组图片的分数放得进缓存：注意力快到 1.2 至 1.8 倍。
- 2026-11-21：把归一化、分支和残差相加融合为一个操作：提升 4 %，也省内存。
- 2026-11-21：更新之后释放梯度，而不是填零：ViT-B 的内存峰值低 330 MB，时间不变。
- 2026-11-21：推理时权重只打包一次（`operations.packed`），排成 oneDNN 乘法最喜欢的样子：ViT-B，batch 为 1 和 5 时，float32 每秒图片多 6 至 15 %，
  bfloat16 多 10 至 20 %。

## 试过而没有收益的

2026-11-21，**glibc malloc 的设置**（`mallopt`：不归还内存，不设 mmap 阈值）。单次大块分配的缺页降到十分之一，但训练步最多快 1 %。

2026-11-21，**大页内存**（`GLIBC_TUNABLES=glibc.malloc.hugetlb=1`）：ViT-B 每步的缺页从 8,000 次降到 300 次，时间不变。

2026-11-21，**训练中的其他内存布局。** 把权重或梯度存成 oneDNN 的分块或转置布局，或事先转置输入，都不比普通的行优先布局快：它们每步都变。

2026-11-21，**AdamW 整组参数一次更新**（CPU）：1.12 亿参数更新一次 96 毫秒，逐个更新 98 毫秒，瓶颈在内存速度。`--fused_adamw` 是给 GPU 用的。

2026-11-21，**用 MKL 代替 oneDNN。** MKL 的 AVX-512 路径（`MKL_DEBUG_CPU_TYPE=7`）做 float32 矩阵乘法与 oneDNN 一样快，但 Paddle 的其余操作
仍然慢。保留 oneDNN。

2026-11-21，**反向时重算注意力权重**而不保存它们：不会更快，只省内存。

2026-11-21，**bfloat16 的注意力分数**：没有收益，而且更不精确。

2026-11-21，**缓存 1,024 个 oneDNN primitive**：形状变化时内存不断增长。保留 256 个。

顺带发现，2026-11-21：在 CPU 上，`layer_norm` 的权重被冻结时，Paddle 自带的梯度是错的（3.3.1 和 2.6.2）。
"""),
}

# The tables of docs/inference.md, which stand between these marks.
MARKS = "<!-- tools/benchmark_page.py writes from here on -->\n", "<!-- to here -->\n"
MEASURED = {
    "inference.md": dict(
        head="From [records/{folder}](../records/{folder}), by `python tools/benchmark_page.py`: {cpu}, {cores} cores, "
             "{instruction_set}, {memory_gb} GB, no GPU; {versions}. Medians; ratios are of one run, in which the sides took turns. "
             "Absolute numbers of this virtual machine vary by up to a factor of two from run to run.",
        infer="**Images/s** of {model}, {precision}, and times as many as PyTorch (timm's model; in bfloat16 the faster of its "
              "two ways):",
        side="side", batch="batch {}", times="{} ({} x)",
        infer_startup="**Seconds from the start of a process to its first answer**, {model}, {precision}, weights in the "
                      "disk's cache (\"import and read\" imports Paddle, reads the weights, and does nothing else):",
        seconds="seconds, median (lowest to highest)", beside="of PyTorch's", range="{} ({} to {})",
        serve_load="**The service under load**, pictures as files, asked from the same machine, whose cores both share:",
        load=["model", "requests", "at once", "requests/s", "p50, ms", "p99, ms", "slowest, ms", "images a batch",
              "errors", "memory, MB, at the start, in the middle, at the end"]),
    "inference.zh-CN.md": dict(
        head="由 `python tools/benchmark_page.py` 根据 [records/{folder}](../records/{folder}) 生成：{cpu}，{cores} 核"
             "，{instruction_set}，{memory_gb} GB，没有 GPU；{versions}。数值为中位数；比值出自同一次运行，运行时各方轮流进行。"
             "这台虚拟机上，不同运行之间绝对数值最多相差一倍。",
        infer="**每秒图片数**，{model}，{precision}；括号里是 PyTorch（timm 的模型；bfloat16 取它两种方式中较快的）的多少倍：",
        side="哪一方", batch="batch {}", times="{}（{} 倍）",
        infer_startup="**从进程启动到第一个答案的秒数**，{model}，{precision}，权重已在磁盘缓存中"
                      "（“import and read”只导入 Paddle、读取权重，不做别的）：",
        seconds="秒，中位数（最低到最高）", beside="与 PyTorch 之比", range="{}（{} 到 {}）",
        serve_load="**服务的负载测试**，发送图片文件，请求方在同一台机器上，共用 CPU：",
        load=["模型", "请求数", "同时", "请求/秒", "p50，毫秒", "p99，毫秒", "最慢，毫秒", "每个 batch 的图片", "错误",
              "内存 MB：开始、中间、结束"]),
}


def load(folder, kinds=KINDS):
    """[(file name, kind, record)] of a folder, in the order of the pages."""
    found = []
    for path in Path(folder).glob("*.json"):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON ({error}); let the benchmark write it again") from error
        kind = record.get("benchmark")
        if kind not in kinds:
            raise ValueError(f"{path}: not a record of {', '.join(kinds)}; this folder is for those alone")
        s = record["settings"]
        found.append(((kinds.index(kind), s.get("task") == "finetune", -s.get("width", 0), s.get("batch_size", 0),
                       s.get("precision") == "bfloat16", path.name), kind, record))
    if not found:
        raise ValueError(f"{folder}: there is no record in it; benchmarks/*.py --json FILE write them")
    return [(key[-1], kind, record) for key, kind, record in sorted(found, key=lambda each: each[0])]


def page(folder, name):
    """The text of the page `name` of TEXTS on the records in `folder`."""
    text, records = TEXTS[name], load(folder)
    lines = [text["head"].format(folder=Path(folder).name)]
    if rows := [row for each in records for row in goals(Path(folder).name, *each, text)]:
        lines += [f"## {text['goals']}\n", *table([text["goal_columns"], *rows]), ""]
    section = None
    for file, kind, record in records:
        if kind != section:
            section = kind
            lines.append(f"## {text['sections'][kind]}\n")
        lines += [f"### {title(kind, record, text)}\n", *origin(Path(folder).name, file, record, text), ""]
        body = {"train_step_profile": profile, "bfloat16_training": training}.get(kind, comparison)
        lines += [*body(record, text), ""]
    return "\n".join(lines).rstrip("\n") + "\n" + text["tail"]


def measured(folder, name):
    """The tables of the page `name` of MEASURED on the records in `folder`."""
    text, found = MEASURED[name], load(folder, INFERENCE_KINDS)
    versions = {}
    for _, _, record in found:
        for about in [side["about"] for side in record.get("sides", {}).values()]:
            versions.update({key: value for key, value in about.items() if key != "threads"})
    machine = found[0][2]["machine"]
    lines = [text["head"].format(**{**machine, "instruction_set": instruction_set(machine)}, folder=Path(folder).name,
                                 versions=", ".join(f"{key} {value}" for key, value in versions.items())), ""]
    kinds = {kind: [record for _, of, record in found if of == kind] for kind in INFERENCE_KINDS}
    groups = {}  # batches of the same model and precision are columns of one table
    for record in kinds["infer"]:
        groups.setdefault((record["settings"]["model"], record["settings"]["precision"]), []).append(record)
    for (model, precision), records in groups.items():
        lines += [text["infer"].format(model=model, precision=precision), "", *answering(records, text), ""]
    for record in kinds["infer_startup"]:
        lines += [text["infer_startup"].format(**record["settings"]), "", *starting(record, text), ""]
    if kinds["serve_load"]:
        lines += [text["serve_load"], "", *table([text["load"], *map(under_load, kinds["serve_load"])]), ""]
    return "\n".join(lines)


def answering(records, text):
    """A table of the images/s of the sides, a column a batch size; records in the order of that."""
    rows = {}
    for record in records:
        for side in record["sides"]:
            speed = number(typical(record["sides"][side]["rounds"], "images_per_s"))
            rows.setdefault(side, []).append(speed if side == record["against"] else text["times"].format(
                speed, number(ratio(record, side, "images_per_s"))))
    return table([[text["side"], *(text["batch"].format(record["settings"]["batch_size"]) for record in records)],
                  *([side, *cells] for side, cells in rows.items())])


def starting(record, text):
    rows = [[text["side"], text["seconds"], text["beside"]]]
    for side, values in record["sides"].items():
        seconds = [each["seconds"] for each in values["rounds"]]
        rows.append([side, text["range"].format(*map(number, (statistics.median(seconds), min(seconds), max(seconds)))),
                     "1" if side == record["against"] else number(ratio(record, side, "seconds"))])
    return table(rows)


def under_load(record):
    """The row of a record of benchmarks/serve_load.py."""
    found, settings = record["found"], record["settings"]
    memory = [megabytes for _, megabytes in record["resident_mb"]]
    return [f"{record['about']['model']}, {record['about']['engine']}", f"{settings['requests']:,}",
            str(settings["connections"]), *(number(found[key]) for key in
                                            ("requests_per_s", "p50_ms", "p99_ms", "slowest_ms", "mean_batch")),
            str(found["errors"]), ", ".join(f"{memory[place]:,.0f}" for place in (0, len(memory) // 2, -1))]


def title(kind, record, text):
    s = record["settings"]
    return text["titles"][kind].format(**{**s, "task": text["tasks"].get(s.get("task")),
                                          "source": text["sources"][bool(s.get("packed"))]})


def origin(folder, file, record, text):
    """Where a record is from: file, date, machine, command and versions."""
    if "sides" in record:
        about, words = record, record["command"]
        rest = text["rounds"].format(len(next(iter(record["sides"].values()))["rounds"]))
        versions = {name: side["about"] for name, side in record["sides"].items()}
    else:  # benchmarks/bfloat16_training.py: its settings are its flags
        about, rest = record["about"], ""
        words = ["benchmarks/bfloat16_training.py",
                 *(word for flag, value in record["settings"].items() for word in (f"--{flag}", str(value)))]
        versions = {precision: {key: value for key, value in about.items()
                                if key not in ("date", "machine", "revision")} for precision in ("float32", "bfloat16")}
    if about.get("revision"):
        rest = text["commit"].format(re.sub(r"^(.{7})[^+]*", r"\1", about["revision"])) + rest
    machine = {**about["machine"], "instruction_set": instruction_set(about["machine"])}
    yield text["origin"].format(file=file, folder=folder, date=about["date"][:10], rest=rest, **machine) + "\n"
    yield f"```\n{command(words)}\n```\n"
    same = {}  # versions: sides that share them
    for name, values in versions.items():
        same.setdefault(", ".join(f"{key} {value}" for key, value in values.items()), []).append(f"`{name}`")
    for described, names in same.items():
        if described:
            yield text["about"].format(sides=", ".join(names), about=described)


def instruction_set(machine):
    """That of the `machine` of a record; older ones have only what the processor offers, and were made without limits."""
    return machine.get("instruction_set") or cpu_runtime.name_of(cpu_runtime.instruction_sets(machine["flags"]))


def command(words):
    """The command line of `words` (sys.argv) as it is typed in the project's folder, without folders of a machine."""
    script, *options = words
    kept = []
    for word in options:
        flag, path = re.fullmatch(r"(--\w+=)?(.*)", word, flags=re.DOTALL).groups("")
        target = flag or (kept[-1] if kept else "")
        if target.startswith("--json"):
            path = Path(path).name
        elif path.startswith(("/", "~", "..")):
            path = f"/path/to/{Path(path).name}"
        kept.append(flag + path)
    return shlex.join(["python", "/".join(Path(script).parts[-2:]), *kept])


def comparison(record, text):
    """The table of a record that benchmarks/sidebyside.py wrote."""
    rounds = {name: side["rounds"] for name, side in record["sides"].items()}
    measure, against = record["measure"], record["against"]
    names = text["measurements"]
    others = list(dict.fromkeys(key for each in rounds.values() for key in each[0] if key != measure))
    compared = sidebyside.ratios(rounds, measure, against) if against else {}
    rows = [[text["side"], text["median"].format(names[measure]), *([text["ratio"], text["each"]] if against else []),
             *(names.get(key, key) for key in others)]]
    for name, each in rounds.items():
        values = [one[measure] for one in each]
        row = [name, text["range"].format(*map(number, (statistics.median(values), min(values), max(values))))]
        if against:
            row += ([number(ratio(record, name, measure)), text["range"].format(*map(number, compared[name]))]
                    if name in compared else ["1", ""])
        row += [(f"{typical(each, key):.0%}" if key == "share_of_matmul" else number(typical(each, key)))
                if key in each[0] else "" for key in others]
        rows.append(row)
    yield from table(rows)
    ours = next(iter(rounds.values()))
    if against in rounds and {"matmul_gflops", "gflops"} <= ours[0].keys() and "gflops" in rounds[against][0]:
        bound = typical(ours, "matmul_gflops") / typical(rounds[against], "gflops")
        yield "\n" + text["ceiling"].format(number(bound), f"`{against}`")


def typical(rounds, measurement):
    """The median over the rounds; of peak memory the highest."""
    values = [one[measurement] for one in rounds]
    return max(values) if measurement == "peak_mb" else statistics.median(values)


def ratio(record, side, measurement):
    return (typical(record["sides"][side]["rounds"], measurement)
            / typical(record["sides"][record["against"]]["rounds"], measurement))


def goals(folder, file, kind, record, text):
    """A row for each goal that a record has an answer to."""
    opposed = (record.get("against") or "").startswith(OPPONENTS)
    if not opposed or record["settings"].get("torch_attention", "official") != "official":
        return
    for side in record["sides"]:
        for goal_kind, pattern, measurement, bound in GOALS:
            if kind == goal_kind and re.fullmatch(pattern, side) and not side.startswith(OPPONENTS):
                least, found = measurement == "images_per_s", ratio(record, side, measurement)
                reached = found >= bound if least else found <= bound
                yield [text["within"].format(text["sections"][kind], title(kind, record, text)),
                       f"[{file}](../records/{folder}/{file})", side, text["measurements"][measurement], number(found),
                       text["at_least" if least else "at_most"].format(bound), text["reached" if reached else "missed"]]


def profile(record, text):
    """The table of what a step's time is spent on, per cent, most of the first side first."""
    sides = {name: {key: typical(side["rounds"], key) for key in side["rounds"][0]}
             for name, side in record["sides"].items()}
    kinds = sorted({kind for spent in sides.values() for kind in spent} - {"step"},
                   key=lambda kind: [*(-spent.get(kind, 0) for spent in sides.values()), kind])
    return table([[text["profile"], *sides],
                  [text["step"], *(number(1000 * spent["step"]) for spent in sides.values())],
                  *([text["kinds"].get(kind, kind), *(f"{spent[kind] / spent['step']:.1%}" if kind in spent else ""
                                                      for spent in sides.values())] for kind in kinds)])


def training(record, text):
    """The tables of a record of the same training in float32 and bfloat16 with several seeds."""
    runs = {}
    for run in record["runs"]:
        runs.setdefault(run["precision"], {})[run["seed"]] = run
    if set(runs) != {"float32", "bfloat16"} or runs["float32"].keys() != runs["bfloat16"].keys():
        raise ValueError("bfloat16_training: needs runs of float32 and bfloat16 with the same seeds, got "
                         + "; ".join(f"{precision} {sorted(seeds)}" for precision, seeds in runs.items()))
    rows = [text["training"]]
    for precision, by_seed in runs.items():
        final, accuracy = ([value(run) for run in by_seed.values()]
                           for value in (lambda run: run["losses"][-1], lambda run: run["accuracy"]))
        rows.append([precision, ", ".join(map(str, by_seed)),
                     ", ".join(f"{steps:,}" for steps in sorted({run["steps"] for run in by_seed.values()})),
                     *(text["range"].format(*(f"{f(values):.{digits}f}" for f in (statistics.fmean, min, max)))
                       for values, digits in ((final, 4), (accuracy, 2)))])
    exact = runs["float32"]
    between_precisions = [max(abs(a - b) for a, b in zip(exact[seed]["losses"], runs["bfloat16"][seed]["losses"],
                                                         strict=True)) for seed in exact]
    last = max(abs(exact[seed]["losses"][-1] - runs["bfloat16"][seed]["losses"][-1]) for seed in exact)
    between_seeds = [max(losses) - min(losses)
                     for losses in zip(*(run["losses"] for run in exact.values()), strict=True)]
    apart = [text["apart"], [text["between_precisions"], f"{max(between_precisions):.4f}", f"{last:.4f}"],
             [text["between_seeds"], f"{max(between_seeds):.4f}", f"{between_seeds[-1]:.4f}"]]
    return [*table(rows), "", *table(apart)]


def table(rows):
    return ["| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]]


def number(value):
    """Three digits, without an exponent."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{digits}f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--records", metavar="FOLDER", default=RECORDS, help="the records to write the pages from")
    parser.add_argument("--inference", metavar="FOLDER", default=INFERENCE, help="those for the tables of docs/inference.md")
    args = parser.parse_args()
    folder, inference = Path(args.records).resolve(), Path(args.inference).resolve()
    try:
        pages = {ROOT / "docs" / name: page(folder, name) for name in TEXTS}
        for path in (ROOT / "docs" / name for name in MEASURED):
            pages[path] = between_marks(path.read_text(encoding="utf-8"), measured(inference, path.name), path, MARKS)
    except ValueError as error:
        sys.exit(f"benchmark_page.py: error: {error}")
    for path, content in pages.items():
        with atomic_write(path, "w") as f:
            f.write(content)
    for folder, kinds in ((folder, KINDS), (inference, INFERENCE_KINDS)):
        records = load(folder, kinds)
        print(f"found in {folder.name}: {', '.join(file for file, _, _ in records)}")
        if missing := [kind for kind in kinds if kind not in {kind for _, kind, _ in records}]:
            print(f"left out, for want of a record: {', '.join(missing)}")


if __name__ == "__main__":
    main()
