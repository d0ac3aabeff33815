"""Broken and odd pictures through the scripts: each is named, or skipped and counted, or read.

    python tests/faults/odd_images.py --record odd_images.json

The broken ones are those of tests/helpers/bad_pictures.py. Some are replaced after they have been listed.
"""

import argparse
import io
import os
import re
import shutil
import struct
import sys
import tempfile
import time
from pathlib import Path

import forked_runs
import numpy as np
import small_runs
from bad_pictures import ODD_BUT_READABLE, ZOO, noise
from PIL import Image, PngImagePlugin
from small_runs import USER_ERROR

from util.data import sources

PICTURES = 1500  # readable ones of each class, so that the zoo is less than 1 % of them all
TRAINING = ["--input_size", "8", "--device", "cpu", "--log_dir", "", "--warmup_epochs", "0", "--epochs", "1"]
SCRIPTS = {
    "main_pretrain.py": ["--model", "mae_vit_tiny_patch4", *TRAINING],
    "main_finetune.py": ["--model", "vit_tiny_patch4", "--nb_classes", "2", *TRAINING],
}


def saved(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def pixels(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def rgb(width=20, height=16):
    return Image.fromarray(pixels(height, width, 3))


def with_exif(exif):
    return saved(rgb(), "JPEG", exif=exif)


def orientation(number):
    return (
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">H", number) + b"\0\0\0\0\0\0"
    )


def with_text():
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 100_000, zip=True)
    return saved(rgb(), "PNG", pnginfo=text)


# Odd, but pictures: these must go through.
ODD = {
    **ODD_BUT_READABLE,
    "one_pixel.png": saved(rgb(1, 1), "PNG"),
    "wide.png": saved(rgb(3000, 1), "PNG"),
    "tall.jpg": saved(rgb(1, 3000), "JPEG"),
    "cmyk.jpg": saved(rgb().convert("CMYK"), "JPEG"),
    "gray.jpg": saved(rgb().convert("L"), "JPEG"),
    "progressive.jpg": saved(rgb(), "JPEG", progressive=True),
    "16_bits.png": saved(Image.fromarray(pixels(16, 20, dtype=np.uint16)), "PNG"),
    "one_bit.png": saved(rgb().convert("1"), "PNG"),
    "palette.png": saved(rgb().quantize(7), "PNG", transparency=3),
    "gray_and_alpha.png": saved(Image.fromarray(pixels(16, 20, 2), "LA"), "PNG"),
    "all_transparent.png": saved(Image.new("RGBA", (20, 16)), "PNG"),
    "alpha.webp": saved(Image.fromarray(pixels(16, 20, 4), "RGBA"), "WEBP", lossless=True),
    "film_gif.png": saved(rgb(), "GIF", save_all=True, append_images=[rgb(), rgb()]),
    "film.webp": saved(rgb(), "WEBP", save_all=True, append_images=[rgb(), rgb()]),
    "pages.tif": saved(rgb(), "TIFF", save_all=True, append_images=[rgb(9, 9)]),
    "sideways.jpg": with_exif(orientation(6)),
    "orientation_99.jpg": with_exif(orientation(99)),
    "no_exif.jpg": with_exif(b"Exif\0\0no such thing"),
    "no_profile.jpg": saved(rgb(), "JPEG", icc_profile=b"no profile"),
    "long_comment.png": with_text(),
    "16_bits.ppm": b"P6 2 2 65535\n" + bytes(24),
    "in_letters.ppm": b"P3\n# a comment\n2 1 255\n255 0 0 0 255 0\n",
    "name with spaces, \u56fe and 'quotes'.png": saved(rgb(), "PNG"),
    "-h.png": saved(rgb(), "PNG"),
}


class OddImages:
    """The tests; each yields records with what was lost.

    Args:
        folder: for data and runs.
        script: what the names of the scripts to be tried begin with.
    """

    def __init__(self, folder, script="main_"):
        self.folder, self.script = folder, script
        self.data, self.out = folder / "data", folder / "out"

    def one_at_a_time(self):
        """--bad_images error: each ends the run, named with its reason."""
        for script, split in [(script, split) for script, splits in self._scripts() for split in splits]:
            start, lost = time.monotonic(), []
            for name, (_, reason) in ZOO.items():
                self._write({split: [name]}, readable=8)
                ended = self._run(script, split, [name], "--bad_images", "error", "--batch_size", 4)
                line = (
                    rf"^{script}: error: {re.escape(str(self.data / split / 'a'))}/{re.escape(_escaped(name))} "
                    rf"cannot be read as a picture: .*({reason})"
                )
                if ended.codes != [USER_ERROR] or ended.hung or "Traceback" in ended.said:
                    lost.append(f"{name!a}: ended with {ended.codes}: {ended.said[-300:]!a}")
                elif not re.search(line, ended.said, re.MULTILINE):
                    lost.append(f"{name!a}: not named: {ended.said[-300:]!a}")
            yield {
                "case": f"{script}, {split}, --bad_images error",
                "pictures": len(ZOO),
                "lost": lost,
                "seconds": round(time.monotonic() - start, 1),
            }

    def all_at_once(self):
        """--bad_images skip counts and lists them, and a run with two workers is equal bit for bit."""
        for script, splits in self._scripts():
            start, lost, runs = time.monotonic(), [], []
            for workers in (0, 2):
                self._write({split: [*ZOO, *ODD] for split in splits}, readable=PICTURES)
                ended = self._run(
                    script, splits, ZOO, "--bad_images", "skip", "--batch_size", 64, workers=workers
                )
                if ended.codes != [0] or ended.hung:
                    lost.append(f"{workers} workers: ended with {ended.codes}: {ended.said[-300:]!a}")
                lost += [
                    f"{workers} workers: {line}" for split in splits for line in self._unlisted(split, ended)
                ]
                runs.append(self.folder / f"out{workers}")
                shutil.rmtree(runs[-1], ignore_errors=True)
                shutil.copytree(self.out, runs[-1])
            if not lost:
                lost += small_runs.differences(*runs)
                lost += [
                    f"{split}: the lists differ"
                    for split in splits
                    if len({(run / f"bad_images_{split}.txt").read_bytes() for run in runs}) > 1
                ]
            yield {
                "case": f"{script}, {' and '.join(splits)}, --bad_images skip, 0 and 2 workers",
                "pictures": 2 * len(splits) * (len(ZOO) + len(ODD)),
                "lost": lost,
                "seconds": round(time.monotonic() - start, 1),
            }

    def too_many(self):
        """--bad_images skip: more than 1 % end the run."""
        for script, _ in self._scripts():
            start, lost = time.monotonic(), []
            self._write({"train": ZOO}, readable=8)
            ended = self._run(script, ["train"], ZOO, "--bad_images", "skip", "--batch_size", 4)
            line = rf"^{script}: error: \d+ of {16 + len(ZOO)} train pictures cannot be read, .* 1 % at most, here 1: "
            if ended.codes != [USER_ERROR] or ended.hung or not re.search(line, ended.said, re.MULTILINE):
                lost.append(f"ended with {ended.codes}: {ended.said[-300:]!a}")
            yield {
                "case": f"{script}, more than 1 %",
                "pictures": len(ZOO),
                "lost": lost,
                "seconds": round(time.monotonic() - start, 1),
            }

    def odd(self):
        """--bad_images error: odd ones are read."""
        for script, splits in self._scripts():
            start, lost = time.monotonic(), []
            self._write({split: ODD for split in splits}, readable=4)
            ended = self._run(script, splits, [], "--bad_images", "error", "--batch_size", 1)
            if ended.codes != [0] or ended.hung or "cannot be read" in ended.said:
                lost.append(f"ended with {ended.codes}: {ended.said[-300:]!a}")
            yield {
                "case": f"{script}, {' and '.join(splits)}, odd but readable",
                "pictures": len(splits) * len(ODD),
                "lost": lost,
                "seconds": round(time.monotonic() - start, 1),
            }

    def _scripts(self):
        """(script, [split that it reads, ...]) of those to be tried."""
        return [
            (script, splits)
            for script, splits in (("main_pretrain.py", ["train"]), ("main_finetune.py", ["train", "val"]))
            if script.startswith(self.script)
        ]

    def _write(self, placed, *, readable):
        """DATA/{train,val}/{a,b}: `readable` pictures each, and in `a` of a split the files placed there."""
        shutil.rmtree(self.data, ignore_errors=True)
        shutil.rmtree(self.out, ignore_errors=True)
        for split in ("train", "val"):
            for label in "ab":
                folder = self.data / split / label
                folder.mkdir(parents=True)
                count = readable if split in placed else 4
                for number in range(count):
                    file = folder / f"{number:04d}.png"
                    if number < 10:
                        Image.fromarray(
                            np.random.default_rng(number).integers(0, 256, (9, 9, 3), np.uint8)
                        ).save(file)
                    else:
                        os.link(folder / f"{number % 10:04d}.png", file)
            for name in placed.get(split, []):
                contents = ZOO[name][0] if name in ZOO else ODD[name]
                (self.data / split / "a" / name).write_bytes(
                    contents if isinstance(contents, bytes) else noise("JPEG")
                )

    def _run(self, script, splits, names, *words, workers=0):
        """Change those of `names` that change after the listing, before the first picture is read."""
        splits = [splits] if isinstance(splits, str) else splits

        def prepare():
            listing = sources.open_source

            def open_source(data_path, split, **others):
                images = listing(data_path, split, **others)
                for name in names if split in splits else ():
                    if not isinstance(ZOO[name][0], bytes):
                        ZOO[name][0](self.data / split / "a" / name)
                return images

            sources.open_source = open_source

        return forked_runs.run(
            [
                script,
                *SCRIPTS[script],
                *map(str, words),
                "--num_workers",
                str(workers),
                "--data_path",
                str(self.data),
                "--output_dir",
                str(self.out),
            ],
            said_in=self.folder / "said.txt",
            prepare=prepare,
        )

    def _unlisted(self, split, ended):
        """Return errors in the list of unreadable pictures of a split, as lines."""
        total = 2 * PICTURES + len(ZOO) + len(ODD)
        count = f"{len(ZOO)} of {total} {split} pictures cannot be read and were skipped"
        wrong = [] if count in ended.said else [f"not said: {count}"]
        file = self.out / f"bad_images_{split}.txt"
        if not file.exists():
            return [*wrong, f"no {file.name}"]
        with open(file, encoding="utf-8", newline="\n") as f:
            listed = dict(line.rstrip("\n").split("\t", 1) for line in f)
        expected = {
            f"{self.data / split / 'a'}/{_escaped(name)}": reason for name, (_, reason) in ZOO.items()
        }
        wrong += [f"{split}: not listed: {name!a}" for name in expected.keys() - listed.keys()]
        wrong += [f"{split}: listed: {name!a}" for name in listed.keys() - expected.keys()]
        return wrong + [
            f"{split}: {name!a}: {listed[name]!a}"
            for name in listed.keys() & expected.keys()
            if not re.search(expected[name], listed[name])
        ]


def _escaped(name):
    """As a message spells it."""
    return name.replace("\t", "\\t").replace("\n", "\\n").replace("\udce4", "\\udce4")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tests = ["one_at_a_time", "all_at_once", "too_many", "odd"]
    parser.add_argument("--only", nargs="+", default=tests, choices=tests)
    parser.add_argument("--script", default="main_", help="only scripts whose names begin so")
    parser.add_argument("--record", default="", help="JSON file for the results")
    args = parser.parse_args()
    folder, start, results = Path(tempfile.mkdtemp(prefix="mae_odd_")), time.monotonic(), []
    images = OddImages(folder, args.script)
    for test in args.only:
        for result in getattr(images, test)():
            results.append(result)
            print(
                f"{result['case']}: {result['pictures']} pictures, {result['seconds']} s, "
                f"lost: {small_runs.told(result['lost'])}",
                flush=True,
            )
    lost = [f"{result['case']}: {line}" for result in results for line in result["lost"]]
    totals = {
        "kinds of broken pictures": len(ZOO),
        "kinds of odd ones": len(ODD),
        "pictures met": sum(result["pictures"] for result in results),
        "lost": lost,
        "seconds": round(time.monotonic() - start),
    }
    small_runs.write_record(args.record, {"arguments": vars(args), "totals": totals, "results": results})
    shutil.rmtree(folder)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
