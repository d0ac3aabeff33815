"""Masks of one's own: which patches are hidden, from a file, and as the noise that a masked autoencoder takes."""
import zipfile
import zlib
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from util.images import decode
from util.system.keyed_random import WATCHED, keyed_generator

# What np.load raises for a damaged file, or one of the other kind.
UNREADABLE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, zipfile.BadZipFile,
              zlib.error)


def read(path, grid):
    """[h, w] bool, True = hidden, of `grid` (h, w).

    An .npy file, or the entry "mask" of an .npz, has 0 and 1 and the shape [h, w]. A picture may have any size; a patch
    is hidden where it is white or nearer to white than to black, in the mean. ValueError for anything else.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".npy", ".npz"):
        try:
            picture = decode.decode(path, in_chans=1)
        except decode.UnreadableImage as error:
            raise ValueError(f"--mask_file {error} Expected is a picture (white = hidden), or an .npy or .npz file "
                             f"with 0 and 1 of the shape {list(grid)}") from error
        shares = picture.resize((grid[1], grid[0]), Image.Resampling.BOX)
        mask = np.asarray(shares) >= 128
    else:
        try:
            mask = np.load(path, allow_pickle=False)
            if suffix == ".npz":
                with mask as entries:
                    mask = entries["mask"]
            mask = np.asarray(mask)
            if mask.dtype.kind not in "biuf":
                raise ValueError(f"it holds {mask.dtype}")
        except UNREADABLE as error:
            raise ValueError(f"--mask_file {path}: cannot be read ({error})") from error
        if mask.shape != tuple(grid) or not np.isin(mask, (0, 1)).all():
            raise ValueError(f"--mask_file {path}: expected 0 and 1 (1 = hidden) of the shape {list(grid)}, one a patch "
                             f"of this model, got {mask.dtype} {list(mask.shape)}")
        mask = mask > 0
    if mask.all() or not mask.any():
        raise ValueError(f"--mask_file {path}: hides {'every' if mask.all() else 'no'} patch; at least one must be "
                         "visible and one hidden")
    return mask


def noise_for(seed, path, draw_noise):
    """The noise [L] that draws the mask of a picture: by its file's name, whatever other pictures there are.

    Args:
        draw_noise: (rng) -> noise, see util.data.mask_modes.
    """
    name = PurePath(path).name.encode(errors="surrogateescape")
    return draw_noise(keyed_generator(seed, WATCHED, zlib.crc32(name), 1))


def as_noise(mask):
    """(noise [L] float32, mask ratio) that make a masked autoencoder hide just this [h, w]."""
    noise = mask.flatten().astype("float32")  # visible ones first
    visible = int((~mask).sum())
    return noise, 1 - (visible + 0.5) / mask.size  # half a patch more: the model rounds down
