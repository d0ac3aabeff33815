"""The flags of every script and their defaults, frozen: adding or changing one is a decision, made here too."""
import pytest

import main_finetune
import main_infer
import main_linprobe
import main_pretrain
from tools import calibrate, channel_statistics, eval_features, export, extract_features

# Flags and defaults of the official scripts (facebookresearch/mae, commit efb2a80), written out by hand.
OFFICIAL_COMMON = {
    "--accum_iter": 1, "--lr": None, "--data_path": "/datasets01/imagenet_full_size/061417/",
    "--output_dir": "./output_dir", "--log_dir": "./output_dir", "--seed": 0, "--resume": "", "--start_epoch": 0,
    "--num_workers": 10, "--pin_mem": True, "--no_pin_mem": True, "--world_size": 1, "--local_rank": -1,
    "--dist_on_itp": False, "--dist_url": "env://"}
OFFICIAL_CLASSIFIER = {
    **OFFICIAL_COMMON, "--model": "vit_large_patch16", "--finetune": "", "--nb_classes": 1000, "--eval": False,
    "--dist_eval": False}
OFFICIAL = {
    "pretrain": {
        **OFFICIAL_COMMON, "--batch_size": 64, "--epochs": 400, "--model": "mae_vit_large_patch16", "--input_size": 224,
        "--mask_ratio": 0.75, "--norm_pix_loss": False, "--weight_decay": 0.05, "--blr": 1e-3, "--min_lr": 0.0,
        "--warmup_epochs": 40},
    "finetune": {
        **OFFICIAL_CLASSIFIER, "--batch_size": 64, "--epochs": 50, "--input_size": 224, "--drop_path": 0.1,
        "--clip_grad": None, "--weight_decay": 0.05, "--blr": 1e-3, "--layer_decay": 0.75, "--min_lr": 1e-6,
        "--warmup_epochs": 5, "--color_jitter": None, "--aa": "rand-m9-mstd0.5-inc1", "--smoothing": 0.1,
        "--reprob": 0.25, "--remode": "pixel", "--recount": 1, "--resplit": False, "--mixup": 0.0, "--cutmix": 0.0,
        "--cutmix_minmax": None, "--mixup_prob": 1.0, "--mixup_switch_prob": 0.5, "--mixup_mode": "batch",
        "--global_pool": True, "--cls_token": True},
    "linprobe": {
        **OFFICIAL_CLASSIFIER, "--batch_size": 512, "--epochs": 90, "--weight_decay": 0.0, "--blr": 0.1,
        "--min_lr": 0.0, "--warmup_epochs": 10, "--global_pool": False, "--cls_token": False},
}

# Ours. The official default of --device is "cuda", which is still accepted; and --log_dir has a default of its own
# there, while it follows --output_dir here.
SIZES = {"--patch_size": None, "--in_chans": 3, "--mean": None, "--std": None}
DEVICE = {"--device": "auto", "--amp": "auto"}
DATA = {"--dataset": "folder", "--image_backend": "pillow", "--bad_images": "error", "--image_root": ""}
ADDED = {**SIZES, **DEVICE, **DATA, "--config": "", "--print_freq": 20, "--log_dir": None, "--attention": "auto",
         "--dry_run": False, "--val_every": 1, "--shuffle_buffer": 0}
SAVING = {"--save_steps": 0, "--save_every_minutes": 0.0, "--save_async": False, "--keep": None, "--save_every": None,
          "--on_nan": "stop", "--allow_changes": None, "--trust_checkpoint": False}
OPTIMIZATION = {"--opt": "adamw", "--opt_betas": None, "--momentum": None, "--clip_grad": None,
                "--loss_scale": "dynamic", "--ema": False, "--ema_decay": None, "--sched": "cosine",
                "--decay_epochs": None, "--decay_rate": None, "--patience_epochs": None}
ENCODER = {"--embed_dim": None, "--depth": None, "--num_heads": None}
ADDED = {**ADDED, **SAVING, **OPTIMIZATION, **ENCODER}
PICTURES = {"--augment": None, "--color_jitter": None, "--aa": ""}
PROBE_PICTURES = {**PICTURES, "--reprob": 0.0, "--remode": "pixel", "--recount": 1, "--smoothing": 0.0, "--mixup": 0.0,
                  "--cutmix": 0.0, "--cutmix_minmax": None, "--mixup_prob": 1.0, "--mixup_switch_prob": 0.5,
                  "--mixup_mode": "batch"}
WHOLE = {"--amp_level": "O1", "--recompute": False, "--fused_adamw": False, "--compile": False}

FLAGS = {
    main_pretrain: {**OFFICIAL["pretrain"], **ADDED, **WHOLE, "--finetune": "", "--vis_every": 0, "--show_channels": None,
                    "--val_every": 0, "--encoder_mask_tokens": False, "--pca_target": 0, "--mask_mode": "random",
                    "--crop": "random", **PICTURES, "--decoder_embed_dim": None, "--decoder_depth": None, "--decoder_num_heads": None},
    main_finetune: {**OFFICIAL["finetune"], **ADDED, **WHOLE, "--augment": None},
    main_linprobe: {**OFFICIAL["linprobe"], **ADDED, **PROBE_PICTURES, "--input_size": 224, "--opt": "lars"},
    main_infer: {
        **SIZES, **DEVICE, "--config": "", "--model": None, "--input_size": None, "--in_chans": None, "--resume": "",
        "--trust_checkpoint": False, "--img_path": [], "--batch_size": 8, "--engine": None, "--trt": None,
        "--save_to": "", "--topk": None, "--output": None, "--class_names": None, "--temperature": None, "--tta": None,
        "--features": None, "--nb_classes": None, "--global_pool": None, "--cls_token": None, "--mask_ratio": None,
        "--mask_mode": None, "--norm_pix_loss": None, "--seed": None, "--output_dir": None, "--show_channels": None},
    calibrate: {
        **DEVICE, **DATA, "--config": "", "--resume": "", "--trust_checkpoint": False, "--data_path": "", "--split": "val",
        "--num_workers": 10, "--batch_size": 64},
    channel_statistics: {
        **DATA, "--config": "", "--data_path": "", "--split": "train", "--num_workers": 10, "--in_chans": 3},
    extract_features: {
        **DEVICE, **DATA, "--config": "", "--resume": "", "--trust_checkpoint": False, "--output": "",
        "--features": ["mean", "cls"], "--block": None, "--img_path": [], "--data_path": "", "--split": None,
        "--dataset": None, "--bad_images": None, "--image_root": None, "--num_workers": 10, "--input_size": None, "--mean": None, "--std": None,
        "--batch_size": 64},
    export: {
        "--config": "", "--resume": "", "--trust_checkpoint": False, "--output": "", "--format": None, "--opset": None,
        "--dynamic_batch": False, "--batch_size": None, "--encoder": False, "--features": None, "--input_size": None,
        "--mean": None, "--std": None, "--class_names": None, "--temperature": None},
    eval_features: {
        "--config": "", "--features": None, "--k": [10, 20, 100, 200], "--temperature": 0.07,
        "--weight_decay": [1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0], "--seed": 0},
}


@pytest.mark.parametrize("main", FLAGS, ids=lambda main: main.__name__)
def test_flags_and_their_defaults(main):
    actions = main.get_args_parser()._option_string_actions
    assert {flag: action.default for flag, action in actions.items() if flag not in ("-h", "--help", "--print_config")} == FLAGS[main]


@pytest.mark.parametrize("main", FLAGS, ids=lambda main: main.__name__)
def test_without_flags_every_option_has_its_default(main):
    args = vars(main.get_args_parser().parse([]))
    expected = {flag.removeprefix("--"): default for flag, default in FLAGS[main].items()
                if flag not in ("--cls_token", "--no_pin_mem")}  # second names of global_pool and pin_mem
    if main is eval_features:
        expected.update(train="", val="")  # its two files
    assert args == expected
    assert {name: type(value) for name, value in args.items()} == {
        name: type(value) for name, value in expected.items()}  # 1 and 1.0 and True are equal


# A flag of every type, given as text, and the value that it must become.
GIVEN = [
    ("--batch_size 7", "batch_size", 7), ("--blr 1e-3", "blr", 0.001), ("--lr 1", "lr", 1.0),
    ("--resume x", "resume", "x"),
    ("--input_size 224 160", "input_size", [224, 160]), ("--input_size 96", "input_size", [96]),
    ("--weight_decay 0", "weight_decay", 0.0), ("--mean 0.5 -1", "mean", [0.5, -1.0]),
    ("--device cuda", "device", "cuda"),
    ("--no_pin_mem", "pin_mem", False), ("--no_pin_mem --pin_mem", "pin_mem", True), ("--amp bf16", "amp", "bf16"),
    ("--output_dir=", "output_dir", "")]


@pytest.mark.parametrize("words, name, value", GIVEN)
@pytest.mark.parametrize("main", [main_pretrain, main_finetune, main_linprobe], ids=lambda main: main.__name__)
def test_values(main, words, name, value):
    got = getattr(main.get_args_parser().parse(words.split()), name)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("main, words, pooled", [
    (main_finetune, "", True), (main_finetune, "--cls_token", False), (main_finetune, "--global_pool", True),
    (main_linprobe, "", False), (main_linprobe, "--cls_token", False), (main_linprobe, "--global_pool", True)])
def test_pooling_has_two_names(main, words, pooled):
    assert main.get_args_parser().parse(words.split()).global_pool is pooled


@pytest.mark.parametrize("main", FLAGS, ids=lambda main: main.__name__)
def test_the_help_can_be_shown(main):
    shown = main.get_args_parser().format_help()  # a stray % in a text would raise
    assert "--config FILE" in shown
    assert ("--model NAME" in shown) == ("--model" in FLAGS[main])
