"""The Transformer's pieces against numpy, and their meaning."""

import numpy as np
import paddle
import pytest
from numpy_transformer import attention, block, embed_patches, gelu, weights_of

from layer import Attention, Block, DropPath, LayerNorm, Mlp, PatchEmbed, pair, take_tokens

pytestmark = [pytest.mark.isa, pytest.mark.usefixtures("library")]


@pytest.fixture
def tokens():
    """[2, 5, 12]."""
    return paddle.to_tensor(np.random.default_rng(0).standard_normal([2, 5, 12]).astype("float32"))


def named(model, name):
    return {f"{name}.{key}": value for key, value in weights_of(model).items()}


@pytest.mark.parametrize("in_chans", [1, 3, 4])
def test_patch_embedding_is_a_linear_map_of_each_patch_row_by_row(in_chans):
    image = np.random.default_rng(0).standard_normal([1, in_chans, 8, 12]).astype("float32")
    layer = PatchEmbed((8, 12), 4, in_chans, 6)
    expected = embed_patches(image[0], named(layer, "patch_embed"), 4)
    np.testing.assert_allclose(layer(paddle.to_tensor(image))[0].numpy(), expected, atol=1e-5)
    assert layer.grid_size == (2, 3) and layer.num_patches == 6


@pytest.mark.parametrize("heads", [1, 3, 4])
def test_attention_is_the_numpy_one(tokens, heads, scramble):
    layer = scramble(Attention(12, heads))
    expected = [attention(one, named(layer, "a"), "a", heads) for one in tokens.numpy().astype("float64")]
    np.testing.assert_allclose(layer(tokens).numpy(), expected, atol=1e-5)


def test_mlp_has_the_exact_gelu():
    layer = Mlp(1, 1)
    for p, value in zip(layer.parameters(), [1.0, 0.0, 1.0, 0.0]):
        p.set_value(np.full(p.shape, value, "float32"))
    x = np.array([-3.0, -2.2, -0.5, 0.7, 2.2, 3.0], "float32")
    # The approximation by tanh is off by up to 5e-4 at these places.
    np.testing.assert_allclose(layer(paddle.to_tensor(x)[:, None])[:, 0].numpy(), gelu(x), atol=1e-6)


def test_block_normalises_before_each_branch(tokens, scramble):
    layer = scramble(Block(12, 3, mlp_ratio=2.5))
    assert layer.mlp.fc1.weight.shape == [12, 30]
    expected = [block(one, named(layer, "b"), "b", 3) for one in tokens.numpy().astype("float64")]
    np.testing.assert_allclose(layer(tokens).numpy(), expected, atol=2e-5)


def test_layer_norm_has_the_epsilon_of_the_published_models():
    x = paddle.to_tensor(np.array([[-1e-3, 1e-3]], "float32"))  # variance 1e-6: as large as the epsilon
    np.testing.assert_allclose(LayerNorm(2)(x).numpy(), [[-(0.5**0.5), 0.5**0.5]], atol=1e-5)


def test_drop_path_leaves_images_out_and_keeps_the_mean():
    kept = DropPath(0.3)(paddle.ones([4000, 5, 3])).numpy()
    assert (kept == kept[:, :1, :1]).all()  # one decision for each image
    kept = kept[:, 0, 0]
    np.testing.assert_allclose(np.unique(kept), [0, 1 / 0.7], rtol=1e-6)
    assert abs(kept.mean() - 1) < 0.04  # 4 standard errors of 4000 images: 0.041


def test_drop_path_is_off_in_evaluation_and_at_rate_0(tokens):
    layer = DropPath(0.9)
    layer.eval()
    assert layer(tokens) is tokens and DropPath(0.0)(tokens) is tokens


def test_a_branch_that_is_kept_is_scaled_up(tokens, scramble):
    layer = scramble(Block(12, 3, drop_path=0.5))
    for p in layer.mlp.fc2.parameters():  # leaves the attention branch
        p.set_value(paddle.zeros_like(p))
    layer.eval()
    branch = (layer(tokens) - tokens).numpy()
    layer.train()
    seen = np.stack([(layer(tokens) - tokens).numpy() for _ in range(20)])  # [20, 2, 5, 12]
    expected = np.where(np.abs(seen).max(axis=(2, 3), keepdims=True) > 0, 2 * branch, 0)
    np.testing.assert_allclose(seen, expected, atol=2e-5)
    assert 0 < (expected == 0).mean() < 1


def test_a_block_gives_the_wanted_tokens_alone(tokens, scramble):
    layer = scramble(Block(12, 3))
    ids = paddle.to_tensor([[4, 0, 2], [1, 3, 4]])
    expected = np.stack([layer(tokens).numpy()[image, ids[image].numpy()] for image in range(2)])
    np.testing.assert_allclose(layer(tokens, ids).numpy(), expected, atol=1e-6)


def test_take_tokens_and_its_gradient():
    x = np.random.default_rng(0).standard_normal([2, 4, 3]).astype("float32")
    ids = np.array([[3, 0], [1, 1]])
    tokens = paddle.to_tensor(x, stop_gradient=False)
    taken = take_tokens(tokens, paddle.to_tensor(ids))
    np.testing.assert_array_equal(taken.numpy(), np.take_along_axis(x, ids[:, :, None], axis=1))
    (taken * paddle.to_tensor([[[1.0], [2.0]], [[3.0], [4.0]]])).sum().backward()
    np.testing.assert_array_equal(tokens.grad[:, :, 0].numpy(), [[2, 0, 0, 1], [0, 7, 0, 0]])


def test_dropped_images_pass_a_block_unchanged(tokens, scramble):
    layer = scramble(Block(12, 3, drop_path=1 - 1e-6))
    assert (layer(tokens) == tokens).all()
    layer.eval()
    assert ((layer(tokens) - tokens).abs() > 1e-3).any()


def test_the_two_branches_of_a_block_are_dropped_apart(scramble):
    layer = scramble(Block(12, 3, drop_path=0.5))
    x = paddle.to_tensor(np.random.default_rng(0).standard_normal([1, 5, 12]).astype("float32")).expand(
        [400, -1, -1]
    )
    outcomes, counts = np.unique(layer(x).numpy().round(3), axis=0, return_counts=True)
    assert len(outcomes) == 4  # neither, either, both
    assert counts.min() > 60  # of 100 on average


def test_pair():
    assert [pair(224), pair([32]), pair((224, 160))] == [(224, 224), (32, 32), (224, 160)]
    for size in (0, -16, (16, 16, 16), [16.0], (32, 0), []):
        with pytest.raises(ValueError, match="--input_size and --patch_size take .* whole numbers above 0"):
            pair(size)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match="--input_size 32 30: each side must be a multiple of --patch_size 4"
    ):
        PatchEmbed((32, 30), 4)
    with pytest.raises(ValueError, match="--patch_size: patches are square"):
        PatchEmbed(32, (4, 8))
    with pytest.raises(ValueError, match=r"\[3, 8, 12\].*got \[3, 12, 8\]"):
        PatchEmbed((8, 12), 4, 3, 6)(paddle.zeros([1, 3, 12, 8]))
    with pytest.raises(ValueError, match=r"\[3, 8, 8\].*got \[1, 8, 8\]"):
        PatchEmbed(8, 4, 3, 6)(paddle.zeros([1, 1, 8, 8]))
    with pytest.raises(ValueError, match="10 channels cannot be divided among 3 attention heads"):
        Attention(10, 3)
