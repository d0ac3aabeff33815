"""Figures of an encoder: its attention, and the similarity of patches and of pictures.

Each figure is made for one image, images [1, C, height, width], normalised, and the same image as `picture`
[C, height, width] in [0, 1]. It comes with its numbers: (PIL image, {name: array}).
`affinity` adds an HTML page.

Shape letters: B blocks, H heads, L patches, h x w of them, D channels.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import paddle
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from util.look import knn
from util.look.attention import attention_maps, entropy, rollout
from util.look.encoder_features import extract_features
from util.look.figures import Row, enlarge, heat, sheet, spotlight, stack, to_image

MAP_SIDE = 112  # pixels of a single head's map
ACROSS = 5  # neighbours in a row
COLOURED_TOGETHER = 64  # number of pictures whose patches define the colours

Figure = tuple[Image.Image, dict[str, np.ndarray]]
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
)


# ---- attention


def attention(
    model: paddle.nn.Layer, images: paddle.Tensor, picture: np.ndarray, *, note: str = ""
) -> Figure:
    """Draw the class token's attention: its rollout over all blocks, the last block, and every head.

    Args:
        note: remark about the model, for the heading.

    Returns:
        Figure and numbers: class_token [B, H, 1 + L], the attention of the class token to each token;
            mean_of_heads
        [B, 1 + L, 1 + L], of every token; rollout [1 + L, 1 + L]; entropy [B], mean over heads and tokens, in
        nats.
    """
    grid, maps = model.patch_embed.grid_size, list(attention_maps(model, images))
    class_token = np.stack([weights[0, :, 0] for weights in maps])
    rolled, entropies = rollout(maps)[0], [entropy(weights).mean() for weights in maps]
    rows: list[Row] = [
        (
            f"head {head}",
            [
                (f"block {block}", f"max {weights[1:].max():.2f}", heat(weights[1:].reshape(grid)))
                for block, weights in enumerate(blocks, 1)
            ],
        )
        for head, blocks in enumerate(class_token.swapaxes(0, 1), 1)
    ]
    spread = (
        f"entropy of all tokens in nats, at most {math.log(class_token.shape[-1]):.2f}; "
        f"block 1 to {len(maps)}: " + " ".join(f"{value:.2f}" for value in entropies)
    )
    figure = stack(
        [
            sheet(_overview(rolled[0], class_token[-1], grid, picture, note)),
            sheet([(spread, []), *rows], least_side=MAP_SIDE),
        ]
    )
    return figure, {
        "class_token": class_token,
        "rollout": rolled,
        "entropy": np.array(entropies),
        "mean_of_heads": np.stack([weights[0].mean(axis=0) for weights in maps]),
    }


def attention_overview(
    model: paddle.nn.Layer, images: paddle.Tensor, picture: np.ndarray, *, note: str = ""
) -> list[Row]:
    """Draw the first row of `attention` alone, as rows for util.look.figures.sheet."""
    maps = list(attention_maps(model, images))
    return _overview(rollout(maps)[0, 0], maps[-1][0, :, 0], model.patch_embed.grid_size, picture, note)


def _overview(
    rolled: np.ndarray, last: np.ndarray, grid: tuple[int, int], picture: np.ndarray, note: str
) -> list[Row]:
    """Draw the class token's rollout [1 + L] and its attention in the last block [H, 1 + L]."""
    cells = [("picture", "", picture)]
    for title, weights in (
        ("rollout over all blocks", rolled),
        ("last block, mean of its heads", last.mean(axis=0)),
    ):
        patches = weights[1:].reshape(grid)
        cells += [
            (title, f"{patches.sum():.0%} from patches", _large_heat(patches, picture)),
            ("", "", spotlight(picture, patches)),
        ]
    return [("attention of the class token" + (f" ({note})" if note else ""), cells)]


# ---- similarity of patches


def affinity(
    model: paddle.nn.Layer, images: paddle.Tensor, picture: np.ndarray, *, patch: tuple[int, int]
) -> tuple[Image.Image, dict[str, np.ndarray], str]:
    """Draw the similarity of one patch to all others, with an HTML page on which any patch can be chosen.

    Args:
        patch: (row, column) from the top left, from 0.

    Returns:
        Figure, numbers and page. Numbers: similarity [B, L, L], cosines between the tokens after each block;
        attention [B, 1 + L], of the patch to each token, the class token first, mean of the heads; patch.
    """
    grid = model.patch_embed.grid_size
    number = patch[0] * grid[1] + patch[1]
    attended = np.stack([weights[0, :, 1 + number].mean(axis=0) for weights in attention_maps(model, images)])
    cosines = np.stack(
        [
            similarity(extract_features(model, images, ["tokens"], block=block)["tokens"].numpy()[0])
            for block in range(1, len(model.blocks) + 1)
        ]
    )
    alike = [row[number].reshape(grid) for row in cosines]
    weights = [row[1:].reshape(grid) for row in attended]
    overview = [
        ("picture", "", framed(picture, patch, grid)),
        ("similarity, last block", _span(alike[-1]), _large_heat(_stretched(alike[-1]), picture)),
        ("attention, last block", f"max {weights[-1].max():.2f}", _large_heat(weights[-1], picture)),
    ]
    rows = [
        (
            "similarity to the tokens after each block",
            [
                (f"block {block}", _span(values), heat(_stretched(values)))
                for block, values in enumerate(alike, 1)
            ],
        ),
        (
            "attention of this patch in each block, mean of the heads",
            [
                (f"block {block}", f"max {values.max():.2f}", heat(values))
                for block, values in enumerate(weights, 1)
            ],
        ),
    ]
    title = f"patch in row {patch[0]}, column {patch[1]} (from 0, of {grid[0]} x {grid[1]})"
    figure = stack([sheet([(title, overview)]), sheet(rows, least_side=MAP_SIDE)])
    return (
        figure,
        {"similarity": cosines, "attention": attended, "patch": np.array(patch)},
        _affinity_page(picture, cosines[-1], grid, patch),
    )


def similarity(tokens: np.ndarray) -> np.ndarray:
    """Compute cosines between all patch tokens of a picture: [..., L, D] -> [..., L, L]."""
    unit = tokens / np.maximum(np.linalg.norm(tokens, axis=-1, keepdims=True), np.finfo("float32").tiny)
    return unit @ unit.swapaxes(-1, -2)


def _affinity_page(
    picture: np.ndarray, cosines: np.ndarray, grid: tuple[int, int], patch: tuple[int, int]
) -> str:
    """Write one HTML file that holds the picture and the cosines [L, L], rounded to 255 steps."""
    png = io.BytesIO()
    to_image(picture).save(png, format="PNG")
    least, most = float(cosines.min()), float(cosines.max())
    steps = ((cosines - least) / max(most - least, 1e-6) * 255).round().astype("uint8")
    colours = (heat(np.arange(256)[None] / 255, 1.0)[:, 0].T * 255).round().astype(int).tolist()
    return _TEMPLATES.get_template("affinity.html.j2").render(
        picture=base64.b64encode(png.getvalue()).decode(),
        cosines=base64.b64encode(steps.tobytes()).decode(),
        rows=grid[0],
        columns=grid[1],
        row=int(patch[0]),
        column=int(patch[1]),
        colours=colours,
        least=round(least, 4),
        most=round(most, 4),
    )


# ---- principal components


class PrincipalComponents:
    """First three principal components of patch tokens, scaled to colours.

    The sign of a component is that of its largest weight, so that every run has the same colours. The 1st to
    the 99th percentile of the fitted tokens span 0 to 1.
    """

    def __init__(self, tokens: np.ndarray) -> None:
        """Fit to tokens [M, D]."""
        tokens = tokens.astype("float64")
        self.mean = tokens.mean(axis=0)
        _, directions = np.linalg.eigh(np.cov(tokens, rowvar=False))  # in ascending order of variance
        components = directions[:, ::-1][:, :3]
        largest = np.abs(components).argmax(axis=0)
        self.components = components * np.sign(components[largest, range(components.shape[1])])
        self.low, self.high = np.percentile(self.project(tokens), (1, 99), axis=0)

    def project(self, tokens: np.ndarray) -> np.ndarray:
        """Project tokens onto the components: [..., D] -> [..., 3]."""
        return (tokens - self.mean) @ self.components

    def colours(self, tokens: np.ndarray) -> np.ndarray:
        """Convert tokens to colours: [..., D] -> red, green and blue in [0, 1], [..., 3]."""
        spread = np.where(self.high > self.low, self.high - self.low, 1)
        return ((self.project(tokens) - self.low) / spread).clip(0, 1)


class PrincipalColours:
    """Figure of the patch tokens' principal components as red, green and blue, the same for all pictures."""

    def __init__(self, model: paddle.nn.Layer, batches: Iterable[tuple[int, np.ndarray]]) -> None:
        """Fit the components.

        Args:
            batches: yields (place, images [1, C, height, width]) of the pictures that define the colours.
        """
        self.model = model
        self.components = PrincipalComponents(
            np.concatenate([self._tokens(paddle.to_tensor(images)) for _, images in batches])
        )

    def _tokens(self, images: paddle.Tensor) -> np.ndarray:
        return extract_features(self.model, images, ["tokens"])["tokens"].numpy()[0]

    def __call__(self, images: paddle.Tensor, picture: np.ndarray) -> Figure:
        """Draw a picture; numbers: colours [h, w, 3] in [0, 1]."""
        colours = self.components.colours(self._tokens(images)).reshape(
            [*self.model.patch_embed.grid_size, 3]
        )
        painted = enlarge(colours.transpose(2, 0, 1), picture.shape[1:])
        figure = sheet(
            [
                (
                    "main directions of the patch tokens as red, green and blue",
                    [("picture", "", picture), ("patches", "like colours: like tokens", painted)],
                )
            ]
        )
        return figure, {"colours": colours}


# ---- nearest neighbours


class Neighbours:
    """Figure of the nearest pictures in a gallery, by the cosine of their mean patch tokens."""

    def __init__(
        self,
        model: paddle.nn.Layer,
        names: Sequence[str],
        means: np.ndarray,
        picture_of: Callable[[int], np.ndarray],
        k: int,
    ) -> None:
        """Keep the gallery.

        Args:
            names: [M]; means: float32 [M, D], as `mean_token` computes them.
            picture_of: gives picture i of the gallery, [C, height, width] in [0, 1].
            k: number of neighbours to show.
        """
        self.model, self.names, self.means, self.picture_of, self.k = model, names, means, picture_of, k

    def __call__(self, images: paddle.Tensor, picture: np.ndarray) -> Figure:
        """Draw the neighbours; numbers: names [k] and cosine [k], the nearest first."""
        places, cosines = (
            found[0] for found in knn.nearest(self.means, mean_token(self.model, images), self.k)
        )
        cells = [
            (f"{number}. {cosine:.3f}", Path(self.names[place]).name, self.picture_of(place))
            for number, (place, cosine) in enumerate(zip(places.tolist(), cosines.tolist(), strict=True), 1)
        ]
        rows = [("", cells[start : start + ACROSS]) for start in range(0, len(cells), ACROSS)]
        figure = sheet(
            [
                ("nearest neighbours by the cosine of their mean patch tokens", [("picture", "", picture)]),
                *rows,
            ]
        )
        return figure, {"names": np.array([self.names[place] for place in places]), "cosine": cosines}


def mean_token(model: paddle.nn.Layer, images: paddle.Tensor) -> np.ndarray:
    """Compute mean patch tokens, float32 [N, D]."""
    return extract_features(model, images, ["mean"])["mean"].numpy()


# ---- parts of figures


def framed(picture: np.ndarray, patch: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """Draw a red frame around a patch (row, column) of a picture; returns [3, height, width]."""
    picture = (np.repeat(picture, 3, axis=0) if len(picture) == 1 else picture[:3]).copy()
    height, width = picture.shape[1] // grid[0], picture.shape[2] // grid[1]
    top, left = patch[0] * height, patch[1] * width
    area = picture[:, top : top + height, left : left + width]
    border = np.ones(area.shape[1:], bool)
    thick = max(1, height // 8)
    border[thick:-thick, thick:-thick] = False
    area[:, border] = np.array([[1.0], [0.0], [0.0]])
    return picture


def _large_heat(values: np.ndarray, picture: np.ndarray) -> np.ndarray:
    return enlarge(heat(values), picture.shape[1:])


def _span(values: np.ndarray) -> str:
    return f"cosine {values.min():.2f} to {values.max():.2f}"


def _stretched(values: np.ndarray) -> np.ndarray:
    return values - values.min()
