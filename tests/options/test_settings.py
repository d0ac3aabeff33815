"""Settings of a run: defaults that depend on other flags, refused combinations, and arguments of models."""

import copy
import shlex

import pytest
from scripts import write_pictures

import main_finetune
import main_linprobe
import main_pretrain
from models_mae import MODELS
from util.options import settings
from util.run.learning_rate import LearningRate
from util.run.settings import Data, Optimisation, Precision, Saving, Schedule
from util.system import distributed

MAINS = {"pretrain": main_pretrain, "finetune": main_finetune, "linprobe": main_linprobe}


def parsed(name, words):
    return MAINS[name].get_args_parser().parse(shlex.split(words))


def settled(name, words):
    return settings.settle(parsed(name, words))


# ---- settle


@pytest.mark.parametrize(
    "name, words, expected",
    [
        (
            "pretrain",
            "",
            dict(opt="adamw", opt_betas=None, momentum=None, sched="cosine", decay_rate=None, ema_decay=None),
        ),
        ("linprobe", "", dict(opt="lars", momentum=0.9)),
        (
            "finetune",
            "--opt sgd --sched step --ema",
            dict(momentum=0.9, decay_epochs=30, decay_rate=0.1, ema_decay=0.9999),
        ),
        (
            "finetune",
            "--sched plateau --loss_scale 128",
            dict(patience_epochs=10, decay_rate=0.5, loss_scale=128.0),
        ),
        (
            "linprobe",
            "--momentum 0.5 --sched step --decay_epochs 3 --decay_rate 0.2",
            dict(momentum=0.5, decay_epochs=3, decay_rate=0.2, patience_epochs=None),
        ),
        ("pretrain", "--dataset cifar10", dict(data_path="")),
        ("pretrain", "--dataset cifar10 --data_path x", dict(data_path="x")),
    ],
)
def test_defaults_that_depend_on_other_flags(name, words, expected):
    """Checkpoints keep them; what was parsed stays as it was."""
    args = parsed(name, words)
    before = copy.deepcopy(vars(args))
    options = settings.settle(args).options
    assert {name: options[name] for name in expected} == expected
    assert vars(args) == before


def test_every_setting_has_the_value_of_its_flag():
    given = parsed(
        "finetune", "--opt_betas 0.8 0.7 --clip_grad 2 --lr 3 --keep 4 --amp bf16 --num_workers 5 --recompute"
    )
    found = settings.settle(given)
    parts = (found.data, found.optimisation, found.schedule, found.saving, found.precision)
    assert tuple(map(type, parts)) == (Data, Optimisation, Schedule, Saving, Precision)
    for part in parts:
        assert {name: getattr(given, name) for name in vars(part)} == vars(part)


def test_betas_of_pretraining_and_of_other_scripts():
    """Paper, Table 8 and 9; a checkpoint keeps only what was given."""
    args = parsed("pretrain", "")
    found = settings.settle(args, betas=settings.PRETRAIN_BETAS)
    assert found.optimisation.opt_betas == (0.9, 0.95) and found.options["opt_betas"] is None
    assert settled("finetune", "").optimisation.opt_betas == (0.9, 0.999)
    assert settled("linprobe", "").optimisation.opt_betas is None


@pytest.mark.parametrize(
    "words, flags",
    [
        ("--opt adamw --momentum 0.9", "--momentum 0.9: adamw"),
        ("--opt sgd --opt_betas 0.9 0.95", "--opt_betas 0.9 0.95: .* sgd"),
        ("--opt_betas 0.9 1", "--opt_betas 0.9 1.0: "),
        ("--opt sgd --fused_adamw", "--fused_adamw: .* sgd"),
        ("--opt lars --amp_level O2", "--amp_level O2: .* lars"),
        ("--opt sgd --momentum 1", "--momentum 1.0: "),
        ("--decay_epochs 3", "--decay_epochs 3: .*cosine.*step"),
        ("--sched plateau --decay_epochs 3", "--decay_epochs 3: .*plateau.*step"),
        ("--sched step --patience_epochs 3", "--patience_epochs 3: .*step.*plateau"),
        ("--decay_rate 0.1", "--decay_rate 0.1: .*cosine.*step and plateau"),
        ("--sched plateau --val_every 0", "--sched plateau: .*--val_every 1"),
        ("--val_every -1", "--val_every -1: "),
        ("--sched step --decay_epochs 0", "--decay_epochs 0: "),
        ("--sched step --decay_rate 1.5", "--decay_rate 1.5: "),
        ("--ema_decay 0.9", "--ema_decay 0.9: .*--ema"),
        ("--clip_grad 0", "--clip_grad 0.0: "),
        ("--seed -1", "--seed -1: "),
        ("--in_chans 0", "--in_chans 0: "),
        ("--lr -1", "--lr -1.0: "),
        ("--blr nan", "--blr nan: "),
        ("--warmup_epochs -3", "--warmup_epochs -3: "),
        ("--weight_decay -1", "--weight_decay -1.0: "),
        ("--smoothing 1.5", "--smoothing 1.5: "),
        ("--save_every 1 --keep 3", "--keep 3: --save_every 1"),
        ("--loss_scale big", "--loss_scale big: "),
        ("--save_steps -1", "--save_steps -1: "),
        ("--start_epoch -1", "--start_epoch -1: "),
    ],
)
def test_values_that_are_refused(words, flags):
    with pytest.raises(ValueError, match=flags):
        settled("finetune", words)


def test_a_script_refuses_them_with_exit_code_2(tmp_path, call_script):
    words = [
        "--model",
        "mae_vit_tiny_patch4",
        "--input_size",
        8,
        "--device",
        "cpu",
        "--output_dir",
        "",
        "--num_workers",
        0,
        "--data_path",
        write_pictures(tmp_path, train=4, val=1),
        "--batch_size",
        4,
        "--sched",
        "plateau",
    ]
    assert "--sched plateau: " in call_script(main_pretrain, *words, code=2)[1]


# ---- learning rate


@pytest.mark.parametrize(
    "name, words, line",
    [
        (
            "pretrain",
            "--batch_size 256 --accum_iter 2 --blr 1.5e-4 --epochs 1600 --warmup_epochs 40",
            "batch 256 x accum 2 x 8 processes = 4096, lr 2.4e-03",
        ),
        (
            "finetune",
            "--batch_size 128 --blr 5e-4 --epochs 100",
            "batch 128 x accum 1 x 8 processes = 1024, lr 2.0e-03",
        ),
        (
            "linprobe",
            "--batch_size 1024 --accum_iter 2",
            "batch 1024 x accum 2 x 8 processes = 16384, lr 6.4e+00",
        ),
    ],
)
def test_learning_rates_of_the_recipes_on_eight_processes(name, words, line, monkeypatch):
    """Table 8 and 9 of the paper: 1.5e-4, 5e-4 and 0.1 per 256 images."""
    monkeypatch.setattr(distributed, "world_size", lambda: 8)
    schedule = settled(name, words).schedule
    lr = LearningRate(schedule)
    assert str(lr) == line and lr.peak == pytest.approx(float(line.split()[-1]), rel=1e-12)
    assert lr(schedule.warmup_epochs) == lr.peak and lr(0) == 0
    assert lr(schedule.warmup_epochs / 2) == pytest.approx(lr.peak / 2)
    assert lr(schedule.epochs) == pytest.approx(schedule.min_lr)


def test_lr_overrides_blr():
    lr = LearningRate(settled("pretrain", "--lr 3e-4 --blr 7 --batch_size 32").schedule)
    assert lr.peak == 3e-4 and str(lr) == "batch 32 x accum 1 x 1 processes = 32, lr 3.0e-04"


# ---- models and images


@pytest.mark.parametrize(
    "words, sizes",
    [
        ("", {"img_size": 224, "in_chans": 3}),
        ("--input_size 96", {"img_size": [96], "in_chans": 3}),
        (
            "--input_size 32 48 --patch_size 8 --in_chans 1",
            {"img_size": [32, 48], "in_chans": 1, "patch_size": 8},
        ),
        (
            "--embed_dim 384 --depth 24 --num_heads 6",
            {"img_size": 224, "in_chans": 3, "embed_dim": 384, "num_heads": 6},
        ),
    ],
)
def test_model_sizes(words, sizes):
    """The default model is the large one, whose depth is 24."""
    args = parsed("pretrain", words)
    assert settings.model_sizes(args, MODELS[args.model]) == sizes


@pytest.mark.parametrize(
    "words, sizes",
    [
        ("", {}),
        ("--decoder_depth 8 --decoder_embed_dim 512", {}),
        ("--decoder_depth 1 --decoder_embed_dim 512", {"decoder_depth": 1}),
        *((f"--decoder_embed_dim {width}", {"decoder_embed_dim": width}) for width in (128, 256, 768, 1024)),
    ],
)
def test_decoder_sizes(words, sizes):
    """The widths are those of the paper's Table 1 (b), with 16 heads."""
    assert settings.decoder_sizes(parsed("pretrain", words), MODELS["mae_vit_base_patch16"]) == sizes


@pytest.mark.parametrize(
    "words, complaint",
    [
        ("--depth 0", "--depth 0: "),
        ("--embed_dim 520", "--embed_dim 520: .*--num_heads, which is 16"),
        ("--decoder_depth 0", "--decoder_depth 0: "),
        ("--decoder_num_heads 0", "--decoder_num_heads 0: "),
        ("--decoder_embed_dim 72", "--decoder_embed_dim 72: .*--decoder_num_heads, which is 16"),
        ("--decoder_embed_dim 6 --decoder_num_heads 3", "--decoder_embed_dim 6: expected a multiple of 4"),
    ],
)
def test_sizes_that_are_refused(words, complaint):
    args = parsed("pretrain", words)
    with pytest.raises(ValueError, match=complaint):
        settings.model_sizes(args, MODELS[args.model]) and settings.decoder_sizes(args, MODELS[args.model])


def mean_std_of(words):
    return settings.mean_std(parsed("pretrain", words))


def test_mean_and_std():
    imagenet = mean_std_of("")
    assert tuple(imagenet["mean"]) == (0.485, 0.456, 0.406) and tuple(imagenet["std"]) == (
        0.229,
        0.224,
        0.225,
    )
    assert mean_std_of("--mean 0.1 0.2 0.3") == {"mean": [0.1, 0.2, 0.3], "std": imagenet["std"]}
    # Luma of ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B.
    assert mean_std_of("--in_chans 1")["mean"] == pytest.approx(
        [0.299 * 0.485 + 0.587 * 0.456 + 0.114 * 0.406]
    )
    assert mean_std_of("--in_chans 2 --mean 1 2 --std 3 4") == {"mean": [1.0, 2.0], "std": [3.0, 4.0]}
    for words, complaint in (
        ("--mean 0.5", "--mean: expected 3 numbers, .* got 1"),
        ("--in_chans 1 --std 1 2", "--std: expected 1 numbers, .* got 2"),
        ("--in_chans 2", "--in_chans"),
    ):
        with pytest.raises(ValueError, match=complaint):
            mean_std_of(words)
