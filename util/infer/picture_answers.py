"""Answers about many pictures, written while they are computed: classes, features or reconstructions.

Each function returns the number of pictures that could not be read. Their names go to
standard error. If only one picture was given, its error is raised instead.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from util.data.masking import Mask, noise_of_picture
from util.data.picture_paths import Batches, Pictures, answered
from util.images import decode
from util.images.preprocess import Preprocess
from util.infer import answers
from util.infer.classifier import ImageClassifier
from util.infer.engine import Predictor
from util.infer.model_info import preprocess_of
from util.look import feature_file
from util.system import console
from util.system.atomic_file import atomic_write

if TYPE_CHECKING:
    from paddle import nn

    from util.infer.model_spec import ModelSpec

# (places [N], images [N, C, height, width]) -> N answers
Compute = Callable[[Sequence[int], np.ndarray], Sequence[Any]]


def write_classes(pictures: Pictures, model: ImageClassifier, *, form: str, target: str = "") -> int:
    """Write the classes of each picture to the file `target`, or to standard output.

    Args:
        form: key of answers.FORMATS.
    """

    def compute(places, images):
        probabilities = model.probabilities(images)
        return [
            [(int(label), model.names[label], float(row[label])) for label in labels]
            for row, labels in zip(probabilities, model.labels(probabilities), strict=True)
        ]

    alone = pictures.alone and form == "text"  # other forms have an entry for each picture
    batches = Batches(pictures, model.prepare, batch_size=model.batch_size)
    with open_text(target) as stream:
        writer: answers.AnswerWriter = (
            answers.Text(stream, alone=alone) if form == "text" else answers.FORMATS[form](stream)
        )

        def write(place, classes):
            writer.answer(pictures[place], classes)
            stream.flush()

        count = _answer_all(batches, compute, write, writer.unreadable, alone=alone, bar=bool(target))
        writer.end()
    return count


def write_features(
    pictures: Pictures,
    predictor: Predictor,
    target: str,
    *,
    checkpoint: str,
    kinds: Sequence[str] | None = None,
    batch_size: int = 8,
) -> int:
    """Write an .npz file of features, as tools/extract_features.py does.

    Args:
        checkpoint: path of the model.
        kinds: names from feature_file.KINDS; None or empty for all outputs of the model.
    """
    info, preprocess = predictor.info, preprocess_of(predictor.info)
    if info["task"] != "features":
        raise ValueError(
            f"--features: {checkpoint} has {', '.join(info['outputs'])}; export its checkpoint "
            "with tools/export.py --encoder"
        )
    kinds = [kind for kind in feature_file.KINDS if kind in (kinds or info["outputs"])]
    kept: list[int] = []

    def compute(places, images):
        found = predictor(images)
        return [{kind: found[kind][number : number + 1] for kind in kinds} for number in range(len(places))]

    with feature_file.Rows(
        os.path.realpath(target), {kind: info["outputs"][kind][1:] for kind in kinds}
    ) as rows:

        def write(place, found):
            rows.append(found)
            kept.append(place)

        count = _answer_all(
            Batches(pictures, preprocess, batch_size=batch_size),
            compute,
            write,
            alone=pictures.alone,
            bar=True,
        )
        if not kept:
            raise ValueError(
                f"--img_path: none of the {len(pictures)} pictures can be read; nothing was written"
            )
        rows.write(
            {
                "names": [pictures[place] for place in kept],
                "block": info["block"],
                "norm": info["norm"],
                "checkpoint": checkpoint,
                "weights_sha256": info["source"]["weights_sha256"],
                "model": info["model"]["name"],
                "img_size": preprocess.img_size,
                "image_mean": preprocess.mean,
                "image_std": preprocess.std,
                "image_backend": "pillow",
                "precision": predictor.precision,
                "git_revision": info.get("versions", {}).get("git_revision", ""),
            }
        )
    print(f"wrote {target}: {', '.join(kinds)} of {len(kept)} pictures")
    return count


@dataclass(frozen=True)
class Reconstructor:
    """Masked autoencoder that draws reconstructions of pictures.

    Args:
        autocast: context of forward passes, see util.compute.amp.
        mask, seed: how masks are drawn. The mask of a picture depends on the seed and on its file name alone.
        channels: channels to show, counted from 0; None for the default ones.
    """

    spec: ModelSpec
    model: nn.Layer
    autocast: Callable[[], contextlib.AbstractContextManager]
    mask: Mask
    seed: int = 0
    channels: Sequence[int] | None = None

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing of the pictures."""
        embed = self.model.patch_embed
        return Preprocess(embed.img_size, embed.in_chans, **self.spec.normalization)

    def __call__(self, names: Sequence[str], images: np.ndarray) -> list[Any]:
        """Draw one PIL image for each of the normalised images [N, C, height, width]."""
        import paddle

        from util.look import reconstruction

        noise = np.stack([noise_of_picture(self.mask, self.seed, name) for name in names])
        with self.autocast():
            drawn = reconstruction.reconstruct(
                self.model, paddle.to_tensor(images), paddle.to_tensor(noise), self.mask.visible
            )
        return [
            reconstruction.panel(
                image,
                {name: values[number] for name, values in drawn.items()},
                **self.spec.normalization,
                norm_pix_loss=self.model.norm_pix_loss,
                channels=self.channels,
            )
            for number, image in enumerate(images)
        ]


def write_reconstructions(
    pictures: Pictures, draw: Reconstructor, output_dir: str, *, batch_size: int = 8
) -> int:
    """Write <picture>_reconstruction.png for each picture. Subfolders are kept."""
    files = pictures.outputs(output_dir, "_reconstruction.png")

    def write(place, panel):
        files[place].parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(files[place]) as f:
            panel.save(f, format="PNG")
        print(f"wrote {files[place]}", flush=True)

    return _answer_all(
        Batches(pictures, draw.preprocess, batch_size=batch_size),
        lambda places, images: draw([pictures[place] for place in places], images),
        write,
        alone=pictures.alone,
    )


def _answer_all(
    batches: Batches,
    compute: Compute,
    write: Callable[[int, Any], None],
    unreadable: Callable[[str, str], None] = lambda name, reason: None,
    *,
    alone: bool,
    bar: bool = False,
) -> int:
    """Call write(place, answer) for each picture. Report unreadable pictures, and return their number.

    Args:
        unreadable: called with the name and the reason for each of them.
        alone: whether there is only one picture; if so, UnreadableImage is raised.
        bar: show a progress bar even if standard output is a terminal.
    """
    pictures, count = batches.pictures, 0
    source: Iterable[Any] = batches
    if bar or not sys.stdout.isatty():  # a bar would break up answers printed on the same terminal
        source = console.track(batches, "pictures", report, bar=sys.stderr.isatty())
    for place, answer in answered(source, compute):
        if not isinstance(answer, decode.UnreadableImage):
            write(place, answer)
        elif alone:
            raise answer
        else:
            count += 1
            unreadable(pictures[place], answer.reason)
            report(f"main_infer.py: error: {answer}")
    return count


def report(line: str) -> None:
    """Print a line on standard error."""
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def open_text(path: str) -> Iterator[TextIO]:
    """Open standard output (for ""), a device or pipe, or a file that appears once it is complete."""
    if not path or (os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(1))):  # /dev/stdout
        yield sys.stdout
        sys.stdout.flush()
        return
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as text:
            yield text
        return
    with atomic_write(os.path.realpath(path)) as f:  # a link stays a link
        # File names that are not UTF-8 are written unchanged.
        text = io.TextIOWrapper(
            f, encoding="utf-8", errors="surrogateescape", newline="\n", write_through=True
        )
        try:
            yield text
            text.flush()
        finally:
            text.detach()


def check_target(target: str, *, reads: Sequence[str | Path], features: bool) -> None:
    """Raise ValueError if --save_to cannot be written, or would overwrite one of the files that are read.

    Args:
        reads: paths of the model, of the class names and of the pictures; the model may be a folder.
        features: whether an .npz file is written.
    """
    path = Path(target)
    resolved = Path(os.path.realpath(path))
    own = {os.path.realpath(read) for read in reads}
    if str(resolved) in own or os.path.realpath(reads[0]) == str(resolved.parent):
        raise ValueError(f"--save_to {target}: is one of the input files; name another")
    if path.is_dir() or not resolved.parent.is_dir():
        raise ValueError(f"--save_to {target}: expected the name of a file in a folder that exists")
    if features and path.exists() and not path.is_file():
        raise ValueError(f"--save_to {target}: features need a regular file, but this is a device or a pipe")
    if not features and path.suffix.lower() == ".npz":
        raise ValueError(
            f"--save_to {target}: .npz files hold --features; name a .txt, .csv, .json or .jsonl file"
        )
