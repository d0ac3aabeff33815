"""How the patches of a picture relate in an encoder's eyes: their similarity, and their three main directions as colours.

Shape letters: N images, L patches, D channels. Everything is numpy.
"""
import numpy as np


def similarity(tokens):
    """Cosines between the patch tokens [..., L, D] of each picture: [..., L, L]."""
    unit = tokens / np.maximum(np.linalg.norm(tokens, axis=-1, keepdims=True), np.finfo("float32").tiny)
    return unit @ unit.swapaxes(-1, -2)


class PrincipalColours:
    """Principal components of patch tokens as red, green and blue, fitted to [M, D], for any others.

    The sign of a component is that of its largest weight, so that the colours are the same in every run. Of each
    component the middle 98 per cent of the fitted values span 0 to 1.
    """

    def __init__(self, tokens):
        tokens = tokens.astype("float64")
        self.mean = tokens.mean(axis=0)
        _, directions = np.linalg.eigh(np.cov(tokens, rowvar=False))  # in the order of growing variance
        components = directions[:, ::-1][:, :3]
        largest = np.abs(components).argmax(axis=0)
        self.components = components * np.sign(components[largest, range(components.shape[1])])
        self.low, self.high = np.percentile(self.project(tokens), (1, 99), axis=0)

    def project(self, tokens):
        """[..., D] -> [..., 3], in the units of the tokens."""
        return (tokens - self.mean) @ self.components

    def __call__(self, tokens):
        """[..., D] -> colours [..., 3] in [0, 1]."""
        spread = np.where(self.high > self.low, self.high - self.low, 1)
        return ((self.project(tokens) - self.low) / spread).clip(0, 1)
