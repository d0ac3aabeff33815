"""The encoder of any checkpoint, and autoencoders only where there is a decoder."""
import pickle

import numpy as np
import pytest

import models_mae
import models_vit
from util.infer import trained_model
from util.weights import checkpoint

SIZE = {"img_size": [12, 8], "patch_size": 4}


def save(path, model, **more):
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    path.write_bytes(pickle.dumps({"model": weights, **more}, protocol=4))
    return path


@pytest.mark.parametrize("described", [False, True], ids=["bare", "described"])
def test_the_encoder_of_an_autoencoder_sees_every_patch(tmp_path, scramble, images, described):
    sizes = SIZE if described else {"img_size": [8, 8], "patch_size": 4}  # a bare file's patches are taken for a square
    mae = scramble(models_mae.mae_vit_tiny_patch4(**sizes))
    more = {"architecture": {"name": "mae_vit_tiny_patch4", **sizes, "norm_pix_loss": True}} if described else {}
    path = save(tmp_path / "mae.pd", mae, **more)
    model, state = trained_model.open_encoder(path, models_vit.MODELS)
    images = images[:, :, :sizes["img_size"][0]]
    latent = mae.forward_encoder(images, 0.0)[0].numpy()  # in the order of a drawn noise; the class token comes first
    tokens = model.norm(model.forward_tokens(images)).numpy()
    np.testing.assert_allclose(tokens[:, 0], latent[:, 0], atol=1e-5)
    np.testing.assert_allclose(np.sort(tokens[:, 1:], axis=1), np.sort(latent[:, 1:], axis=1), atol=1e-5)
    assert not model.training and state["model"].keys() == mae.state_dict().keys()


def test_the_encoder_of_a_classifier(tmp_path, scramble, images):
    vit = scramble(models_vit.vit_tiny_patch4(**SIZE, num_classes=3, global_pool=True))
    path = save(tmp_path / "vit.pd", vit, architecture={"name": "vit_tiny_patch4", **SIZE, "num_classes": 3,
                                                        "global_pool": True})
    model, _ = trained_model.open_encoder(path, models_vit.MODELS)
    np.testing.assert_array_equal(model(images).numpy(), vit(images).numpy())


def test_an_encoder_alone_cannot_reconstruct(tmp_path):
    mae = models_mae.mae_vit_tiny_patch4(**SIZE)
    path = save(tmp_path / "mae.pd", mae, architecture={"name": "mae_vit_tiny_patch4", **SIZE, "norm_pix_loss": True})
    model, _ = trained_model.open_autoencoder(path, models_mae.MODELS)
    assert model.norm_pix_loss and not model.training
    with open(path, "rb") as f:
        state = pickle.load(f)
    state["model"] = {name: value for name, value in state["model"].items() if not name.startswith("decoder")}
    path.write_bytes(pickle.dumps(state, protocol=4))
    with pytest.raises(checkpoint.CheckpointError, match="decoder.*a pretrained encoder"):
        trained_model.open_autoencoder(path, models_mae.MODELS)


def test_normalization_is_the_files_unless_asked_for():
    state = {"normalization": {"mean": [0.5], "std": [0.25]}}
    assert trained_model.normalization(state, 1) == state["normalization"]
    assert trained_model.normalization(state, 1, std=[0.1]) == {"mean": [0.5], "std": [0.1]}
    assert trained_model.normalization({}, 3)["mean"] == (0.485, 0.456, 0.406)  # ImageNet's
    with pytest.raises(ValueError, match="--mean: expected 1 numbers, one a channel of this model, got 3"):
        trained_model.normalization(state, 1, mean=[0.1, 0.2, 0.3])
