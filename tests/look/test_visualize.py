"""tools/visualize.py: the files that it writes, looked at by their content, and what it refuses."""

import pickle

import browser
import numpy as np
import paddle
import pytest
from PIL import Image

import models_mae
import models_vit
from tools import extract_features
from tools import visualize as script
from util.images.normalize import default_mean_std
from util.images.transforms import EvalTransform
from util.infer import trained_model
from util.infer.model_spec import read_model_spec
from util.look.figures import heat

SIZE = {"img_size": [12, 8], "patch_size": 4}
SCALE, TOP = 28, 74  # how much small pictures are magnified; the lines above those of the first row


@pytest.fixture
def visualize(call_script):
    """A function that runs the script in this process and returns its output or its error."""
    return lambda *words, code=0: call_script(script, *words, code=code)[1 if code else 0]


@pytest.fixture
def pictures(tmp_path):
    """A folder of two pictures that the transform leaves as they are but for cutting their borders off."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, [14, 9, 3]).astype("uint8")).save(folder / f"{name}.png")
    return folder


def save(path, model, name, **more):
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    path.write_bytes(
        pickle.dumps({"model": weights, "architecture": {"name": name, **SIZE, **more}}, protocol=4)
    )
    return path


@pytest.fixture
def mae(tmp_path, scramble):
    return save(
        tmp_path / "mae.pd",
        scramble(models_mae.mae_vit_tiny_patch4(**SIZE, norm_pix_loss=True), 0.1),
        "mae_vit_tiny_patch4",
        norm_pix_loss=True,
    )


@pytest.fixture
def vit(tmp_path, scramble):
    return save(
        tmp_path / "vit.pd",
        scramble(models_vit.vit_tiny_patch4(**SIZE, num_classes=3)),
        "vit_tiny_patch4",
        num_classes=3,
        global_pool=False,
    )


def seen(picture):
    """[3, 12, 8] in [0, 1], what the model is shown of a file."""
    mean, std = default_mean_std(3)
    image = EvalTransform((12, 8), mean=mean, std=std).normalized(Image.open(picture))
    return image * np.reshape(std, [3, 1, 1]) + np.reshape(mean, [3, 1, 1])


def cell(figure, row, column, row_height=12 * SCALE + TOP):
    top, left = row * row_height + TOP, 8 + column * (8 * SCALE + 8)
    cut = np.asarray(Image.open(figure))[top : top + 12 * SCALE : SCALE, left : left + 8 * SCALE : SCALE]
    return cut.transpose(2, 0, 1) / 255


def patches_of(picture, shown):
    """[12, 8] bool: the pixels of the patches that are marked in `shown` [3, 2]."""
    return np.kron(shown, np.ones([4, 4])).astype(bool)


def test_hidden_patches_are_grey_and_visible_ones_the_original(tmp_path, visualize, pictures, mae):
    said = visualize(
        "--resume", mae, "--img_path", pictures, "--mask_ratio", 0.5, 0.8, "--output_dir", tmp_path
    )
    assert [line.split("/")[-1] for line in said.splitlines()] == [
        "a_reconstruction.png and .npz",
        "b_reconstruction.png and .npz",
    ]
    for name in ("a", "b"):
        figure = tmp_path / f"{name}_reconstruction.png"
        original = seen(pictures / f"{name}.png")
        with np.load(tmp_path / f"{name}_reconstruction.npz") as arrays:
            masks = arrays["mask"]
            np.testing.assert_allclose(arrays["mask_ratio"], [3 / 6, 5 / 6])
            assert arrays["checkpoint"].tolist() == [str(mae)] * 2 and arrays["prediction"].shape == (
                2,
                6,
                48,
            )
        assert [int(mask.sum()) for mask in masks] == [3, 5] and (masks[0] <= masks[1]).all()  # of one noise
        for row, mask in enumerate([masks[0], masks[0], masks[1], masks[1]]):  # with both kinds of statistics
            hidden = patches_of(figure, mask)
            np.testing.assert_allclose(cell(figure, row, 0), original, atol=0.003)
            masked, pasted, error = (cell(figure, row, column) for column in (1, 3, 4))
            np.testing.assert_allclose(masked[:, hidden], 0.5, atol=0.003)
            np.testing.assert_array_equal(masked[:, ~hidden], cell(figure, row, 0)[:, ~hidden])
            np.testing.assert_array_equal(pasted[:, ~hidden], cell(figure, row, 0)[:, ~hidden])
            np.testing.assert_array_equal(pasted[:, hidden], cell(figure, row, 2)[:, hidden])
            assert error[:, ~hidden].max() < 0.02 and error[:, hidden].max() > 0.2


def test_a_given_mask_and_several_checkpoints(tmp_path, visualize, pictures, mae, scramble):
    mask = np.array([[0, 1], [1, 0], [1, 1]])
    Image.fromarray((255 * mask).astype("uint8")).resize((80, 120), Image.Resampling.NEAREST).save(
        tmp_path / "m.png"
    )
    other = save(
        tmp_path / "other.pd", scramble(models_mae.mae_vit_tiny_patch4(**SIZE), 0.2), "mae_vit_tiny_patch4"
    )
    visualize(
        "--resume",
        mae,
        other,
        "--img_path",
        pictures / "a.png",
        "--mask_file",
        tmp_path / "m.png",
        "--statistics",
        "visible",
        "--output_dir",
        tmp_path / "out",
    )
    figure = tmp_path / "out" / "a_reconstruction.png"
    for row in (0, 1):
        hidden = (cell(figure, row, 1) == cell(figure, row, 1)[0]).all(axis=0)
        np.testing.assert_array_equal(hidden, patches_of(figure, mask))
    assert abs(cell(figure, 0, 2) - cell(figure, 1, 2)).mean() > 0.05
    # The file of one checkpoint has the mask under the name by which it can be given again.
    visualize(
        "--resume",
        mae,
        "--img_path",
        pictures / "a.png",
        "--mask_file",
        tmp_path / "m.png",
        "--output_dir",
        tmp_path / "again",
    )
    again = ["--resume", mae, "--img_path", pictures / "b.png", "--output_dir", tmp_path / "again"]
    visualize(*again, "--mask_file", tmp_path / "again" / "a_reconstruction.npz")
    with np.load(tmp_path / "again" / "b_reconstruction.npz") as arrays:
        np.testing.assert_array_equal(arrays["mask"], mask)


def test_attention_affinity_and_colours(tmp_path, visualize, pictures, vit, mae):
    visualize(
        "--resume",
        vit,
        "--img_path",
        pictures,
        "--show",
        "attention",
        "affinity",
        "pca",
        "--patch",
        2,
        1,
        "--output_dir",
        tmp_path,
    )
    model = trained_model.load_model(read_model_spec(vit, models_vit.MODELS, features=[]))
    arrays = {what: dict(np.load(tmp_path / f"b_{what}.npz")) for what in ("attention", "affinity", "pca")}
    found = arrays["attention"]
    assert found["class_token"].shape == (6, 3, 7)
    for name in ("class_token", "rollout", "mean_of_heads"):
        np.testing.assert_allclose(found[name].sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(found["class_token"].mean(axis=1), found["mean_of_heads"][:, 0], atol=1e-6)
    # The fourth picture of the first row is the last block's, a patch in a colour.
    expected = heat(found["class_token"][-1].mean(axis=0)[1:].reshape(3, 2))
    np.testing.assert_allclose(cell(tmp_path / "b_attention.png", 0, 3)[:, ::4, ::4], expected, atol=0.003)
    image = seen(pictures / "b.png")
    mean, std = default_mean_std(3)
    normalised = (image - np.reshape(mean, [3, 1, 1])) / np.reshape(std, [3, 1, 1])
    tokens = model.blocks[0](model.embed(paddle.to_tensor(normalised[None].astype("float32")))).numpy()[0, 1:]
    cosines = tokens @ tokens.T / np.outer(*[np.linalg.norm(tokens, axis=1)] * 2)
    np.testing.assert_allclose(arrays["affinity"]["similarity"][0], cosines, atol=1e-4)
    np.testing.assert_allclose(arrays["affinity"]["attention"], found["mean_of_heads"][:, 6], atol=1e-6)
    frame = cell(tmp_path / "b_affinity.png", 0, 0)
    assert (frame[:, 8, 4:] == [[1], [0], [0]]).all() and (frame[:, 7, 4:] != [[1], [0], [0]]).any()
    assert arrays["pca"]["colours"].shape == (3, 2, 3)
    np.testing.assert_allclose(
        cell(tmp_path / "b_pca.png", 0, 1)[:, ::4, ::4],
        arrays["pca"]["colours"].transpose(2, 0, 1),
        atol=0.003,
    )
    # The encoder of an autoencoder has attention, too.
    visualize(
        "--resume",
        mae,
        "--img_path",
        pictures / "a.png",
        "--show",
        "attention",
        "--output_dir",
        tmp_path / "mae",
    )
    assert (
        abs(
            np.load(tmp_path / "mae" / "a_attention.npz")["class_token"]
            - dict(np.load(tmp_path / "a_attention.npz"))["class_token"]
        ).max()
        > 0.01
    )


def test_the_nearest_picture_of_a_folder_is_the_same_one(tmp_path, visualize, pictures, mae):
    visualize(
        "--resume",
        mae,
        "--img_path",
        pictures,
        "--show",
        "neighbours",
        "--gallery",
        pictures,
        "--neighbours",
        "2",
        "--output_dir",
        tmp_path,
    )
    for name, other in (("a", "b"), ("b", "a")):
        found = np.load(tmp_path / f"{name}_neighbours.npz")
        assert [str(path).split("/")[-1] for path in found["names"]] == [f"{name}.png", f"{other}.png"]
        assert found["cosine"][0] == pytest.approx(1, abs=1e-5) and found["cosine"][1] < 0.9999


def test_a_picture_is_never_overwritten(tmp_path, visualize, pictures, mae):
    words = ["--resume", mae, "--img_path", pictures, "--output_dir", pictures]
    visualize(*words)
    before = {path: path.read_bytes() for path in pictures.iterdir()}
    said = visualize(*words, code=2)  # what was drawn is among the pictures by now
    assert "would overwrite" in said and "which is one of the pictures" in said
    assert {path: path.read_bytes() for path in pictures.iterdir()} == before


def test_a_picture_has_its_mask_whatever_the_others_are(tmp_path, visualize, pictures, mae):
    visualize("--resume", mae, "--img_path", pictures, "--output_dir", tmp_path / "both")
    visualize("--resume", mae, "--img_path", pictures / "b.png", "--output_dir", tmp_path / "one")
    both, one = (dict(np.load(tmp_path / out / "b_reconstruction.npz"))["mask"] for out in ("both", "one"))
    np.testing.assert_array_equal(both, one)
    drawn = []
    for name in "ab":
        visualize(
            "--resume", mae, "--img_path", pictures / f"{name}.png", "--output_dir", tmp_path, "--seed", 3
        )
        drawn.append(np.load(tmp_path / f"{name}_reconstruction.npz")["mask"].tolist())
    assert drawn[0] != drawn[1]


def test_rows_of_checkpoints_are_told_apart():
    label = script.checkpoint_labels
    assert label(["x/run1/c.pd", "x/run2/c.pd"]) == ["run1/c.pd: ", "run2/c.pd: "]
    assert label(["a/run/c.pd", "b/run/c.pd"]) == ["a/run/c.pd: ", "b/run/c.pd: "]
    assert label(["c.pd", "c.pd"]) == ["1. c.pd: ", "2. c.pd: "]


def test_a_config_file_names_a_patch(tmp_path, visualize, pictures, vit):
    (tmp_path / "c.yaml").write_text("show: [affinity]\npatch: [2, 0]\n")
    visualize(
        "--config",
        tmp_path / "c.yaml",
        "--resume",
        vit,
        "--img_path",
        pictures / "a.png",
        "--output_dir",
        tmp_path,
    )
    assert np.load(tmp_path / "a_affinity.npz")["patch"].tolist() == [2, 0]


def test_weights_that_do_not_say_what_they_predict(tmp_path, capsys, visualize, pictures, mae):
    weights = pickle.loads(mae.read_bytes())["model"]
    weights["pos_embed"], weights["decoder_pos_embed"] = (
        weights["pos_embed"][:, :5],
        weights["decoder_pos_embed"][:, :5],
    )
    (tmp_path / "bare.pd").write_bytes(pickle.dumps({"model": weights}, protocol=4))  # 2 x 2 patches
    words = ["--resume", tmp_path / "bare.pd", "--img_path", pictures / "a.png", "--output_dir", tmp_path]
    for more, said in (([], True), (["--norm_pix_loss"], False)):
        script.main(script.get_args_parser().parse_args(list(map(str, [*words, *more]))))
        complaint = capsys.readouterr().err
        assert ("add --norm_pix_loss" in complaint) == said and "assuming 3 attention heads" in complaint


def test_neighbours_among_extracted_features(tmp_path, visualize, call_script, pictures, mae, vit):
    call_script(
        extract_features,
        "--resume",
        mae,
        "--img_path",
        pictures,
        "--output",
        tmp_path / "f.npz",
        "--num_workers",
        0,
    )
    words = ["--img_path", pictures / "b.png", "--show", "neighbours", "--gallery"]
    for gallery, out in ((pictures, "computed"), (tmp_path / "f.npz", "known")):
        visualize("--resume", mae, *words, gallery, "--output_dir", tmp_path / out)
    computed, known = (dict(np.load(tmp_path / out / "b_neighbours.npz")) for out in ("computed", "known"))
    assert known["names"].tolist() == computed["names"].tolist() and known["names"][0] == str(
        pictures / "b.png"
    )
    np.testing.assert_allclose(known["cosine"], computed["cosine"], atol=1e-5)
    np.testing.assert_array_equal(
        *(np.asarray(Image.open(tmp_path / out / "b_neighbours.png")) for out in ("computed", "known"))
    )
    assert "weights_sha256" in visualize("--resume", vit, *words, tmp_path / "f.npz", code=2)
    (pictures / "a.png").unlink()
    assert f"{pictures / 'a.png'} is not a picture file" in visualize(
        "--resume", mae, *words, tmp_path / "f.npz", code=2
    )


def test_what_cannot_be_drawn_is_refused(tmp_path, visualize, pictures, mae, vit):
    words = ["--img_path", pictures, "--output_dir", tmp_path / "out"]
    (tmp_path / "damaged.npz").write_bytes((tmp_path / "mae.pd").read_bytes()[:200])
    plain = save(
        tmp_path / "plain.pd",
        models_mae.mae_vit_tiny_patch4(**SIZE),
        "mae_vit_tiny_patch4",
        norm_pix_loss=False,
    )
    for more, said in [
        (["--resume", plain, "--norm_pix_loss"], "was trained without it"),
        (["--resume", mae, "--mask_ratio", "nan"], "--mask_ratio nan"),
        (["--resume", mae, "--mask_ratio", "inf"], "--mask_ratio inf"),
        (["--resume", mae, "--mask_ratio", 0.5, "--mask_file", "m.png"], "--mask_ratio: --mask_file"),
        (["--resume", mae, "--mask_file", tmp_path / "damaged.npz"], "damaged.npz: cannot be read"),
        (["--resume", mae, "--seed", 2**70], "--seed 1180591620717411303424: expected an integer"),
        (["--resume", mae, "--patch", 0, 0], "--patch: is for --show affinity"),
        (["--resume", vit, "--statistics", "true"], "--statistics: is for --show reconstruction"),
        (["--resume", mae, "--std", 0, 1, 1], "--std 0.0 1.0 1.0: expected numbers above 0"),
        (["--resume", mae, "--mean", "nan", 1, 1], "--mean nan 1.0 1.0: expected numbers"),
        (
            ["--resume", mae, "--show", "reconstruction", "affinity", "--patch", 9, 9],
            "--patch 9 9: expected a row",
        ),
        (["--resume", mae, mae, "--show", "reconstruction", "pca"], "takes one checkpoint, got 2"),
        (["--resume", vit, "--show", "pca", "--input_size", 4], "--show pca: needs at least 4 patches"),
        (
            ["--resume", vit, "--show", "reconstruction"],
            "needs a decoder, and this file is a finetuned classifier",
        ),
        (["--resume", mae, "--mask_ratio", 0.99], "--mask_ratio 0.99: leaves 0 of 6"),
        (["--resume", mae, "--mask_file", pictures / "none.png"], "--mask_file"),
        (["--resume", mae, vit, "--show", "attention"], "takes one checkpoint, got 2"),
        (["--resume", vit, "--show", "affinity", "--patch", 3, 0], "--patch 3 0: expected a row of 0 to 2"),
        (["--resume", vit, "--show", "neighbours"], "--gallery FOLDER is needed"),
        (["--resume", tmp_path / "none.pd"], "none.pd"),
    ]:
        assert said in visualize(*words, *more, code=2)
    assert not (tmp_path / "out").exists()


def test_a_picture_that_cannot_be_read_is_named_and_the_others_are_drawn(tmp_path, visualize, pictures, mae):
    (pictures / "aa.png").write_text("nothing")
    said = visualize(
        "--resume",
        mae,
        "--img_path",
        pictures,
        "--show",
        "reconstruction",
        "pca",
        "--output_dir",
        tmp_path,
        code=1,
    )
    assert (
        said.count(f"{pictures / 'aa.png'} cannot be read") == 1
        and "1 of 3 pictures could not be read" in said
    )
    assert (tmp_path / "b_reconstruction.png").exists() and not (tmp_path / "aa_reconstruction.png").exists()


@pytest.mark.slow
@pytest.mark.skipif(not browser.available(), reason="no Chromium")
def test_pointing_at_a_patch(tmp_path, visualize, pictures, vit):
    visualize(
        "--resume", vit, "--img_path", pictures / "a.png", "--show", "affinity", "--output_dir", tmp_path
    )
    cosines = np.load(tmp_path / "a_affinity.npz")["similarity"][-1]
    with browser.page(tmp_path / "a_affinity.html", width=390) as page:
        page.wait_for("document.getElementById('where').textContent == 'row 1, column 1'")
        page.evaluate(
            "pick.dispatchEvent(new PointerEvent('pointerdown', {clientX: pick.getBoundingClientRect().left "
            "+ 1, clientY: pick.getBoundingClientRect().bottom - 1}))"
        )
        assert page.evaluate("document.getElementById('where').textContent") == "row 2, column 0"
        low, high = (
            float(word.strip(","))
            for word in page.evaluate("document.getElementById('span').textContent").split()[2::2]
        )
        assert (low, high) == (pytest.approx(cosines[4].min(), abs=0.02), pytest.approx(1, abs=0.02))
        shown = page.evaluate(
            "[...document.getElementById('map').getContext('2d').getImageData(0, 0, 2, 3).data]"
        )
        brightness = np.array(shown).reshape([6, 4])[:, :3].sum(axis=1)
        assert brightness.argmax() == 4 and brightness.argmin() == cosines[4].argmin()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert not page.complaints and all(
            address.startswith(("file:", "data:")) for address in page.requests
        )
