"""Flags of every script: the official ones with their defaults are frozen, of ours the names."""

import pytest

import main_finetune
import main_infer
import main_linprobe
import main_pretrain
from tools import calibrate, channel_statistics, eval_features, export, extract_features
from util.options import command_line, flags

# Flags and defaults of the official scripts (facebookresearch/mae, commit efb2a80), written out by hand.
OFFICIAL_COMMON = {
    "--accum_iter": 1,
    "--lr": None,
    "--data_path": "/datasets01/imagenet_full_size/061417/",
    "--output_dir": "./output_dir",
    "--log_dir": "./output_dir",
    "--seed": 0,
    "--resume": "",
    "--start_epoch": 0,
    "--num_workers": 10,
    "--pin_mem": True,
    "--no_pin_mem": True,
    "--world_size": 1,
    "--local_rank": -1,
    "--dist_on_itp": False,
    "--dist_url": "env://",
}
OFFICIAL_CLASSIFIER = {
    **OFFICIAL_COMMON,
    "--model": "vit_large_patch16",
    "--finetune": "",
    "--nb_classes": 1000,
    "--eval": False,
    "--dist_eval": False,
}
OFFICIAL = {
    "pretrain": {
        **OFFICIAL_COMMON,
        "--batch_size": 64,
        "--epochs": 400,
        "--model": "mae_vit_large_patch16",
        "--input_size": 224,
        "--mask_ratio": 0.75,
        "--norm_pix_loss": False,
        "--weight_decay": 0.05,
        "--blr": 1e-3,
        "--min_lr": 0.0,
        "--warmup_epochs": 40,
    },
    "finetune": {
        **OFFICIAL_CLASSIFIER,
        "--batch_size": 64,
        "--epochs": 50,
        "--input_size": 224,
        "--drop_path": 0.1,
        "--clip_grad": None,
        "--weight_decay": 0.05,
        "--blr": 1e-3,
        "--layer_decay": 0.75,
        "--min_lr": 1e-6,
        "--warmup_epochs": 5,
        "--color_jitter": None,
        "--aa": "rand-m9-mstd0.5-inc1",
        "--smoothing": 0.1,
        "--reprob": 0.25,
        "--remode": "pixel",
        "--recount": 1,
        "--resplit": False,
        "--mixup": 0.0,
        "--cutmix": 0.0,
        "--cutmix_minmax": None,
        "--mixup_prob": 1.0,
        "--mixup_switch_prob": 0.5,
        "--mixup_mode": "batch",
        "--global_pool": True,
        "--cls_token": True,
    },
    "linprobe": {
        **OFFICIAL_CLASSIFIER,
        "--batch_size": 512,
        "--epochs": 90,
        "--weight_decay": 0.0,
        "--blr": 0.1,
        "--min_lr": 0.0,
        "--warmup_epochs": 10,
        "--global_pool": False,
        "--cls_token": False,
    },
}

# The official default of --device is "cuda", which is still accepted. --log_dir follows --output_dir here.
CHANGED = {"--log_dir": None}

# Our flags: none may disappear, and a new one must be listed here.
DATA = "--dataset --image_backend --bad_images --image_root --data_path --num_workers"
DEVICE = "--device --amp"
TRAINING = (
    f"{DATA} {DEVICE} --config --print_freq --attention --dry_run --val_every --shuffle_buffer "
    "--patch_size --in_chans --mean --std --save_steps --save_every_minutes --save_async --keep "
    "--save_every --on_nan --allow_changes --trust_checkpoint --opt --opt_betas --momentum "
    "--clip_grad --loss_scale --ema --ema_decay --sched --decay_epochs --decay_rate "
    "--patience_epochs --embed_dim --depth --num_heads --augment --color_jitter --aa --input_size "
    "--finetune"
)
WHOLE = "--amp_level --recompute --fused_adamw --compile"
SOFT = (
    "--reprob --remode --recount --smoothing --mixup --cutmix --cutmix_minmax --mixup_prob "
    "--mixup_switch_prob --mixup_mode"
)
OURS = {
    main_pretrain: f"{TRAINING} {WHOLE} --vis_every --show_channels --encoder_mask_tokens --pca_target "
    "--mask_mode --crop --decoder_embed_dim --decoder_depth --decoder_num_heads",
    main_finetune: f"{TRAINING} {WHOLE}",
    main_linprobe: f"{TRAINING} {SOFT}",
    main_infer: f"{DEVICE} --config --resume --model --input_size --in_chans --patch_size --mean --std "
    "--nb_classes --global_pool --cls_token --trust_checkpoint --img_path --batch_size --engine "
    "--trt --save_to --topk --output --class_names --temperature --tta --features --mask_ratio "
    "--mask_mode --norm_pix_loss --seed --output_dir --show_channels",
    calibrate: f"{DATA} {DEVICE} --config --resume --trust_checkpoint --split --batch_size",
    channel_statistics: f"{DATA} --config --split --in_chans",
    extract_features: f"{DATA} {DEVICE} --config --resume --trust_checkpoint --output --features --block "
    "--img_path --split --input_size --mean --std --batch_size",
    export: "--config --resume --trust_checkpoint --output --format --opset --dynamic_batch --batch_size "
    "--encoder --features --input_size --mean --std --class_names --temperature",
    eval_features: "--config --features --k --temperature --weight_decay --seed",
}


def defaults(main):
    """Return {flag: default} of a script."""
    actions = main.get_args_parser()._option_string_actions
    return {
        flag: action.default
        for flag, action in actions.items()
        if flag not in ("-h", "--help", "--print_config")
    }


@pytest.mark.parametrize("main", OURS, ids=lambda main: main.__name__)
def test_flags_are_exactly_those_listed(main):
    official = OFFICIAL.get(main.__name__.removeprefix("main_"), {})
    assert defaults(main).keys() == official.keys() | set(OURS[main].split())


def test_a_flag_without_facts_is_an_error_that_names_their_file():
    with pytest.raises(LookupError, match="--unlisted: .* util/run/flag_facts.py"):
        flags.add(command_line.Parser("x"), "--unlisted")


@pytest.mark.parametrize(
    "main", [main_pretrain, main_finetune, main_linprobe], ids=lambda main: main.__name__
)
def test_official_flags_have_their_defaults(main):
    expected = {**OFFICIAL[main.__name__.removeprefix("main_")], **CHANGED}
    found = {flag: default for flag, default in defaults(main).items() if flag in expected}
    assert found == expected
    assert {flag: type(default) for flag, default in found.items()} == {
        flag: type(default) for flag, default in expected.items()
    }  # 1 and 1.0 and True are equal


# A flag of every type, given as text, and the value that it must become.
GIVEN = [
    ("--batch_size 7", "batch_size", 7),
    ("--blr 1e-3", "blr", 0.001),
    ("--lr 1", "lr", 1.0),
    ("--resume x", "resume", "x"),
    ("--input_size 224 160", "input_size", [224, 160]),
    ("--input_size 96", "input_size", [96]),
    ("--weight_decay 0", "weight_decay", 0.0),
    ("--mean 0.5 -1", "mean", [0.5, -1.0]),
    ("--device cuda", "device", "cuda"),
    ("--no_pin_mem", "pin_mem", False),
    ("--no_pin_mem --pin_mem", "pin_mem", True),
    ("--amp bf16", "amp", "bf16"),
    ("--output_dir=", "output_dir", ""),
]


@pytest.mark.parametrize("words, name, value", GIVEN)
def test_values(words, name, value):
    got = getattr(main_finetune.get_args_parser().parse(words.split()), name)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    "main, words, pooled",
    [
        (main_finetune, "", True),
        (main_finetune, "--cls_token", False),
        (main_finetune, "--global_pool", True),
        (main_linprobe, "", False),
        (main_linprobe, "--cls_token", False),
        (main_linprobe, "--global_pool", True),
    ],
)
def test_pooling_has_two_names(main, words, pooled):
    assert main.get_args_parser().parse(words.split()).global_pool is pooled


@pytest.mark.parametrize("main", OURS, ids=lambda main: main.__name__)
def test_the_help_can_be_shown(main):
    shown = main.get_args_parser().format_help()  # a stray % in a text would raise
    assert "--config FILE" in shown and ("--model NAME" in shown) == (
        "--model" in OURS[main] + str(OFFICIAL.get(main.__name__.removeprefix("main_")))
    )
