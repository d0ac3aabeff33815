"""Files in configs/: headers, batch and learning rate of the sources, and dry runs."""

import importlib
import json
import re
import shlex
from functools import partial

import paddle
import pytest
import yaml
from data_files import cifar_files, make_tar
from scripts import ROOT, write_pictures

import models_mae
import models_vit
from tools.maintain import recipe_page
from util.options import settings
from util.run.learning_rate import LearningRate
from util.system import distributed

CONFIGS = sorted(
    path.relative_to(ROOT / "configs").with_suffix("").as_posix()
    for path in (ROOT / "configs").rglob("*.yaml")
)
PUBLISHED = [config for config in CONFIGS if config.startswith(("imagenet/", "ablations/"))]
RECIPES = [config for config in CONFIGS if not config.startswith("demo/")]
TRAINING = [config for config in RECIPES if not config.startswith("imagenet/evaluate")]

# The images of an update and the learning rate that the sources name.
SOURCES = {
    "imagenet/pretrain_*": (4096, 2.4e-3),  # arXiv 2111.06377, Table 8; 64 x 64, or 8 x 256 x 2
    "imagenet/pretrain_large_4gpu": (256, 1.5e-4),  # 1,281,167 images in 5,004 steps
    "imagenet/pretrain_small": (32, 1.5e-4),  # an absolute rate
    "imagenet/finetune_base*": (1024, 2e-3),  # official FINETUNE.md
    "imagenet/finetune_base_32dev": (1024, 4e-3),  # base_lr 0.001
    "imagenet/finetune_large": (1024, 4e-3),
    "imagenet/finetune_huge*": (1024, 4e-3),
    "imagenet/linprobe_*": (16384, 6.4),  # Table 10
    "imagenet/scratch_*": (4096, 1.6e-3),  # Table 11
    "ablations/*": (4096, 2.4e-3),
    "cifar10/pretrain_gpu": (4096, 2.4e-3),
    "cifar10/pretrain_base_224": (32, 1.5e-4),
    "cifar10/finetune_gpu": (1024, 4e-3),
    "cifar10/scratch_gpu": (1024, 4e-3),
}
# Where the sources' epochs and warm-up differ from these: name, epochs, warm-up, weight decay.
EPOCHS = {
    "imagenet/pretrain_base_1600": (1600, 40, 0.05),
    "imagenet/pretrain_base_1600_8gpu": (1600, 40, 0.05),
    "imagenet/pretrain_base_800_64dev": (800, 40, 0.05),
    "imagenet/pretrain_large_4gpu": (800, 40, 0.05),
    "imagenet/finetune_base": (100, 5, 0.05),
    "imagenet/finetune_large": (50, 5, 0.05),
    "imagenet/finetune_huge": (50, 5, 0.05),
    "imagenet/linprobe_base": (90, 10, 0.0),
    "imagenet/scratch_base": (300, 20, 0.3),
    "imagenet/scratch_large": (200, 20, 0.3),
    "imagenet/scratch_huge": (200, 20, 0.3),
    "imagenet/scratch_base_64dev": (300, 20, 0.3),
    "cifar10/pretrain_gpu": (2000, 200, 0.05),
    "cifar10/finetune_gpu": (100, 5, 0.05),
}


def header(config):
    return recipe_page.header(ROOT / "configs" / f"{config}.yaml")[1]


def command(config):
    """Return (module of the script, its words, number of processes) of a config's command."""
    said = re.fullmatch(
        r"python (?:-m paddle\.distributed\.launch (.*?))?(\S+\.py) (.*)", header(config)["Command"]
    )
    assert said, f"{config}: the header gives no 'Command:  python SCRIPT.py --config configs/{config}.yaml'"
    launcher, script, flags = said.groups()
    nodes = re.search(r"--nnodes (\d+)", launcher or "")
    gpus = re.search(r'--gpus="([\d,]+)"', launcher or "")
    processes = (int(nodes[1]) if nodes else 1) * (len(gpus[1].split(",")) if gpus else 1)
    return (
        importlib.import_module(script.removesuffix(".py").replace("/", ".")),
        shlex.split(flags),
        processes,
    )


def parsed(config, monkeypatch):
    monkeypatch.chdir(ROOT)
    script, words, processes = command(config)
    assert words[:2] == ["--config", f"configs/{config}.yaml"]
    return script.get_args_parser().parse(words), processes


def source(config, table):
    """Return the entry of the most specific pattern that fits."""
    fits = [name for name in table if re.fullmatch(name.replace("*", ".*"), config)]
    return table[max(fits, key=lambda name: (not name.endswith("*"), len(name)))]


def test_there_are_recipes():
    assert len(RECIPES) > 70 and {"imagenet/pretrain_huge_1600", "cifar100/finetune_gpu"} <= set(RECIPES)


def test_every_command_parses_and_its_header_is_complete(monkeypatch):
    for config in CONFIGS:
        args, _ = parsed(config, monkeypatch)
        script = command(config)[0]
        assert args != script.get_args_parser().parse([]), config
        if config in TRAINING:
            settings.settle(args)
            settings.mean_std(args)
            models = models_mae.MODELS if script.__name__ == "main_pretrain" else models_vit.MODELS
            settings.model_sizes(args, models[args.model])
        if config in RECIPES:
            known = header(config)
            assert {"Command", "Hardware", "Time", "Expected", "Source"} <= known.keys() and all(
                known.values()
            ), config


def test_batch_and_rate_are_those_of_the_header_and_of_the_source(monkeypatch):
    for config in TRAINING:
        args, processes = parsed(config, monkeypatch)
        monkeypatch.setattr(distributed, "world_size", lambda: processes)
        lr = LearningRate(settings.settle(args).schedule)
        said = re.match(
            r"(\d+) x (\d+) x (\d+) process(?:es)? = (\d+), lr (\S+)", header(config)["Batch"]
        ).groups()
        expected = "batch {} x accum {} x {} processes = {}, lr {:.1e}".format(*said[:4], float(said[4]))
        assert str(lr).startswith(expected), config
        if config in PUBLISHED or config in SOURCES:
            batch, rate = source(config, SOURCES)
            assert int(said[3]) == batch and lr.peak == pytest.approx(rate), config
            assert lr(args.warmup_epochs) == pytest.approx(rate), config
        if config in EPOCHS:
            assert (args.epochs, args.warmup_epochs, args.weight_decay) == EPOCHS[config], config


def test_an_ablation_differs_in_one_line():
    for config in (config for config in CONFIGS if config.startswith("ablations/")):
        beside = {"ablations/mask_block_50": "ablations/mask_block_75"}.get(config, "ablations/baseline")
        here, there = (
            yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text()) for name in (config, beside)
        )
        changed = {name for name in here.keys() | there.keys() if here.get(name) != there.get(name)}
        assert len(changed) == (config != beside), config


RECORDED = [config for config in RECIPES if "run to its end in records/" in header(config)["Source"]]


@pytest.mark.parametrize("config", RECORDED)
def test_what_was_run_is_the_recipe_and_gave_what_its_header_expects(config, monkeypatch):
    record = ROOT / re.search(r"records/[\w-]+", header(config)["Source"])[0]
    args, _ = parsed(config, monkeypatch)
    ran = yaml.safe_load((record / f"{config.replace('/', '_')}.options.yaml").read_text())
    for name in yaml.safe_load((ROOT / "configs" / f"{config}.yaml").read_text()).keys() - {"data_path"}:
        assert ran[name] == getattr(args, name) or ran[name] == [getattr(args, name)], name
    last = json.loads((record / f"{config.replace('/', '_')}.log.txt").read_text().splitlines()[-1])
    assert last["epoch"] + 1 == args.epochs
    found = f"{last['test_acc1']:.1f} % top-1" if "test_acc1" in last else f"loss {last['train_loss']:.3f}"
    assert header(config)["Expected"].startswith(found)


def test_the_recipes_for_a_cpu_were_run():
    of_a_cpu = {config for config in RECIPES if config.endswith("_cpu")}
    assert of_a_cpu - set(RECORDED) == {
        config for config in of_a_cpu if config.startswith("cifar100/")
    }  # no data


# ---- dry runs of narrow models


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for dataset, archive in (("cifar10", "cifar-10-python.tar.gz"), ("cifar100", "cifar-100-python.tar.gz")):
        make_tar(root / archive, cifar_files(dataset))
    return write_pictures(root, train=4, val=2, size=(24, 24))


@pytest.fixture
def narrow_models(monkeypatch):
    """Replace the tables' models by narrow ones of one block, with the same patches and images."""
    thin = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    for module, more in (
        (models_mae, {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 4}),
        (models_vit, {}),
    ):
        for name, model in module.MODELS.items():
            monkeypatch.setitem(
                module.MODELS, name, partial(model.func, **{**model.keywords, **thin, **more})
            )


TRAINED = [*TRAINING, "demo/pretrain", "demo/finetune", "demo/linprobe"]
FIRST = {
    (config.partition("/")[0], command(config)[0].__name__): config
    for config in sorted(TRAINED, reverse=True)
}


@pytest.mark.slow
@pytest.mark.parametrize("config", sorted(FIRST.values()))
def test_a_dry_run_finds_nothing_against_it(config, data, narrow_models, tmp_path, monkeypatch, call_script):
    script, words, _ = command(config)
    monkeypatch.chdir(ROOT)
    here = [
        "--batch_size",
        2,
        "--accum_iter",
        1,
        "--num_workers",
        0,
        "--device",
        "cpu",
        "--loss_scale",
        "dynamic",
        "--finetune",
        "",
    ]
    said, _ = call_script(
        script, *words, *here, "--data_path", data, "--output_dir", tmp_path / "run", "--dry_run"
    )
    assert "nothing found that would stop this run" in said and not (tmp_path / "run").exists()


@pytest.mark.parametrize("config", ["imagenet/evaluate_base", "imagenet/evaluate_huge"])
def test_an_evaluation_evaluates(config, data, narrow_models, tmp_path, monkeypatch, call_script):
    script, words, _ = command(config)
    monkeypatch.chdir(ROOT)
    model = models_vit.MODELS[script.get_args_parser().parse(words).model](num_classes=1000, global_pool=True)
    paddle.save({"model": model.state_dict()}, str(tmp_path / "x.pd"))
    said, _ = call_script(
        script,
        *words,
        "--resume",
        tmp_path / "x.pd",
        "--data_path",
        data,
        "--num_workers",
        0,
        "--device",
        "cpu",
    )
    assert "Acc@5" in said
