"""Similarity and principal components of patches."""

import numpy as np

from util.look.encoder_figures import PrincipalComponents, similarity


def test_cosines_by_hand():
    found = similarity(np.array([[[3.0, 4], [6, 8], [-4, 3], [0, 0]]]))
    np.testing.assert_allclose(found, [[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]], atol=1e-12)


def test_colours_follow_the_largest_spreads():
    rng = np.random.default_rng(0)
    spread = np.array([0.1, 5, 1, 0.05, 20])
    tokens = rng.standard_normal([2000, 5]) * spread + [1, 2, 3, 4, 5]
    fitted = PrincipalComponents(tokens)
    # The axes with spreads 20, 5 and 1, in this order, each with its sign.
    np.testing.assert_allclose(fitted.components, np.eye(5)[[4, 1, 2]].T, atol=0.05)
    shown = fitted.colours(tokens)
    assert shown.shape == (2000, 3) and shown.min() == 0 and shown.max() == 1
    for place, axis in enumerate((4, 1, 2)):
        low, high = np.percentile(tokens[:, axis], (1, 99))
        np.testing.assert_allclose(
            shown[:, place], ((tokens[:, axis] - low) / (high - low)).clip(0, 1), atol=0.05
        )
    assert (PrincipalComponents(tokens[::-1]).colours(tokens) - shown).max() < 1e-6


def test_equal_patches_have_a_colour():
    assert np.isfinite(PrincipalComponents(np.ones([6, 4])).colours(np.ones([2, 4]))).all()
