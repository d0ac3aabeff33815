"""Command line and --config files: values, refusals, exit codes and --print_config."""

import errno

import pytest
import yaml
from scripts import ROOT

import main_finetune
import main_infer
import main_linprobe
import main_pretrain
import models_mae
import models_vit
from tools import visualize
from util.options import command_line
from util.run import run_folder
from util.system import signals

TRAINING = [main_pretrain, main_finetune, main_linprobe]


def name_of(main):
    return main.__name__


def refused(parser, argv, capsys):
    """Return the sentence with which the parser refuses `argv`, with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        parser.parse(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err.partition("error: ")[2]


# ---- refusals on the command line


@pytest.mark.parametrize("main", TRAINING, ids=name_of)
def test_abbreviations_and_unknown_flags(main, capsys):
    for words, near in (
        ("--batch 3", ""),
        ("--epoch 3", "--epochs"),
        ("--warmup 3", ""),
        ("--blrr=3", "--blr"),
        ("--batchsize 3", "--batch_size"),
        ("--qqq 3", ""),
    ):
        line = refused(main.get_args_parser(), words.split(), capsys)
        assert f"unrecognized arguments: {words}" in line, words
        assert f"; did you mean {near}" in line if near else True, words
    assert "did you mean" not in refused(main.get_args_parser(), ["--qqq", "3"], capsys)


@pytest.mark.parametrize(
    "main, models",
    [(main_pretrain, models_mae.MODELS), (main_finetune, models_vit.MODELS)],
    ids=["pretrain", "finetune"],
)
def test_a_wrong_model_is_answered_with_the_list(main, models, capsys):
    line = refused(main.get_args_parser(), ["--model", "vit_base"], capsys)
    assert "--model" in line and "vit_base" in line and all(name in line for name in models)


def test_wrong_values_name_the_flag(capsys):
    for words in (
        "--batch_size 1.5",
        "--blr fast",
        "--amp fp32",
        "--amp_level O3",
        "--attention flash",
        "--device tpu",
        "--dataset mnist",
        "--mixup_mode all",
        "--remode grey",
        "--input_size",
        "--batch_size",
    ):
        assert words.split()[0] in refused(main_finetune.get_args_parser(), words.split(), capsys)


# ---- --config


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_config_gives_values_and_the_command_line_wins(tmp_path):
    config = write(
        tmp_path,
        """
        # a comment
        model: vit_tiny_patch4
        blr: 1e-3              # PyYAML takes this for a string
        lr: 2
        batch_size: 8
        input_size: [32, 48]
        mean: [0.5, -1, .25]
        cutmix_minmax: [0.2, 0.8]
        std: 1                 # one number for a flag that takes several
        data_path: "--odd -name"
        output_dir: ""
        seed: 007
        clip_grad: null
        global_pool: false
        eval: true
        nb_classes: 10
        amp: "off"
        """.replace("\n        ", "\n"),
    )
    parser = main_finetune.get_args_parser()
    args = parser.parse(["--batch_size", "16", "--config", config, "--nb_classes=20", "--global_pool"])
    expected = dict(
        model="vit_tiny_patch4",
        blr=0.001,
        lr=2.0,
        batch_size=16,
        input_size=[32, 48],
        mean=[0.5, -1.0, 0.25],
        cutmix_minmax=[0.2, 0.8],
        std=[1.0],
        data_path="--odd -name",
        output_dir="",
        seed=7,
        clip_grad=None,
        global_pool=True,
        eval=True,
        nb_classes=20,
        amp="off",
        config=config,
        epochs=50,
        smoothing=0.1,
    )
    assert {name: getattr(args, name) for name in expected} == expected
    assert type(args.lr) is float and type(args.input_size[0]) is int


def test_a_switch_that_a_config_sets_can_be_unset_in_it_only(tmp_path):
    config = write(tmp_path, "norm_pix_loss: true\npin_mem: false\n")
    args = main_pretrain.get_args_parser().parse([f"--config={config}"])
    assert args.norm_pix_loss is True and args.pin_mem is False
    assert main_pretrain.get_args_parser().parse(["--config", config, "--pin_mem"]).pin_mem is True


REFUSED = [  # text, key, decisive words
    ("bach_size: 4", "bach_size", "did you mean batch_size"),
    ("cutmix_prob: 1", "cutmix_prob", "mixup_prob"),
    ("help: true", "help", "unknown name"),
    ("config: other.yaml", "config", "unknown name"),
    ("1: 2", "1", "unknown name"),
    ("batch_size: 2.5", "batch_size", "invalid int value: '2.5'"),
    ("batch_size: 1e2", "batch_size", "invalid int value: '1e2'"),
    ("batch_size: true", "batch_size", "expected one value, got True"),
    ("batch_size: [4]", "batch_size", "expected one value, got [4]"),
    ("batch_size: {a: 1}", "batch_size", "expected one value"),
    ("batch_size:", "batch_size", "needs a value"),
    ("data_path: null", "data_path", "needs a value"),
    ("blr: quick", "blr", "invalid float value: 'quick'"),
    ("amp: fp32", "amp", "choose from"),
    ("model: vit_bass_patch16", "model", "vit_base_patch16"),
    ("eval: 1", "eval", "is a switch, expected true or false, got 1"),
    ("eval: 'true'", "eval", "is a switch, expected true or false, got 'true'"),
    ("eval: null", "eval", "is a switch, expected true or false, got None"),
    ("global_pool: [true]", "global_pool", "is a switch"),
    ("input_size: 3.5", "input_size", "invalid int value: '3.5'"),
    ("input_size: [32, wide]", "input_size", "invalid int value: 'wide'"),
    ("input_size: []", "input_size", "expected at least one value"),
    ("input_size: [[32, 48]]", "input_size", "invalid int value"),
    ("epochs: 3\nseed: 1\nepochs: 4", "epochs", "stands twice"),
    ("? [a, b]\n: 3", "a", "found unhashable key"),
    ("opt_betas: [0.9]", "opt_betas", "expected 2 values"),
]


def test_a_config_is_refused_by_file_and_key(tmp_path, capsys):
    for text, key, complaint in REFUSED:
        config = write(tmp_path, "seed: 3\n" + text if "seed" not in text else text)
        line = refused(main_finetune.get_args_parser(), ["--config", config], capsys)
        assert f"--config {config}: " in line and key in line and complaint in line, text


def test_files_that_are_no_config(tmp_path, capsys):
    for text in ("", "- seed\n- 3", "seed 3", "seed: [3", "seed: !!python/object/apply:os.getpid []"):
        config = write(tmp_path, text)
        assert f"--config {config}: " in refused(
            main_pretrain.get_args_parser(), ["--config", config], capsys
        ), text
    (tmp_path / "latin.yaml").write_bytes(b"output_dir: caf\xe9")
    for name in ("none.yaml", "latin.yaml"):
        assert name in refused(main_pretrain.get_args_parser(), ["--config", str(tmp_path / name)], capsys)


def test_a_value_of_a_config_cannot_bring_in_another_flag(tmp_path, capsys):
    for word in ("--eval", "-h", "--mean=1"):
        config = write(tmp_path, f"input_size: [32, {word}]")
        line = refused(main_finetune.get_args_parser(), ["--config", config], capsys)
        assert config in line and f"invalid int value: '{word}'" in line


def other_words(parser):
    """Return words that give every flag of the parser a value that is not its default."""
    words = []
    for action in parser._actions:
        flag = action.option_strings[0]
        if action.dest in ("help", "config", "print_config") or flag == "--pin_mem":
            continue
        if action.nargs == 0:
            if action.const != action.default:
                words.append(flag)
            continue
        value = (
            action.choices[0]
            if action.choices
            else {int: "7", float: "1e-05", None: "no: # off"}[action.type]
        )
        value = action.choices[-1] if action.choices and value == action.default else value
        words += [f"{flag}={value}"] if action.nargs is None else [flag, value, value]
    return words


@pytest.mark.parametrize("given", ["defaults", "all"])
@pytest.mark.parametrize("main", TRAINING, ids=name_of)
def test_options_of_a_run_load_again(main, given, tmp_path):
    parser = main.get_args_parser()
    words = other_words(parser) if given == "all" else []
    args = vars(parser.parse(words))
    if given == "all":
        same = {name for name, value in args.items() if value == parser.get_default(name)}
        assert same == {"config"}
    run_folder.start(tmp_path, args)
    again = vars(main.get_args_parser().parse(["--config", str(tmp_path / "options.yaml")]))
    assert again.pop("config") == str(tmp_path / "options.yaml")
    if given == "defaults":
        assert (args["input_size"], again["input_size"]) == (
            224,
            [224],
        )  # the same to a model, see layer.pair
        again["input_size"] = 224
    assert again == {name: value for name, value in args.items() if name != "config"}
    assert {name: type(value) for name, value in again.items()} == {
        name: type(value) for name, value in args.items() if name != "config"
    }


def test_options_of_a_run_are_plain_yaml(tmp_path):
    args = main_finetune.get_args_parser().parse(["--input_size", "32", "48", "--amp", "off"])
    run_folder.start(tmp_path, vars(args))
    plain = yaml.safe_load((tmp_path / "options.yaml").read_text(encoding="utf-8"))
    assert plain["input_size"] == [32, 48] and plain["amp"] == "off" and plain["global_pool"] is True
    assert "config" not in plain


# ---- exit codes


def end_of(error, monkeypatch, filename=ROOT / "util" / "checkpoint.py"):
    """Run a main that raises `error` in a line of `filename`."""

    def main(args):
        exec(compile("raise error", str(filename), "exec"), {"error": error})

    monkeypatch.setattr("sys.argv", ["main_pretrain.py"])
    command_line.run(main, main_pretrain.get_args_parser())


@pytest.mark.parametrize("error", [ValueError("--epochs: no"), FloatingPointError("the loss is not finite")])
def test_our_errors_are_a_sentence_and_exit_code_2(error, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        end_of(error, monkeypatch)
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.endswith(f"error: {error}\n") and "Traceback" not in said.err


@pytest.mark.parametrize(
    "filename",
    ["/usr/lib/python3/json/decoder.py", ROOT / ".venv/lib/python3.11/site-packages/paddle/base/core.py"],
)
def test_errors_of_libraries_are_shown_whole(filename, monkeypatch):
    with pytest.raises(ValueError, match="no JSON"):
        end_of(ValueError("no JSON"), monkeypatch, filename)


@pytest.mark.parametrize(
    "error, sentence",
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "out/options.yaml"),
            "error: out/options.yaml: No space left on device. What was written before is whole",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "out"), "error: out: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: a file: No space left"),
    ],
)
def test_the_state_of_a_disk_is_a_sentence(error, sentence, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        end_of(error, monkeypatch, "/usr/lib/python3.11/pathlib.py")
    assert stop.value.code == 2 and sentence in capsys.readouterr().err


def test_other_errors_of_the_system_are_shown_whole(monkeypatch):
    with pytest.raises(BlockingIOError):
        end_of(BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), monkeypatch)


def test_a_run_that_is_stopped_has_an_exit_code_of_its_own(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        end_of(signals.Stopped("stopped by SIGTERM in epoch 3"), monkeypatch)
    assert stop.value.code == 75 and capsys.readouterr().err.endswith("stopped by SIGTERM in epoch 3\n")


def test_errors_of_other_kinds_are_shown_whole(monkeypatch):
    with pytest.raises(KeyError):
        end_of(KeyError("x"), monkeypatch)


@pytest.mark.parametrize(
    "line, global_pool",
    [
        ("cls_token: true", False),
        ("cls_token: false", True),
        ("global_pool: false", False),
        ("global_pool: true", True),
    ],
)
def test_either_name_of_the_pooling_stands_in_a_file(tmp_path, line, global_pool):
    (tmp_path / "c.yaml").write_text(line + "\n", encoding="utf-8")
    args = main_finetune.get_args_parser().parse(["--config", str(tmp_path / "c.yaml")])
    assert args.global_pool is global_pool


def test_both_names_of_the_pooling_in_one_file_are_refused(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("cls_token: true\nglobal_pool: true\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        main_finetune.get_args_parser().parse(["--config", str(tmp_path / "c.yaml")])
    assert "'global_pool' sets global_pool a second time" in capsys.readouterr().err


# ---- --print_config


def table(said):
    """Return {name: (value, origin)} of a printed table, whose columns are aligned."""
    lines = said.splitlines()
    value, origin = lines[0].index("value"), lines[0].index("from")
    assert lines[0].split() == ["option", "value", "from"] and all(
        line[value - 1] == line[origin - 1] == " " for line in lines
    )
    return {line[:value].strip(): (line[value:origin].strip(), line[origin:]) for line in lines[1:]}


def test_all_options_with_where_they_are_from(tmp_path, call_script, monkeypatch):
    """Two names of an option are one row; the command line hides the file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(
        "blr: 0.5\nepochs: 7\ncls_token: true\nmean: [0.5, 0.25, 1]\ndist_eval: true\n"
    )
    said, _ = call_script(
        main_finetune,
        "--config",
        "x.yaml",
        "--epochs=9",
        "--input_size",
        32,
        48,
        "--no_pin_mem",
        "--output_dir",
        "",
        "--print_config",
    )
    found = table(said)
    assert found.keys() == vars(main_finetune.get_args_parser().parse([])).keys()
    assert list(found) == sorted(found)
    assert {name: origin for name, (_, origin) in found.items() if origin != "default"} == {
        "config": "command line",
        "epochs": "command line",
        "input_size": "command line",
        "pin_mem": "command line",
        "output_dir": "command line",
        "blr": "file x.yaml",
        "global_pool": "file x.yaml",
        "mean": "file x.yaml",
        "dist_eval": "file x.yaml",
    }
    for name, value in dict(
        epochs="9",
        blr="0.5",
        global_pool="false",
        input_size="[32, 48]",
        pin_mem="false",
        mean="[0.5, 0.25, 1.0]",
        output_dir="''",
        lr="null",
        smoothing="0.1",
        amp="auto",
    ).items():
        assert found[name][0] == value, name
    assert list(tmp_path.iterdir()) == [tmp_path / "x.yaml"]  # nothing has run


@pytest.mark.parametrize("main", [main_pretrain, main_linprobe, main_infer, visualize], ids=name_of)
def test_every_script_prints_its_options(main, call_script):
    given = ["--seed", 3, "--print_config"]
    assert table(call_script(main, *given)[0])["seed"] == ("3", "command line")
    assert call_script(main, "--print_config", "--bad_flag", code=2)[0] == ""


def test_a_config_cannot_ask_for_it(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text("print_config: true\n")
    assert "unknown name 'print_config'" in refused(
        main_pretrain.get_args_parser(), ["--config", str(tmp_path / "x.yaml")], capsys
    )


def test_the_table_of_options_says_what_a_run_will_take(capsys):
    with pytest.raises(SystemExit):
        main_pretrain.get_args_parser().parse(
            ["--model", "mae_vit_base_patch16", "--ema", "--sched", "step", "--print_config"]
        )
    table = {
        line.split()[0]: line.split("  ")[-1].strip() and line.split(maxsplit=1)[1]
        for line in capsys.readouterr().out.splitlines()
    }
    for name, value in (
        ("opt_betas", "[0.9, 0.95]"),
        ("ema_decay", "0.9999"),
        ("decay_epochs", "30"),
        ("embed_dim", "768"),
        ("depth", "12"),
        ("num_heads", "12"),
        ("decoder_depth", "8"),
        ("patch_size", "16"),
    ):
        assert table[name].startswith(value + " ") and table[name].endswith(" default"), table[name]
    with pytest.raises(SystemExit) as stop:
        main_pretrain.get_args_parser().parse(
            ["--opt", "sgd", "--opt_betas", "0.9", "0.95", "--print_config"]
        )
    assert stop.value.code == 2 and "--opt is sgd" in capsys.readouterr().err
