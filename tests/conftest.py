"""What several test modules share: small models, seeded images and the scripts' own CPU settings."""

from util.compute import cpu_runtime

cpu_runtime.prepare()  # before Paddle is imported, as every script does

import os

import numpy as np
import paddle
import pytest

from models_mae import MaskedAutoencoderViT
from models_vit import VisionTransformer
from util.compute import operations
from util.options import command_line


@pytest.fixture(autouse=True)
def seeded():
    """Parameters that Paddle draws are the same in every run and whatever tests came before."""
    paddle.seed(0)


@pytest.fixture(params=["onednn", "paddle"])
def library(request):
    """Runs a test twice: with the operations as a CPU has them, by oneDNN, and with Paddle's own, as a GPU has them."""
    if request.param == "paddle":
        with operations.by_paddle():
            yield
    else:
        yield


@pytest.fixture
def images():
    """[2, 3, 12, 8], an image that is not square, so that rows and columns cannot be mixed up."""
    return paddle.to_tensor(np.random.default_rng(0).standard_normal([2, 3, 12, 8]).astype("float32"))


@pytest.fixture
def make_mae():
    """A function that makes a masked autoencoder for `images`: 3 x 2 patches, 48 values a patch."""

    def make(**changes):
        return MaskedAutoencoderViT(
            **{
                "img_size": (12, 8),
                "patch_size": 4,
                "embed_dim": 8,
                "depth": 2,
                "num_heads": 2,
                "decoder_embed_dim": 12,
                "decoder_depth": 1,
                "decoder_num_heads": 3,
                **changes,
            }
        )

    return make


@pytest.fixture
def make_vit():
    """A function that makes a classifier for `images`, of 5 classes, with the encoder of `make_mae`."""

    def make(**changes):
        return VisionTransformer(
            **{
                "img_size": (12, 8),
                "patch_size": 4,
                "num_classes": 5,
                "embed_dim": 8,
                "depth": 2,
                "num_heads": 2,
                **changes,
            }
        )

    return make


@pytest.fixture
def scramble():
    """A function that gives every trained parameter of a model random values: at the start many are 0 or 1."""

    def scramble(model, std=0.3):
        rng = np.random.default_rng(1)
        for p in model.parameters():
            if not p.stop_gradient:
                p.set_value((std * rng.standard_normal(p.shape)).astype("float32"))
        return model

    return scramble


@pytest.fixture(params=["hard links", "no hard links"])
def file_system(request, monkeypatch):
    """Runs a test twice: on a file system with hard links, and as on one without; gives which it is."""
    if request.param == "no hard links":

        def refuse(*paths):
            raise PermissionError("no links here")

        monkeypatch.setattr(os, "link", refuse)
    return request.param


@pytest.fixture
def call_script(monkeypatch, capsys):
    """A function that calls a script in this process as its last line does; what it printed, and what to standard error.

    Fails if it does not end with `code`.
    """

    def call_script(script, *words, code=0):
        monkeypatch.setattr("sys.argv", [f"{script.__name__.split('.')[-1]}.py", *map(str, words)])
        ended = 0
        try:
            command_line.run(script.main, script.get_args_parser())
        except SystemExit as stop:
            ended = stop.code
        said = capsys.readouterr()
        assert ended == code and "Traceback" not in said.err, said.out + said.err
        return said.out, said.err

    return call_script
