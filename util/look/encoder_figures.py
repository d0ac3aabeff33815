"""Figures of what an encoder attends to, and of how patches and pictures relate in its eyes.

Each is made for one image, images [1, C, height, width] normalised and the same as `picture` [C, height, width] in [0, 1],
and comes with its numbers: (PIL image, {name: array}), and for some a page of HTML.
Shape letters: B blocks, H heads, L patches, h x w of them, D channels.
"""
import math
from pathlib import Path

import numpy as np
import paddle

from util.look import affinity_page, knn, patch_relations
from util.look.attention import attention_maps, entropy, rollout
from util.look.encoder_features import features
from util.look.figures import enlarge, heat, sheet, spotlight, stack

MAP_SIDE = 112          # pixels of a single head's map
ACROSS = 5              # neighbours in a row
COLOURED_TOGETHER = 64  # pictures whose patches decide what the colours mean


def attention(model, images, picture, *, note=""):
    """The class token's attention: over all blocks together (rollout), in the last block, and of every head.

    Args:
        note: about the model, for the heading.
    Numbers: class_token [B, H, 1 + L], from whom it takes how much; mean_of_heads [B, 1 + L, 1 + L], the same for every
    token; rollout [1 + L, 1 + L]; entropy [B], mean over heads and tokens, in nats.
    """
    grid, maps = model.patch_embed.grid_size, list(attention_maps(model, images))
    class_token = np.stack([weights[0, :, 0] for weights in maps])
    rolled, entropies = rollout(maps)[0], [entropy(weights).mean() for weights in maps]
    rows = [(f"head {head}", [(f"block {block}", f"max {taken[1:].max():.2f}", heat(taken[1:].reshape(grid)))
                              for block, taken in enumerate(blocks, 1)])
            for head, blocks in enumerate(class_token.swapaxes(0, 1), 1)]
    spread = f"entropy of all tokens in nats, at most {math.log(class_token.shape[-1]):.2f}; block 1 to " \
             f"{len(maps)}: " + " ".join(f"{value:.2f}" for value in entropies)
    figure = stack([sheet(_overview(rolled[0], class_token[-1], grid, picture, note)),
                    sheet([(spread, []), *rows], least_side=MAP_SIDE)])
    return figure, {"class_token": class_token, "rollout": rolled, "entropy": np.array(entropies),
                    "mean_of_heads": np.stack([weights[0].mean(axis=0) for weights in maps])}


def attention_overview(model, images, picture, *, note=""):
    """The first row of `attention` alone, as rows for util.look.figures.sheet."""
    maps = list(attention_maps(model, images))
    return _overview(rollout(maps)[0, 0], maps[-1][0, :, 0], model.patch_embed.grid_size, picture, note)


def _overview(rolled, last, grid, picture, note):
    """rolled: [1 + L], of the class token; last: [H, 1 + L], the same of each head in the last block."""
    cells = [("picture", "", picture)]
    for title, taken in (("rollout over all blocks", rolled), ("last block, mean of its heads", last.mean(axis=0))):
        patches = taken[1:].reshape(grid)
        cells += [(title, f"{patches.sum():.0%} from patches", _large_heat(patches, picture)),
                  ("", "", spotlight(picture, patches))]
    return [("attention of the class token" + (f" ({note})" if note else ""), cells)]


def affinity(model, images, picture, *, patch):
    """How one patch relates to the others; and a page of HTML on which any patch can be pointed at.

    Args:
        patch: (row, column) from the top left, from 0.
    Numbers: similarity [B, L, L], cosines between the tokens behind each block; attention [B, 1 + L], from whom the
    patch takes how much, the class token first, mean of the heads; patch.
    """
    grid = model.patch_embed.grid_size
    number = patch[0] * grid[1] + patch[1]
    attended = np.stack([weights[0, :, 1 + number].mean(axis=0) for weights in attention_maps(model, images)])
    cosines = np.stack([patch_relations.similarity(features(model, images, ["tokens"], block=block)["tokens"].numpy()[0])
                        for block in range(1, len(model.blocks) + 1)])
    alike = [row[number].reshape(grid) for row in cosines]
    taken = [row[1:].reshape(grid) for row in attended]
    overview = [("picture", "", framed(picture, patch, grid)),
                ("similarity, last block", _span(alike[-1]), _large_heat(_stretched(alike[-1]), picture)),
                ("attention, last block", f"max {taken[-1].max():.2f}", _large_heat(taken[-1], picture))]
    rows = [("similarity to the tokens behind each block",
             [(f"block {block}", _span(values), heat(_stretched(values))) for block, values in enumerate(alike, 1)]),
            ("attention of this patch in each block, mean of the heads",
             [(f"block {block}", f"max {values.max():.2f}", heat(values)) for block, values in enumerate(taken, 1)])]
    title = f"patch in row {patch[0]}, column {patch[1]} (from 0, of {grid[0]} x {grid[1]})"
    figure = stack([sheet([(title, overview)]), sheet(rows, least_side=MAP_SIDE)])
    return (figure, {"similarity": cosines, "attention": attended, "patch": np.array(patch)},
            affinity_page.page(picture, cosines[-1], grid, patch))


class PrincipalColours:
    """The three main directions of the patch tokens as red, green and blue, the same for every picture.

    Args:
        batches: yields (place, images [1, C, height, width]) of the pictures that decide what the colours mean.
    """

    def __init__(self, model, batches):
        self.model = model
        self.colours = patch_relations.PrincipalColours(np.concatenate(
            [self._tokens(paddle.to_tensor(images)) for _, images in batches]))

    def _tokens(self, images):
        return features(self.model, images, ["tokens"])["tokens"].numpy()[0]

    def __call__(self, images, picture):
        """Numbers: colours [h, w, 3] in [0, 1]."""
        colours = self.colours(self._tokens(images)).reshape([*self.model.patch_embed.grid_size, 3])
        painted = enlarge(colours.transpose(2, 0, 1), picture.shape[1:])
        return sheet([("main directions of the patch tokens as red, green and blue",
                       [("picture", "", picture), ("patches", "like colours: like tokens", painted)])]), {
                           "colours": colours}


class Neighbours:
    """The pictures of a gallery that are nearest to one: by the cosine of their mean patch tokens.

    Args:
        names: [M] of the gallery's pictures; means: float32 [M, D], their mean patch tokens, as `mean_token` gives them.
        picture_of: from the place of one to [C, height, width] in [0, 1]; k: how many to show.
    """

    def __init__(self, model, names, means, picture_of, k):
        self.model, self.names, self.means, self.picture_of, self.k = model, names, means, picture_of, k

    def __call__(self, images, picture):
        """Numbers: names [k] and cosine [k], the nearest first."""
        places, cosines = (found[0] for found in knn.nearest(self.means, mean_token(self.model, images), self.k))
        cells = [(f"{number}. {cosine:.3f}", Path(self.names[place]).name, self.picture_of(place))
                 for number, (place, cosine) in enumerate(zip(places.tolist(), cosines.tolist(), strict=True), 1)]
        rows = [("", cells[start:start + ACROSS]) for start in range(0, len(cells), ACROSS)]
        figure = sheet([("nearest neighbours by the cosine of their mean patch tokens", [("picture", "", picture)]),
                        *rows])
        return figure, {"names": np.array([self.names[place] for place in places]), "cosine": cosines}


def mean_token(model, images):
    """Mean patch tokens, float32 [N, D]."""
    return features(model, images, ["mean"])["mean"].numpy()


def _large_heat(values, picture):
    return enlarge(heat(values), picture.shape[1:])


def _span(values):
    return f"cosine {values.min():.2f} to {values.max():.2f}"


def _stretched(values):
    return values - values.min()


def framed(picture, patch, grid):
    """The picture with a red frame around a patch."""
    picture = (np.repeat(picture, 3, axis=0) if len(picture) == 1 else picture[:3]).copy()
    height, width = picture.shape[1] // grid[0], picture.shape[2] // grid[1]
    top, left = patch[0] * height, patch[1] * width
    area = picture[:, top:top + height, left:left + width]
    border = np.ones(area.shape[1:], bool)
    thick = max(1, height // 8)
    border[thick:-thick, thick:-thick] = False
    area[:, border] = np.array([[1.0], [0.0], [0.0]])
    return picture
