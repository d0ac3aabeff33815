"""The options of augmentation: one name and meaning in each script, and presets of them."""
import numpy as np
import pytest
from scripts import write_pictures

import main_finetune
import main_linprobe
import main_pretrain
from util.mixup import Mixup, mixing

SHORT = ["--input_size", 16, "--batch_size", 4, "--warmup_epochs", 0, "--epochs", 1, "--device", "cpu", "--log_dir", "",
         "--output_dir", "", "--num_workers", 0]
VIT = ["--model", "vit_tiny_patch4", "--nb_classes", 2, *SHORT]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data"), size=(16, 16))


@pytest.mark.parametrize("main", [main_finetune, main_linprobe], ids=lambda main: main.__name__)
def test_soft_targets_in_each_classifier(main, data, call_script, monkeypatch):
    """With Mixup in every batch, labels are shares that add up to 1; images differ from the files'."""
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


@pytest.mark.parametrize("main, smoothing", [(main_finetune, 0.1), (main_linprobe, 0.0)], ids=["finetune", "linprobe"])
def test_smoothing_without_mixing(main, smoothing, data, call_script, monkeypatch):
    seen = []
    train_one_epoch = main.train_one_epoch
    monkeypatch.setattr(main, "train_one_epoch", lambda *args, **options: seen.append(
        (options["mixup"], options["smoothing"])) or train_one_epoch(*args, **options))
    call_script(main, *VIT, "--data_path", data)
    call_script(main, *VIT, "--data_path", data, "--smoothing", 0.3)
    assert seen == [(None, smoothing), (None, 0.3)]


@pytest.mark.parametrize("main, name", [(main_pretrain, "PretrainTransform"), (main_finetune, "FinetuneTransform"),
                                        (main_linprobe, "LinprobeTransform")])
def test_the_flags_reach_the_pictures(main, name, data, call_script, monkeypatch):
    seen = []
    transform = getattr(main, name)

    class Spied(transform):
        def __init__(self, *args, **options):
            seen.append({flag: options.get(flag) for flag in ("aa", "color_jitter", "reprob", "remode", "recount")})
            super().__init__(*args, **options)
    monkeypatch.setattr(main, name, Spied)
    erasing = {} if main is main_pretrain else {"reprob": 0.5, "remode": "rand", "recount": 3}
    model = ["--model", "mae_vit_tiny_patch4", *SHORT] if main is main_pretrain else VIT
    call_script(main, *model, "--data_path", data, "--aa", "svhn-mstd0.5",
                *(word for flag, value in erasing.items() for word in (f"--{flag}", value)))
    assert seen == [{"aa": "svhn-mstd0.5", "color_jitter": None, "reprob": None, "remode": None, "recount": None,
                     **erasing}]
    said = call_script(main, *model, "--data_path", data, "--aa", "imagenet", code=2)[1]
    assert "--aa 'imagenet'" in said


def test_an_autoencoder_has_to_predict_what_it_is_fed(data, call_script):
    said = call_script(main_pretrain, "--reprob", 0.5, code=2)[1]
    assert "unrecognized arguments: --reprob" in said


def test_mixing_is_off_unless_one_of_three_is_on():
    assert mixing(0.0, 0.0, None, num_classes=2) is None
    assert mixing(0.5, 0.0, None, num_classes=2).mixup_alpha == 0.5
    assert mixing(0.0, 0.5, None, num_classes=2).cutmix_alpha == 0.5
    assert mixing(0.0, 0.0, (0.2, 0.4), num_classes=2).cutmix_minmax == (0.2, 0.4)
    with pytest.raises(ValueError, match="--mixup must not be negative"):
        mixing(-1.0, 0.0, None, num_classes=2)
