"""Flags of the scripts: documented commands, the groups of --help, and facts about each flag."""

import re
import shlex

import pytest

import main_finetune
import main_infer
import main_linprobe
import main_pretrain
from util.options import flags
from util.run import flag_facts

TRAINING = [main_pretrain, main_finetune, main_linprobe]


def name_of(main):
    return main.__name__


# The commands that the origin of this project (flytocc/mae-paddle) documents, as typed there.
PRETRAIN = r"""
python -m paddle.distributed.launch --gpus="0,1,2,3,4,5,6,7" main_pretrain.py \
	--accum_iter 2 \
	--batch_size 256 \
	--model mae_vit_base_patch16 \
	--norm_pix_loss \
	--mask_ratio 0.75 \
	--epochs 1600 \
	--warmup_epochs 40 \
	--blr 1.5e-4 --weight_decay 0.05 \
	--data_path ${IMAGENET_DIR}
"""
FINETUNE = r"""
python -m paddle.distributed.launch --gpus="0,1,2,3,4,5,6,7" main_finetune.py \
  --accum_iter 1 \
  --batch_size 128 \
  --model vit_base_patch16 \
  --finetune ${PRETRAIN_CHKPT} \
  --epochs 100 \
  --blr 5e-4 --layer_decay 0.65 \
  --weight_decay 0.05 --drop_path 0.1 --reprob 0.25 --mixup 0.8 --cutmix 1.0 \
  --data_path ${IMAGENET_DIR} --dist_eval
"""
LINPROBE = r"""
python -m paddle.distributed.launch --gpus="0,1,2,3,4,5,6,7" main_linprobe.py \
  --accum_iter 2 \
  --batch_size 1024 \
  --model vit_base_patch16 \
  --finetune ${PRETRAIN_CHKPT} \
  --epochs 90 \
  --blr 0.1 \
  --weight_decay 0.0 \
  --data_path ${IMAGENET_DIR} --dist_eval
"""
EVALUATE = r"""
python -m paddle.distributed.launch --gpus="0,1,2,3,4,5,6,7" main_finetune.py \
  --batch_size 128 \
  --model vit_base_patch16 \
  --resume ${FINETUNED_CHKPT} \
  --data_path ${IMAGENET_DIR} \
  --dist_eval --eval
"""
INFER = r"""
python main_infer.py \
	--model vit_base_patch16 \
	--resume outputs/finetune_vit-b_v2/checkpoint-best.pd \
	--img_path demo/ILSVRC2012_val_00009508.JPEG
"""


def words_of(command):
    """Return the words behind the script's name, as a shell would pass them on."""
    for placeholder, value in {
        "${IMAGENET_DIR}": "/imagenet",
        "${PRETRAIN_CHKPT}": "pre.pd",
        "${FINETUNED_CHKPT}": "fine.pd",
    }.items():
        command = command.replace(placeholder, value)
    words = shlex.split(command.replace("\\\n", " "))
    return words[next(place for place, word in enumerate(words) if word.endswith(".py")) + 1 :]


@pytest.mark.parametrize(
    "main, command, expected",
    [
        (
            main_pretrain,
            PRETRAIN,
            dict(
                accum_iter=2,
                batch_size=256,
                model="mae_vit_base_patch16",
                norm_pix_loss=True,
                mask_ratio=0.75,
                epochs=1600,
                warmup_epochs=40,
                blr=0.00015,
                weight_decay=0.05,
                data_path="/imagenet",
                lr=None,
                min_lr=0.0,
                device="auto",
            ),
        ),
        (
            main_finetune,
            FINETUNE,
            dict(
                accum_iter=1,
                batch_size=128,
                model="vit_base_patch16",
                finetune="pre.pd",
                epochs=100,
                blr=0.0005,
                layer_decay=0.65,
                weight_decay=0.05,
                drop_path=0.1,
                reprob=0.25,
                mixup=0.8,
                cutmix=1.0,
                data_path="/imagenet",
                dist_eval=True,
                eval=False,
                global_pool=True,
                smoothing=0.1,
                min_lr=1e-6,
            ),
        ),
        (
            main_linprobe,
            LINPROBE,
            dict(
                accum_iter=2,
                batch_size=1024,
                model="vit_base_patch16",
                finetune="pre.pd",
                epochs=90,
                blr=0.1,
                weight_decay=0.0,
                data_path="/imagenet",
                dist_eval=True,
                global_pool=False,
            ),
        ),
        (
            main_finetune,
            EVALUATE,
            dict(
                batch_size=128,
                model="vit_base_patch16",
                resume="fine.pd",
                data_path="/imagenet",
                dist_eval=True,
                eval=True,
            ),
        ),
        (
            main_infer,
            INFER,
            dict(
                model="vit_base_patch16",
                resume="outputs/finetune_vit-b_v2/checkpoint-best.pd",
                img_path=["demo/ILSVRC2012_val_00009508.JPEG"],
                nb_classes=None,
                input_size=None,
            ),
        ),
    ],
    ids=["pretrain", "finetune", "linprobe", "evaluate", "infer"],
)
def test_documented_commands(main, command, expected):
    parser = main.get_args_parser()
    args = parser.parse(words_of(command))
    assert {name: getattr(args, name) for name in expected} == expected
    assert flags.without_effect(args, parser, "cpu") == ""


# ---- groups of --help


def groups(main):
    """Return {title: flags} of --help, in order."""
    shown = main.get_args_parser().format_help()
    parts = re.split(r"^(\S.*):$", shown, flags=re.MULTILINE)[1:]
    return {
        title: re.findall(r"^  (?:-h, )?--(\w+)", text, flags=re.MULTILINE)
        for title, text in zip(parts[::2], parts[1::2])
    }


@pytest.mark.parametrize("main", TRAINING, ids=name_of)
def test_the_help_opens_with_the_flags_of_a_normal_run(main):
    found = groups(main)
    assert [title for title in flag_facts.GROUPS if title in found] == list(found)
    first = found[flag_facts.MAIN]
    assert 20 <= len(first) <= 26 and {
        "config",
        "data_path",
        "epochs",
        "batch_size",
        "resume",
        "output_dir",
    } <= {*first}
    assert "world_size" in found[flag_facts.NO_EFFECT]
    known = {flag[2:] for flag in main.get_args_parser()._option_string_actions if flag.startswith("--")}
    assert sorted(name for names in found.values() for name in names) == sorted(known)
    assert len(main.get_args_parser().format_usage().splitlines()) == 1


# ---- facts


def test_every_flag_of_training_has_its_facts():
    known = {action.dest for main in TRAINING for action in main.get_args_parser()._actions}
    assert known - {"help", "print_config"} == flag_facts.FLAGS.keys()


def test_flags_that_change_the_result_are_compared_when_a_run_is_resumed():
    """A flag is only left out if it says where, how fast or how often, or if its effect is compared."""
    compared = flag_facts.FLAGS.keys() - flag_facts.NOT_COMPARED
    assert {
        "lr",
        "blr",
        "opt",
        "epochs",
        "seed",
        "mask_ratio",
        "aa",
        "drop_path",
        "amp",
        "crop",
        "mean",
    } <= compared
    assert {
        "resume",
        "output_dir",
        "num_workers",
        "recompute",
        "print_freq",
        "save_every",
    } <= flag_facts.NOT_COMPARED
    assert {name for name, facts in flag_facts.FLAGS.items() if facts.resume == flag_facts.DERIVED} == {
        "accum_iter",
        "augment",
        "batch_size",
        "data_path",
        "decoder_depth",
        "decoder_embed_dim",
        "depth",
        "embed_dim",
        "encoder_mask_tokens",
        "patch_size",
        "pca_target",
    }


@pytest.mark.parametrize(
    "words, device, named",
    [
        ("--world_size 8", "cpu", ["world_size"]),
        ("--resplit", "cpu", ["resplit"]),
        ("--no_pin_mem", "cpu", ["pin_mem"]),
        ("--no_pin_mem", "gpu", []),
        ("--pin_mem --batch_size 3", "cpu", []),
        ("--trust_checkpoint", "cpu", ["trust_checkpoint"]),
        ("--trust_checkpoint --resume x", "cpu", []),
        (
            "--world_size 8 --local_rank 1 --dist_on_itp --dist_url x",
            "gpu",
            ["world_size", "local_rank", "dist_on_itp", "dist_url"],
        ),
    ],
)
def test_flags_without_effect_are_named_in_one_line(words, device, named):
    parser = main_finetune.get_args_parser()
    line = flags.without_effect(parser.parse(words.split()), parser, device)
    assert re.findall(r"--(\w+)", line) == named and "\n" not in line
