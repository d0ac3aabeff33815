"""Sources of images other than folders, through the scripts."""

import tarfile

import numpy as np
import pytest
from scripts import flat, read_log, read_state, write_pictures

import main_finetune
import main_pretrain
from util.run.checkpoint_writer import CheckpointWriter

CLASSES = ("cat", "dog")
SHORT = ["--input_size", 16, "--warmup_epochs", 0, "--device", "cpu", "--log_dir", "", "--num_workers", 0]
PRETRAIN = ["--model", "mae_vit_tiny_patch4", *SHORT, "--batch_size", 2]
FINETUNE = ["--model", "vit_tiny_patch4", *SHORT, "--nb_classes", 2, "--epochs", 1, "--batch_size", 4]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data"), size=(16, 16))


def assert_same_weights(one, other):
    one, other = (flat(read_state(folder / "checkpoint-latest.pd")["model"]) for folder in (one, other))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def without_times(folder):
    return [
        {name: value for name, value in line.items() if name not in ("train_images_per_s", "train_data_wait")}
        for line in read_log(folder)
    ]


def test_lists_train_as_the_folders_that_they_name(tmp_path, data, call_script):
    lists = tmp_path / "lists"
    lists.mkdir()
    for split, suffix, comma in (("train", "txt", " "), ("val", "csv", ",")):
        names = sorted(path.relative_to(data) for path in data.glob(f"{split}/*/*.png"))
        (lists / f"{split}.{suffix}").write_text(
            "".join(f"{name}{comma}{CLASSES.index(name.parts[1])}\n" for name in names)
        )
    from_lists = ["--data_path", lists, "--image_root", data]
    call_script(main_finetune, *FINETUNE, "--data_path", data, "--output_dir", tmp_path / "folders")
    said, _ = call_script(main_finetune, *FINETUNE, *from_lists, "--output_dir", tmp_path / "listed")
    assert "12 training and 5 val images of 2 classes" in said
    assert_same_weights(tmp_path / "folders", tmp_path / "listed")
    assert without_times(tmp_path / "folders") == without_times(tmp_path / "listed")
    assert read_state(tmp_path / "listed" / "checkpoint-latest.pd")["classes"] == ["0", "1"]

    (lists / "ids.json").write_text(f'["{names[0]}", "{names[1]}", "nothing.png"]')
    words = [
        *PRETRAIN,
        "--data_path",
        lists / "ids.json",
        "--image_root",
        data,
        "--output_dir",
        tmp_path / "mae",
    ]
    _, complaint = call_script(main_pretrain, *words, "--dry_run", code=2)
    assert "nothing.png cannot be read: there is no such file" in complaint
    said, _ = call_script(main_pretrain, *words, "--epochs", 1, "--bad_images", "skip")
    assert "3 images, 1 steps an epoch" in said


@pytest.fixture
def tars(tmp_path, data):
    """Three tar files of the 12 training pictures, dealt out in turn."""
    pictures = sorted(data.glob("train/*/*.png"))
    for number in range(3):
        (tmp_path / "tars" / "train").mkdir(parents=True, exist_ok=True)
        with tarfile.open(tmp_path / "tars" / "train" / f"{number}.tar", "w") as tar:
            for path in pictures[number::3]:
                tar.add(path, "/".join(path.parts[-2:]))
    return tmp_path / "tars"


def test_a_run_through_a_shuffle_buffer_continues_within_an_epoch(tmp_path, tars, call_script, monkeypatch):
    words = [*PRETRAIN, "--epochs", 2, "--data_path", tars, "--shuffle_buffer", 3, "--save_steps", 8]
    call_script(main_pretrain, *words, "--output_dir", tmp_path / "whole")
    save = CheckpointWriter.save

    def interrupted(writer, epoch, **what):
        save(writer, epoch, **what)
        if "line" in what:
            return
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointWriter, "save", interrupted)
        call_script(main_pretrain, *words, "--output_dir", tmp_path / "resumed", code=130)
    resumed = [*words, "--output_dir", tmp_path / "resumed", "--resume", "auto", "--num_workers", 2]
    _, complaint = call_script(main_pretrain, *resumed, "--shuffle_buffer", 4, code=2)
    assert (
        "--shuffle_buffer: 3 pictures, over 3 tar file(s) " in complaint
        and " the checkpoint, 4 pictures" in complaint
    )
    said, _ = call_script(main_pretrain, *resumed)
    assert "continuing with epoch 1 step 2" in said
    assert_same_weights(tmp_path / "whole", tmp_path / "resumed")
    assert without_times(tmp_path / "whole") == without_times(tmp_path / "resumed")
    call_script(main_pretrain, *words, "--shuffle_buffer", 0, "--output_dir", tmp_path / "other")
    assert without_times(tmp_path / "whole") != without_times(tmp_path / "other")


def test_a_run_goes_on_with_the_same_order_and_labels_alone(tmp_path, data, call_script):
    """Lists that name the same images in another order are refused."""
    names = sorted(path.relative_to(data).as_posix() for path in (data / "train").rglob("*.png"))
    label = {name: sorted({each.split("/")[1] for each in names}).index(name.split("/")[1]) for name in names}
    folder = tmp_path / "lists"
    folder.mkdir()

    def write(lines):
        for split in ("train", "val"):
            (folder / f"{split}.txt").write_text("".join(f"{name} {number}\n" for name, number in lines))

    command = [
        "--model",
        "vit_tiny_patch4",
        "--input_size",
        16,
        "--depth",
        1,
        "--batch_size",
        4,
        "--num_workers",
        0,
        "--device",
        "cpu",
        "--epochs",
        2,
        "--warmup_epochs",
        0,
        "--nb_classes",
        2,
        "--aa",
        "",
        "--data_path",
        folder,
        "--image_root",
        data,
        "--output_dir",
        tmp_path / "run",
    ]
    whole = [(name, label[name]) for name in names]
    write(whole)
    call_script(main_finetune, *command)
    first = tmp_path / "run" / "checkpoint-0.pd"
    for lines in ([(name, 1 - number) for name, number in whole], [whole[0], whole[2], whole[1], *whole[3:]]):
        write(lines)
        assert (
            "--image_order: order and labels with the checksum "
            in call_script(main_finetune, *command, "--resume", first, code=2)[1]
        )
    write([(name, 1 - number) for name, number in whole])
    assert (
        "continuing with epoch 1"
        in call_script(
            main_finetune,
            *command,
            "--resume",
            first,
            "--output_dir",
            tmp_path / "other",
            "--allow_changes",
            "image_order",
        )[0]
    )
    write(whole)
    assert "continuing with epoch 1" in call_script(main_finetune, *command, "--resume", first)[0]


def test_a_loss_of_val_images_needs_some(tmp_path, data, call_script):
    said = call_script(
        main_pretrain,
        "--model",
        "mae_vit_tiny_patch4",
        "--input_size",
        16,
        "--batch_size",
        4,
        "--device",
        "cpu",
        "--num_workers",
        0,
        "--data_path",
        data / "train",
        "--val_every",
        1,
        "--output_dir",
        "",
        code=2,
    )[1]
    assert "--val_every 1: --data_path" in said and "holds no 'val'" in said
