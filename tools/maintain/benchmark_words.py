"""The words of the tables that benchmark_page.py writes, in English and Chinese."""

from typing import Any

# Page: words of the tables of docs/*/benchmarks.md.
BENCHMARKS: dict[str, dict[str, Any]] = {
    "en/benchmarks.md": dict(
        source="From the records in [records/{folder}](../../records/{folder}).",
        summary="Ratios at a glance",
        what="ratio of medians of",
        sections={
            "train_step": "A training step",
            "train_step_profile": "Where the time of a training step goes",
            "bfloat16_training": "Training in bfloat16 beside float32",
            "input_pipeline": "Input",
            "index": "Listing a large data set",
            "infer": "Inference",
            "infer_startup": "From the start of main_infer.py to its first answer",
        },
        titles={
            "train_step": "{task} step, {image} x {image} pixels, patch {patch}, width {width}, batch "
            "{batch}, {precision}",
            "train_step_profile": "{task} step, {image} x {image} pixels, patch {patch}, width {width}, "
            "batch {batch}",
            "bfloat16_training": "The same training with several seeds",
            "input_pipeline": "{source}, {input_size} pixels, batch {batch_size}, worker processes: "
            "{num_workers}",
            "index": "{files:,} files in {classes:,} folders",
            "infer": "Inference, {model}, batch {batch_size}, {precision}",
            "infer_startup": "First answer, {model}, {precision}",
        },
        tasks={"pretrain": "Pretraining", "finetune": "Finetuning"},
        sources=["Images from files", "Images from files and packed"],
        measurements={
            "images_per_s": "images/s",
            "seconds": "seconds",
            "ms": "ms per batch",
            "peak_mb": "peak memory, MB",
            "gflops": "GFLOP/s of the step",
            "matmul_gflops": "GFLOP/s of a large matrix product",
            "share_of_matmul": "share of that rate",
        },
        side="side",
        median="{}, median (lowest to highest)",
        ratio="ratio of medians",
        each="round by round",
        range="{} ({} to {})",
        origin="[{file}](../../records/{folder}/{file}), {date}; {cpu}, {cores} cores, {instruction_set}, "
        "{memory_gb} GB{rest}.",
        commit="; commit {}",
        rounds="; rounds: {}",
        about="- {sides}: {about}",
        ceiling="A step of matrix products alone, all at that rate, would be {} times as fast as {}.",
        profile="per cent of a step",
        step="a step, ms",
        kinds={},
        training=[
            "precision",
            "seeds",
            "steps",
            "loss of the last epoch of pretraining, mean (lowest to highest)",
            "accuracy after finetuning, mean (lowest to highest), %",
        ],
        apart=["loss of an epoch of pretraining", "largest of all epochs", "last epoch"],
        between_precisions="bfloat16 and float32 with the same seed, largest difference",
        between_seeds="float32 with different seeds, highest minus lowest",
    ),
    "zh/benchmarks.md": dict(
        source="根据 [records/{folder}](../../records/{folder}) 中的记录。",
        summary="比值一览",
        what="中位数之比",
        sections={
            "train_step": "训练步",
            "train_step_profile": "训练步的时间分布",
            "bfloat16_training": "bfloat16 训练与 float32 对照",
            "input_pipeline": "输入",
            "index": "列出大数据集的文件",
            "infer": "推理",
            "infer_startup": "main_infer.py 从启动到第一个结果",
        },
        titles={
            "train_step": "{task}步，{image} x {image} 像素，patch {patch}，宽度 {width}，batch {batch}，"
            "{precision}",
            "train_step_profile": "{task}步，{image} x {image} 像素，patch {patch}，宽度 {width}，batch "
            "{batch}",
            "bfloat16_training": "同样的训练，多个种子",
            "input_pipeline": "{source}，{input_size} 像素，batch {batch_size}，worker 进程数：{num_workers}",
            "index": "{files:,} 个文件，{classes:,} 个文件夹",
            "infer": "推理，{model}，batch {batch_size}，{precision}",
            "infer_startup": "第一个结果，{model}，{precision}",
        },
        tasks={"pretrain": "预训练", "finetune": "微调"},
        sources=["读取图片文件", "读取图片文件和打包的数据集"],
        measurements={
            "images_per_s": "图片/秒",
            "seconds": "秒",
            "ms": "每个 batch 毫秒",
            "peak_mb": "内存峰值，MB",
            "gflops": "训练步 GFLOP/s",
            "matmul_gflops": "大矩阵乘法 GFLOP/s",
            "share_of_matmul": "占该速率",
        },
        side="哪一方",
        median="{}，中位数（最低到最高）",
        ratio="中位数之比",
        each="逐轮",
        range="{}（{} 到 {}）",
        origin="[{file}](../../records/{folder}/{file})，{date}；{cpu}，{cores} 核，{instruction_set}，"
        "{memory_gb} GB{rest}。",
        commit="；提交 {}",
        rounds="；轮数：{}",
        about="- {sides}：{about}",
        ceiling="如果一步只有矩阵乘法，并且全部达到该速率，则速度是 {} 倍于 {}。",
        profile="占一步的百分比",
        step="一步，毫秒",
        kinds={
            "matrix products": "矩阵乘法",
            "all else, by Paddle and Python": "其余，由 Paddle 和 Python 完成",
        },
        training=[
            "精度",
            "种子",
            "步数",
            "预训练最后一个 epoch 的 loss，平均（最低到最高）",
            "微调后的准确率，平均（最低到最高），%",
        ],
        apart=["预训练一个 epoch 的 loss", "所有 epoch 中最大", "最后一个 epoch"],
        between_precisions="同一种子的 bfloat16 与 float32，最大差异",
        between_seeds="不同种子的 float32，最高减最低",
    ),
}

# Page: words of the tables in docs/*/inference.md.
INFERENCE: dict[str, dict[str, Any]] = {
    "en/inference.md": dict(
        head="From [records/{folder}](../../records/{folder}): {cpu}, {cores} cores, {instruction_set}, "
        "{memory_gb} GB, no GPU; "
        "{versions}. Values are medians. Ratios are of one run, in which the sides took turns. Absolute "
        "numbers "
        "of this virtual machine vary by up to a factor of two between runs.",
        infer="**Images/s** of {model}, {precision}. In brackets: the ratio to PyTorch (timm's model; in "
        "bfloat16 the "
        "faster of its two ways).",
        side="side",
        batch="batch {}",
        times="{} ({} x)",
        infer_startup="**Seconds from the start of a process to its first answer**, {model}, {precision}, "
        "with the "
        'weights in the disk cache. "import and read" only imports Paddle and reads the weights.',
        seconds="seconds, median (lowest to highest)",
        beside="ratio to PyTorch",
        range="{} ({} to {})",
        serve_load="**The service under load.** Pictures are sent as files from the same machine, so both "
        "share its "
        "cores.",
        load=[
            "model",
            "requests",
            "concurrent",
            "requests/s",
            "p50, ms",
            "p99, ms",
            "slowest, ms",
            "images per batch",
            "errors",
            "memory, MB, at the start, in the middle, at the end",
        ],
    ),
    "zh/inference.md": dict(
        head="根据 [records/{folder}](../../records/{folder})：{cpu}，{cores} 核，{instruction_set}，"
        "{memory_gb} GB，没有 GPU；"
        "{versions}。数值为中位数；比值出自同一次运行，运行时各方轮流进行。"
        "这台虚拟机上，不同运行之间绝对数值最多相差一倍。",
        infer="**每秒图片数**，{model}，{precision}；括号里是与 PyTorch 之比"
        "（timm 的模型；bfloat16 取它两种方式中较快的）。",
        side="哪一方",
        batch="batch {}",
        times="{}（{} 倍）",
        infer_startup="**从进程启动到第一个答案的秒数**，{model}，{precision}，权重已在磁盘缓存中；"
        "“import and read”只导入 Paddle 并读取权重。",
        seconds="秒，中位数（最低到最高）",
        beside="与 PyTorch 之比",
        range="{}（{} 到 {}）",
        serve_load="**服务的负载测试。** 图片以文件的形式从同一台机器发送，双方共用 CPU。",
        load=[
            "模型",
            "请求数",
            "并发",
            "请求/秒",
            "p50，毫秒",
            "p99，毫秒",
            "最慢，毫秒",
            "每个 batch 的图片",
            "错误",
            "内存 MB：开始、中间、结束",
        ],
    ),
}
