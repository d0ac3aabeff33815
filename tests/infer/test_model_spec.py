"""Model spec: the encoder of any checkpoint, autoencoders only with a decoder, overrides."""

import pickle

import numpy as np
import pytest

import models_mae
import models_vit
from util.infer.model_spec import normalization_of, read_model_spec
from util.infer.trained_model import load_model, read_autoencoder_spec
from util.weights import checkpoint

SIZE = {"img_size": [12, 8], "patch_size": 4}


def save(path, model, **more):
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    path.write_bytes(pickle.dumps({"model": weights, **more}, protocol=4))
    return path


@pytest.mark.parametrize("described", [False, True], ids=["bare", "described"])
def test_the_encoder_of_an_autoencoder_sees_every_patch(tmp_path, scramble, images, described):
    # A bare file is assumed to be for square images.
    sizes = SIZE if described else {"img_size": [8, 8], "patch_size": 4}
    mae = scramble(models_mae.mae_vit_tiny_patch4(**sizes))
    more = (
        {"architecture": {"name": "mae_vit_tiny_patch4", **sizes, "norm_pix_loss": True}} if described else {}
    )
    path = save(tmp_path / "mae.pd", mae, **more)
    spec = read_model_spec(path, models_vit.MODELS, features=[])
    model = load_model(spec)
    images = images[:, :, : sizes["img_size"][0]]
    # The class token comes first, the others in the order of a drawn noise.
    latent = mae.forward_encoder(images, 0.0)[0].numpy()
    tokens = model.norm(model.forward_tokens(images)).numpy()
    np.testing.assert_allclose(tokens[:, 0], latent[:, 0], atol=1e-5)
    np.testing.assert_allclose(np.sort(tokens[:, 1:], axis=1), np.sort(latent[:, 1:], axis=1), atol=1e-5)
    assert not model.training and spec.state["model"].keys() == mae.state_dict().keys()


def test_the_encoder_of_a_classifier(tmp_path, scramble, images):
    vit = scramble(models_vit.vit_tiny_patch4(**SIZE, num_classes=3, global_pool=True))
    path = save(
        tmp_path / "vit.pd",
        vit,
        architecture={"name": "vit_tiny_patch4", **SIZE, "num_classes": 3, "global_pool": True},
    )
    model = load_model(read_model_spec(path, models_vit.MODELS, features=[]))
    np.testing.assert_array_equal(model(images).numpy(), vit(images).numpy())


def test_an_encoder_alone_cannot_reconstruct(tmp_path):
    mae = models_mae.mae_vit_tiny_patch4(**SIZE)
    path = save(
        tmp_path / "mae.pd", mae, architecture={"name": "mae_vit_tiny_patch4", **SIZE, "norm_pix_loss": True}
    )
    model = load_model(read_autoencoder_spec(path, models_mae.MODELS))
    assert model.norm_pix_loss and not model.training
    with open(path, "rb") as f:
        state = pickle.load(f)
    state["model"] = {name: value for name, value in state["model"].items() if not name.startswith("decoder")}
    path.write_bytes(pickle.dumps(state, protocol=4))
    with pytest.raises(checkpoint.CheckpointError, match="decoder.*a pretrained encoder"):
        read_autoencoder_spec(path, models_mae.MODELS)


def test_normalization_is_the_files_unless_overridden():
    state = {"normalization": {"mean": [0.5], "std": [0.25]}}
    assert normalization_of(state, 1, {}) == state["normalization"]
    assert normalization_of(state, 1, {"std": [0.1]}) == {"mean": [0.5], "std": [0.1]}
    assert normalization_of({}, 3, {})["mean"] == (0.485, 0.456, 0.406)  # ImageNet's
    for wrong, flag in (({"mean": [0.1, 0.2, 0.3]}, "--mean"), ({"std": [0]}, "--std 0")):
        with pytest.raises(ValueError, match=flag):
            normalization_of(state, 1, wrong)


def test_overrides_of_a_checkpoint_and_of_an_exported_model(tmp_path):
    vit = models_vit.vit_tiny_patch4(**SIZE, num_classes=3)
    path = save(
        tmp_path / "vit.pd",
        vit,
        architecture={"name": "vit_tiny_patch4", **SIZE, "num_classes": 3},
        classes=["a", "b"],
    )
    spec = read_model_spec(
        path, models_vit.MODELS, {"img_size": [8, 8], "norm_pix_loss": True, "mean": [0, 0, 0.5]}
    )
    assert (spec.role, spec.name, spec.is_autoencoder) == ("classifier", "vit_tiny_patch4", False)
    assert spec.sizes == {"img_size": [8, 8], "patch_size": 4, "num_classes": 3}
    assert spec.classes == ["a", "b", "class 2"] and spec.normalization["mean"] == [0, 0, 0.5]
    for wrong, flag in (({"patch_size": 2}, "--patch_size 2"), ({"name": "vit"}, "--model vit")):
        with pytest.raises(ValueError, match=flag):
            read_model_spec(path, models_vit.MODELS, wrong)
    with pytest.raises(ValueError, match="--input_size"):
        read_model_spec("m.onnx", {}, {"img_size": 8})
    assert read_model_spec("m.onnx", {}, {"img_size": None, "std": [1.0]}).normalization == {"std": [1.0]}
