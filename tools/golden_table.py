"""Write docs/parity.md and docs/parity.zh-CN.md: how close the comparisons with other implementations come.

    python tools/golden_table.py
    python tools/golden_table.py --python .venv/bin/python .venv-paddle26/bin/python

Runs the tests that compare with tests/golden, with each of the given Pythons, and takes the differences that they
measured. With MAE_FMNIST_CKPT set, the comparison on trained weights is among them.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import parity

from util.atomic_file import atomic_write

TESTS = ["tests/test_golden_models.py", "tests/test_golden_training.py", "tests/test_golden_data.py"]

TEXTS = {
    "parity.md": dict(
        head="""# How close the numbers are to other implementations'

[中文](parity.zh-CN.md)

Written by `python tools/golden_table.py`, which runs the tests `tests/test_golden_*.py` and takes the differences that
they measure. The references were computed by `tools/make_golden.py`, by implementations that are independent of this
one, on small models with random weights, and lie in `tests/golden/`; the tests need neither PyTorch nor timm. Where a
reference differs from the official code, which is built on timm 0.3.2, `tools/make_golden.py` says how, and the
official form counts.
""",
        columns=["compared", "reference", "measured as", "allowed", "largest difference"], nothing="not run",
        tail="""
What "measured as" means:

{measures}

Left out of the final weights: the keys' third of `attn.qkv.bias`. Softmax does not see it, so that its gradient is
nothing but rounding, which Adam scales up to full steps.

Measured with AVX-512. Kept to AVX2, Paddle 3.3.1 exceeds no largest difference of the table by more than a twentieth.

Pixels are those of Pillow, equal from 10.0 to 13.0 with one exception: when a picture is reduced much more in height
than in width, Pillow 13 begins with the height and earlier ones with the width, and their pixels differ by a few
levels of 255. The official code's Pillow was an earlier one.

The tests also break things on purpose and pass only if a comparison then fails: the epsilon of each single LayerNorm
(1e-5 and 1e-12 instead of 1e-6), the scale of each single attention (also by 1 %), an approximate GELU in each single
block, and constants, groups and schedules of the optimizers.
"""),
    "parity.zh-CN.md": dict(
        head="""# 与其他实现的数值差异

[English](parity.md)

本页由 `python tools/golden_table.py` 生成：它运行 `tests/test_golden_*.py`，并汇总这些测试量得的差异。参考值由
`tools/make_golden.py` 用与本项目无关的实现、在随机权重的小模型上算出，保存在 `tests/golden/`；运行测试不需要 PyTorch 或 timm。
参考实现与官方代码（基于 timm 0.3.2）不同之处，`tools/make_golden.py` 有说明，并以官方代码为准。
""",
        columns=["比较内容", "参考实现", "度量", "允许", "最大差异"], nothing="未运行",
        tail="""
“度量”一栏的含义：

{measures}

最终权重的比较不含 `attn.qkv.bias` 中属于 key 的三分之一：softmax 与它无关，其梯度只是舍入误差，却会被 Adam 放大成完整的步长。

以上用 AVX-512 测得。限制为 AVX2 时，Paddle 3.3.1 的各项最大差异比表中的至多大二十分之一。

像素由 Pillow 算出，10.0 到 13.0 各版本相同，只有一个例外：高度缩小的倍数明显大于宽度时，Pillow 13 先缩高度，之前的版本先缩宽度，
像素因此相差几个灰度级（满幅 255）。官方代码当时用的是更早的版本。

测试还会故意改坏代码，只有比较因此失败才算通过：逐个改动每个 LayerNorm 的 epsilon（1e-5 和 1e-12，而非 1e-6）、每个注意力的缩放
（包括只差 1 %）、每个 block 的 GELU（改用近似公式），以及优化器的常数、参数分组和学习率计划。
"""),
}


def measure(python):
    """Run the tests with `python`; return (its versions, {row: largest difference})."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "record.jsonl")
        tests = subprocess.run([python, "-m", "pytest", "-q", *TESTS], cwd=ROOT,
                               env={**os.environ, "MAE_PARITY_RECORD": str(record)})
        if tests.returncode:
            raise SystemExit(f"{python}: the comparisons fail, see above; nothing was written")
        lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    largest = {}
    for line in lines:
        largest[line["row"]] = max(largest.get(line["row"], 0.0), line["difference"])
    return "Paddle {paddle}, numpy {numpy}, Pillow {pillow}".format(**lines[0]), largest


def table(columns, nothing, measured, chinese):
    """The lines of the table; `measured` as a list of what `measure` gives."""
    columns = columns[:-1] + [f"{columns[-1]}<br>{versions}" for versions, _ in measured]
    lines = [columns, ["---"] * len(columns)]
    for name, row in parity.ROWS.items():
        lines.append([row.what_zh if chinese else row.what, reference(row), row.measure, number(row.tolerance),
                      *(number(largest[name]) if name in largest else nothing for _, largest in measured)])
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def reference(row):
    return row.reference.format(**parity.load(row.file)[1]["versions"]) if row.file else row.reference


def number(value):
    return f"{value:.1e}" if value else "0"


def main():
    parser = argparse.ArgumentParser(description="Write the table of differences to other implementations.")
    parser.add_argument("--python", nargs="+", default=[sys.executable],
                        help="interpreters to run the tests with, a column each")
    measured = [measure(python) for python in parser.parse_args().python]
    for name, texts in TEXTS.items():
        chinese = "zh" in name
        measures = "\n".join(f"- {measure}: {meaning[chinese]}" for measure, meaning in parity.MEASURES.items())
        lines = table(texts["columns"], texts["nothing"], measured, chinese)
        with atomic_write(ROOT / "docs" / name, "w") as f:
            f.write(texts["head"] + "\n" + "\n".join(lines) + "\n" + texts["tail"].format(measures=measures))


if __name__ == "__main__":
    main()
