"""The sentences of a report, in English and Chinese; a name in braces is filled in."""

LANGUAGES = ("en", "zh")

_TEXT = {
    # ---- headings
    "report": ("Report: {names}", "运行报告：{names}"),
    "curves": ("Curves", "曲线"),
    "reconstructions": ("Reconstructions", "重建"),
    "classes": ("Classes", "各类别"),
    "settings": ("Settings", "设置"),
    "environment": ("Environment", "环境"),
    "values": ("All values of log.txt", "log.txt 中的全部数值"),
    "differences": ("What differs between the runs", "各次运行的不同之处"),
    "results": ("Results", "结果"),
    "more_settings": ("The other settings", "其余设置"),
    "confusion": ("Confusion matrix", "混淆矩阵"),
    # ---- names of numbers
    "train_loss": ("training loss", "训练损失"),
    "test_loss": ("test loss", "测试损失"),
    "loss": ("loss", "损失"),
    "test_acc1": ("top-1 accuracy (%)", "Top-1 准确率（%）"),
    "test_acc5": ("top-5 accuracy (%)", "Top-5 准确率（%）"),
    "test_ema_loss": ("test loss, averaged weights", "测试损失（EMA 权重）"),
    "test_ema_acc1": ("top-1 accuracy (%), averaged weights", "Top-1 准确率（%，EMA 权重）"),
    "train_lr": ("learning rate", "学习率"),
    "train_grad_norm": ("gradient norm", "梯度范数"),
    "train_attention_entropy": ("attention entropy", "注意力熵"),
    "train_images_per_s": ("images/s", "图像/秒"),
    "train_data_wait": ("waiting for data (%)", "等待数据（%）"),
    "epoch": ("epoch (from 0, as in log.txt)", "轮次（从 0 开始，与 log.txt 一致）"),
    # ---- tables
    "epoch_number": ("epoch", "轮次"),
    "run": ("run", "运行"),
    "name": ("name", "名称"),
    "value": ("value", "值"),
    "epochs_done": ("epochs", "轮次"),
    "of_epochs": ("{done} of {epochs}", "{done} / {epochs} 轮"),
    "last_train_loss": ("last training loss", "最后训练损失"),
    "best_acc1": ("best top-1 (%)", "最佳 Top-1（%）"),
    "best_epoch": ("best epoch", "最佳轮次"),
    "last_acc1": ("last top-1 (%)", "最后 Top-1（%）"),
    "last_acc5": ("last top-5 (%)", "最后 Top-5（%）"),
    "last_test_loss": ("last test loss", "最后测试损失"),
    "median_rate": ("images/s (median)", "图像/秒（中位数）"),
    "parameters": ("trained parameters", "可训练参数"),
    "class": ("class", "类别"),
    "images": ("images", "图像数"),
    "recall": ("recall (%)", "召回率（%）"),
    "precision": ("precision (%)", "精确率（%）"),
    "confused_with": ("most often taken for", "最常被误认为"),
    "true_class": ("true class", "真实类别"),
    "predicted": ("predicted", "预测"),
    "same": ("The runs have the same settings.", "各次运行的设置相同。"),
    "same_environment": ("The environments are the same.", "运行环境相同。"),
    # ---- verdicts
    "no_epochs": ("No epoch is finished yet: there is nothing to judge.", "还没有完成任何一轮，无从判断。"),
    "stays_at_one": (
        "The loss stays at 1.0 (lowest: {least}): nothing is learned. With normalised pixels 1.0 is the loss of "
        "predicting zero.",
        "损失停在 1.0（最低 {least}）：模型什么都没学到。使用归一化像素时，全部预测为零的损失就是 1.0。",
    ),
    "stays_at_chance": (
        "The accuracy stays at chance (best {best} %, without looking {chance} %): nothing is learned.",
        "准确率停留在随机水平（最佳 {best}%，不看图像也有 {chance}%）：模型什么都没学到。",
    ),
    "train_rises": (
        "The training loss rises since epoch {epoch}: from {least} to {last}.",
        "训练损失自第 {epoch} 轮起上升：从 {least} 到 {last}。",
    ),
    "train_lost": (
        "The training loss is not finite since epoch {epoch}.",
        "自第 {epoch} 轮起训练损失为非有限值。",
    ),
    "test_lost": (
        "The test loss is not finite since epoch {epoch}.",
        "自第 {epoch} 轮起测试损失为非有限值。",
    ),
    "train_flat": (
        "The training loss hardly falls: {first} at first, {last} at last.",
        "训练损失几乎没有下降：开始 {first}，最后 {last}。",
    ),
    "overfits": (
        "The training loss falls and the test loss rises since epoch {epoch} (from {least} to {last}): overfitting.",
        "自第 {epoch} 轮起训练损失下降而测试损失上升（从 {least} 到 {last}）：过拟合。",
    ),
    "test_rises": (
        "The test loss rises since epoch {epoch}: from {least} to {last}.",
        "测试损失自第 {epoch} 轮起上升：从 {least} 到 {last}。",
    ),
    "went": (
        "The training loss went from {first} to {last} in {epochs} epochs.",
        "训练损失在 {epochs} 轮中从 {first} 变为 {last}。",
    ),
    "one_epoch": ("The training loss of the only epoch is {loss}.", "唯一一轮的训练损失为 {loss}。"),
    "best_accuracy": (
        "The best top-1 accuracy is {accuracy} %, in epoch {epoch}.",
        "最佳 Top-1 准确率为 {accuracy}%（第 {epoch} 轮）。",
    ),
    "beside_record": (
        "The training loss of epoch {epoch} is {loss}; it was {then} in this project's record of "
        "the same settings.",
        "第 {epoch} 轮的训练损失为 {loss}；本项目相同设置的记录为 {then}。",
    ),
    "too_few": (
        "Fewer than {epochs} epochs are too few for a verdict.",
        "不足 {epochs} 轮，不足以作出判断。",
    ),
    # ---- what is expected
    "zone_zero": ("1.0 and above: no better than predicting zero", "1.0 及以上：不比全部预测为零更好"),
    "zone_uniform": (
        "{loss} and above: no better than finding all classes equally likely (ln C)",
        "{loss} 及以上：不比认为各类概率相同更好（ln C）",
    ),
    "zone_chance": ("{accuracy} % and below: no better than chance", "{accuracy}% 及以下：不比随机猜测更好"),
    "official_curve": (
        "official code, if the data are ImageNet-1k: ViT-B, normalised pixels, batch 4096, warm-up 15 epochs "
        "(reported in beyond_masking issue 1)",
        "官方代码（仅当数据为 ImageNet-1k 时可比）：ViT-B，归一化像素，批大小 4096，预热 15 轮（见 beyond_masking issue 1）",
    ),
    "official_curve_warmup": (
        "official code, if the data are ImageNet-1k: ViT-B, normalised pixels, batch 4096, warm-up 15 epochs and not "
        "{warmup} as here, which delays the fall (reported in beyond_masking issue 1)",
        "官方代码（仅当数据为 ImageNet-1k 时可比）：ViT-B，归一化像素，批大小 4096，预热 15 轮；本次预热 {warmup} 轮，"
        "损失下降的时间会不同（见 beyond_masking issue 1）",
    ),
    "official_late": (
        "about 0.42: late in long runs of the official code (reported in facebookresearch/mae issue 21)",
        "约 0.42：官方代码长时间训练后期的损失（见 facebookresearch/mae issue 21）",
    ),
    "official_finetuning": (
        "{low} to {high} %: after {epochs} epochs, four seeds of the official code, if the data are ImageNet-1k",
        "{low}% 至 {high}%：官方代码四个随机种子训练 {epochs} 轮后的结果（仅当数据为 ImageNet-1k 时可比）",
    ),
    "official_probe": (
        "{low} %: after {epochs} epochs, official repository, if the data are ImageNet-1k",
        "{low}%：官方仓库训练 {epochs} 轮后的结果（仅当数据为 ImageNet-1k 时可比）",
    ),
    "recorded": ("the same settings in {record}", "相同设置的记录：{record}"),
    "no_reference": (
        "For these settings no curve of a healthy run is known.",
        "对这组设置，没有已知的正常曲线可供对照。",
    ),
    "many_references": (
        "No record is drawn: more than {most} would be needed.",
        "需要的记录超过 {most} 份，故未画出。",
    ),
    # ---- warnings
    "damaged_lines": (
        "{file}: {lines} lines cannot be read and are left out.",
        "{file}：有 {lines} 行无法读取，已略去。",
    ),
    "damaged_file": ("{file} cannot be read.", "{file} 无法读取。"),
    "missing_file": ("There is no {file}.", "没有 {file}。"),
    "ends_early": (
        "{done} of {epochs} epochs are in log.txt: the run goes on, was interrupted, or has failed.",
        "log.txt 中只有 {epochs} 轮中的 {done} 轮：运行仍在继续、被中断或已失败。",
    ),
    "gaps": ("Epochs are missing in log.txt: {epochs}.", "log.txt 中缺少这些轮次：{epochs}。"),
    "not_finite_values": (
        "log.txt has values that are not finite, which no curve shows: {names}.",
        "log.txt 中有非有限数值，曲线中未画出：{names}。",
    ),
    "not_finite": ("A loss was not finite ({reports} reports).", "出现过非有限的损失（{reports} 份报告）。"),
    "skipped_updates": (
        "{updates} updates were left out because a loss was not finite, in epochs {epochs}.",
        "因损失非有限而略去 {updates} 次更新，所在轮次：{epochs}。",
    ),
    "data_wait": (
        "In {epochs} of {of} epochs more than 10 % of the time went into waiting for data (median of them: "
        "{share} %).",
        "{of} 轮中有 {epochs} 轮等待数据的时间超过 10%（这些轮次的中位数为 {share}%）。",
    ),
    "left_out": (
        "The accuracies leave out up to {images} pictures that cannot be read.",
        "计算准确率时最多略去了 {images} 张无法读取的图像。",
    ),
    "bad_images": (
        "{images} pictures of {split} cannot be read and were skipped.",
        "{split} 中有 {images} 张图像无法读取，已跳过。",
    ),
    "slow_operations": (
        "The run was slower than it could be: {operations}.",
        "运行速度未达到应有水平：{operations}。",
    ),
    "git_dirty": (
        "The code differed from revision {revision}.",
        "所用代码与版本 {revision} 不一致（有未提交的修改）。",
    ),
    "earlier": (
        "The folder also holds {count} earlier runs or what a continued run has given up: {folders}.",
        "目录中还有 {count} 份更早的运行或续训时放弃的内容：{folders}。",
    ),
    "other_outputs": (
        "The confusion matrix has {classes} classes, the model {outputs}: it is not of this run.",
        "混淆矩阵有 {classes} 个类别，模型有 {outputs} 个输出：它不属于这次运行。",
    ),
    "other_confusion": (
        "The confusion matrix has an accuracy of {accuracy} %, the log one of {best} %: it is not of "
        "this run.",
        "混淆矩阵的准确率为 {accuracy}%，日志中为 {best}%：它不属于这次运行。",
    ),
    "other_epoch": (
        "The confusion matrix is of epoch {epoch}, the best accuracy of epoch {best}.",
        "混淆矩阵来自第 {epoch} 轮，而最佳准确率出现在第 {best} 轮。",
    ),
    # ---- sentences
    "worst_first": (
        "{images} held-out images in epoch {epoch}, worst recall first.",
        "第 {epoch} 轮的 {images} 张留出图像，按召回率从低到高排列。",
    ),
    "other_classes": ("The other {count} classes", "其余 {count} 个类别"),
    "confusion_caption": (
        "Rows: true class; columns: predicted. The stronger the colour, the greater the share of the "
        "row: right answers in blue, wrong ones in orange.",
        "行为真实类别，列为预测类别。颜色越浓，占该行的比例越大：蓝色为正确，橙色为错误。",
    ),
    "confusion_picture": (
        "{classes} classes from top left in the order of their names; each dot is {each} classes wide.",
        "{classes} 个类别按名称顺序从左上角排列，每个点为 {each} 个类别宽。",
    ),
    "after_epoch": ("after {name}", "{name} 之后"),
    "pictures_left_out": (
        "{shown} of {count} pictures are shown, evenly chosen over time.",
        "共 {count} 张图，按时间均匀选取，显示 {shown} 张。",
    ),
    "pictures_no_space": (
        "More would take more than the {megabytes} MB that the page has for them.",
        "更多图像会超出页面为其预留的 {megabytes} MB。",
    ),
    "pictures_damaged": ("{damaged} cannot be read.", "{damaged} 张无法读取。"),
    "pictures_smaller": ("Large ones are shown smaller than the files are.", "较大的图以缩小后的尺寸显示。"),
    "values_left_out": (
        "{shown} of {count} epochs are shown, evenly chosen.",
        "共 {count} 轮，均匀选取显示其中 {shown} 轮。",
    ),
    "details": ("Details", "详情"),
    "choose": ("Choose an epoch", "选择轮次"),
}
TEXT = {
    language: {key: texts[number] for key, texts in _TEXT.items()}
    for number, language in enumerate(LANGUAGES)
}


def text(language: str, key: str, **values: object) -> str:
    """Return a sentence as plain text; the caller escapes it for HTML."""
    return TEXT[language][key].format(**values)
