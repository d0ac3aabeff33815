"""The options of augmentation: one name and meaning in each script, and presets of them."""

import numpy as np
import pytest
import yaml
from scripts import read_log, write_pictures

import main_finetune
import main_linprobe
import main_pretrain
from util.data.mixup import Mixup, mixing

SHORT = [
    "--input_size",
    16,
    "--batch_size",
    4,
    "--warmup_epochs",
    0,
    "--epochs",
    1,
    "--device",
    "cpu",
    "--log_dir",
    "",
    "--output_dir",
    "",
    "--num_workers",
    0,
]
VIT = ["--model", "vit_tiny_patch4", "--nb_classes", 2, *SHORT]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data"), size=(16, 16))


@pytest.mark.parametrize("main", [main_finetune, main_linprobe], ids=lambda main: main.__name__)
def test_soft_targets_in_each_classifier(main, data, call_script, monkeypatch):
    """Labels are shares that add up to 1 with Mixup in every batch, and images differ from the files."""
    seen = []
    mix = Mixup.__call__

    def spied(mixup, images, labels, rng):
        mixed, targets = mix(mixup, images, labels, rng)
        seen.append((mixup.label_smoothing, targets.numpy(), float((mixed - images).abs().max())))
        return mixed, targets

    monkeypatch.setattr(Mixup, "__call__", spied)
    call_script(main, *VIT, "--data_path", data, "--mixup", 0.8, "--mixup_mode", "elem", "--smoothing", 0.1)
    assert len(seen) == 3  # 12 images
    targets = np.concatenate([targets for _, targets, _ in seen])
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    assert targets.shape == (12, 2) and 0.0499 < targets.min() and targets.max() < 0.9501
    assert {smoothing for smoothing, _, _ in seen} == {0.1} and min(change for _, _, change in seen) > 0


@pytest.mark.parametrize(
    "main, smoothing", [(main_finetune, 0.1), (main_linprobe, 0.0)], ids=["finetune", "linprobe"]
)
def test_smoothing_without_mixing(main, smoothing, data, call_script, monkeypatch):
    seen = []
    train_one_epoch = main.train_one_epoch
    monkeypatch.setattr(
        main,
        "train_one_epoch",
        lambda *args, **options: (
            seen.append((options["regularization"].mixup, options["regularization"].smoothing))
            or train_one_epoch(*args, **options)
        ),
    )
    call_script(main, *VIT, "--data_path", data)
    call_script(main, *VIT, "--data_path", data, "--smoothing", 0.3)
    assert seen == [(None, smoothing), (None, 0.3)]


@pytest.mark.parametrize(
    "main, name",
    [
        (main_pretrain, "PretrainTransform"),
        (main_finetune, "FinetuneTransform"),
        (main_linprobe, "LinprobeTransform"),
    ],
)
def test_the_flags_reach_the_pictures(main, name, data, call_script, monkeypatch):
    seen = []
    transform = getattr(main, name)

    class Spied(transform):
        def __init__(self, *args, **options):
            erasing = options.get("erasing")
            seen.append(
                [
                    options["aa"],
                    options["color_jitter"],
                    erasing and (erasing.prob, erasing.mode, erasing.max_count),
                ]
            )
            super().__init__(*args, **options)

    monkeypatch.setattr(main, name, Spied)
    erasing = {} if main is main_pretrain else {"reprob": 0.5, "remode": "rand", "recount": 3}
    model = ["--model", "mae_vit_tiny_patch4", *SHORT] if main is main_pretrain else VIT
    call_script(
        main,
        *model,
        "--data_path",
        data,
        "--aa",
        "svhn-mstd0.5",
        *(word for flag, value in erasing.items() for word in (f"--{flag}", value)),
    )
    assert seen == [["svhn-mstd0.5", None, tuple(erasing.values()) or None]]
    said = call_script(main, *model, "--data_path", data, "--aa", "imagenet", code=2)[1]
    assert "--aa imagenet" in said


def test_an_autoencoder_has_to_predict_what_it_is_fed(data, call_script):
    said = call_script(main_pretrain, "--reprob", 0.5, code=2)[1]
    assert "unrecognized arguments: --reprob" in said


def test_mixing_is_off_unless_one_of_three_is_on():
    assert mixing(0.0, 0.0, None, num_classes=2) is None
    assert mixing(0.5, 0.0, None, num_classes=2).mixup_alpha == 0.5
    assert mixing(0.0, 0.5, None, num_classes=2).cutmix_alpha == 0.5
    assert mixing(0.0, 0.0, (0.2, 0.4), num_classes=2).cutmix_minmax == (0.2, 0.4)
    with pytest.raises(ValueError, match="--mixup -"):
        mixing(-1.0, 0.0, None, num_classes=2)


# Presets

RANDAUGMENT = "rand-m9-mstd0.5-inc1"
TABLE = {
    (main_pretrain, "light"): {"color_jitter": None, "aa": ""},
    (main_pretrain, "medium"): {"color_jitter": 0.4, "aa": ""},
    (main_pretrain, "strong"): {"color_jitter": None, "aa": RANDAUGMENT},
    (main_finetune, "light"): {
        "color_jitter": None,
        "aa": "",
        "reprob": 0,
        "smoothing": 0,
        "mixup": 0,
        "cutmix": 0,
    },
    (main_finetune, "medium"): {
        "color_jitter": None,
        "aa": RANDAUGMENT,
        "reprob": 0.25,
        "smoothing": 0.1,
        "mixup": 0,
        "cutmix": 0,
    },
    (main_finetune, "strong"): {
        "color_jitter": None,
        "aa": RANDAUGMENT,
        "reprob": 0.25,
        "smoothing": 0.1,
        "mixup": 0.8,
        "cutmix": 1,
    },
    (main_linprobe, "light"): {
        "color_jitter": None,
        "aa": "",
        "reprob": 0,
        "smoothing": 0,
        "mixup": 0,
        "cutmix": 0,
    },
    (main_linprobe, "medium"): {
        "color_jitter": 0.4,
        "aa": "",
        "reprob": 0,
        "smoothing": 0,
        "mixup": 0,
        "cutmix": 0,
    },
    (main_linprobe, "strong"): {
        "color_jitter": None,
        "aa": RANDAUGMENT,
        "reprob": 0.25,
        "smoothing": 0.1,
        "mixup": 0,
        "cutmix": 0,
    },
}


def test_presets():
    """Presets change these options only; the official pretraining and probe have a crop and a flip alone."""
    for main, preset in TABLE:
        plain, args = (vars(main.get_args_parser().parse(words)) for words in ([], ["--augment", preset]))
        assert args == {**plain, **TABLE[main, preset], "augment": preset}
        if preset == ("medium" if main is main_finetune else "light"):
            assert {name: value for name, value in args.items() if name != "augment"} == {
                name: value for name, value in plain.items() if name != "augment"
            }
        said = " ".join(main.get_args_parser().format_help().split())
        on = " ".join(f"--{name} {value}" for name, value in TABLE[main, preset].items() if value)
        assert f"{preset}: {on.replace('cutmix 1', 'cutmix 1.0') or 'only crop and flip'}" in said


def test_a_preset_stands_below_what_its_own_place_says(tmp_path, capsys):
    """On the command line it wins over the file, and in the file over the defaults."""
    file = tmp_path / "c.yaml"
    file.write_text("augment: light\nmixup: 0.5\nreprob: 0.1\nepochs: 3\n", encoding="utf-8")
    words = ["--config", str(file), "--augment=strong", "--reprob", "0.2"]
    args = main_finetune.get_args_parser().parse(words)
    assert (args.augment, args.mixup, args.reprob, args.cutmix, args.aa) == (
        "strong",
        0.8,
        0.2,
        1.0,
        RANDAUGMENT,
    )
    with pytest.raises(SystemExit) as stop:
        main_finetune.get_args_parser().parse([*words, "--print_config"])
    table = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert stop.value.code == 0
    for name, origin in (
        ("augment", "command line"),
        ("mixup", "preset strong"),
        ("reprob", "command line"),
        ("cutmix", "preset strong"),
        ("epochs", f"file {file}"),
        ("remode", "default"),
    ):
        assert table[name].endswith(f"  {origin}"), table[name]
    args = main_finetune.get_args_parser().parse(["--config", str(file)])  # its own preset
    assert (args.augment, args.mixup, args.reprob, args.cutmix, args.aa) == ("light", 0.5, 0.1, 0.0, "")


A_PRESET_THAT_IS_NONE = [
    (["--augment", "extreme"], "argument --augment: invalid choice: 'extreme' (choose from"),
    (["--augment"], "argument --augment: expected one argument"),
]


def test_a_preset_that_is_none(capsys):
    for words, complaint in A_PRESET_THAT_IS_NONE:
        with pytest.raises(SystemExit) as stop:
            main_pretrain.get_args_parser().parse(words)
        assert stop.value.code == 2 and complaint in capsys.readouterr().err


def test_a_run_may_go_on_with_the_values_instead_of_the_preset(tmp_path, data, call_script):
    """options.yaml has both; what is compared are the values."""
    command = [*VIT, "--data_path", data, "--output_dir", tmp_path]
    call_script(main_finetune, *command, "--augment", "light")
    known = yaml.safe_load((tmp_path / "options.yaml").read_text(encoding="utf-8"))
    assert (known["augment"], known["aa"], known["reprob"], known["smoothing"]) == ("light", "", 0.0, 0.0)
    resumed = [*command, "--epochs", 2, "--allow_changes", "epochs", "--resume", "auto"]
    said = call_script(main_finetune, *resumed, "--augment", "medium", code=2)[1]
    assert "--aa:  in the checkpoint, rand-m9-mstd0.5-inc1 now" in said and "--augment" not in said
    call_script(main_finetune, *resumed, "--aa", "", "--reprob", 0, "--smoothing", 0)
    assert [line["epoch"] for line in read_log(tmp_path)] == [0, 1]
