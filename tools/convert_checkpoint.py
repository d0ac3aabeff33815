"""Convert weights between PyTorch, Hugging Face, other Paddle ports and this project, or describe a file.

    python tools/convert_checkpoint.py mae_pretrain_vit_base.pth mae_pretrain_vit_base.pd
    python tools/convert_checkpoint.py output_dir/checkpoint-best.pd vit_base.pth
    python tools/convert_checkpoint.py --info model.safetensors

PyTorch and transformers are not needed. The suffix of the second file chooses its format: .pd, .pdparams,
.safetensors, .npz or .pth. A file that cannot be converted gives an error and exit code 2; then nothing is
written.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.compute import cpu_runtime

cpu_runtime.prepare()  # before Paddle is imported

import numpy as np

import models_mae
import models_vit
from util.options import flags
from util.weights import architecture, checkpoint, formats, name_maps

FORMATS = {
    "torch": "PyTorch (zip archive)",
    "torch_legacy": "PyTorch (the format before 1.6)",
    "paddle": "Paddle (pickle)",
    "safetensors": "safetensors",
    "npz": "NumPy archive",
}

# First digits of the MD5 sums that the official README prints.
PUBLISHED = {
    "8cad7c": "mae_pretrain_vit_base.pth",
    "b8b06e": "mae_pretrain_vit_large.pth",
    "9bdbb0": "mae_pretrain_vit_huge.pth",
    "1b25e9": "mae_finetuned_vit_base.pth",
    "51f550": "mae_finetuned_vit_large.pth",
    "2541f2": "mae_finetuned_vit_huge.pth",
}

# Names and layout of each format, unless --to sets others.
DEFAULT_TARGET = {
    ".pd": "paddle",
    ".pdparams": "paddle",
    ".npz": "paddle",
    ".safetensors": "hf",
    ".pth": "official",
}

KEPT_BESIDE = ("architecture", "normalization", "classes")  # entries of a checkpoint that a .pd file keeps


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="?", help="file to read")
    parser.add_argument("destination", nargs="?", help=f"file to write; one of {', '.join(formats.SUFFIXES)}")
    parser.add_argument("--info", metavar="FILE", help="describe a file and write nothing")
    defaults = ", ".join(f"{suffix} {target}" for suffix, target in DEFAULT_TARGET.items())
    parser.add_argument(
        "--to",
        choices=name_maps.TARGETS,
        help=f"names and layout of the second file (default: by its suffix: {defaults})",
    )
    parser.add_argument("--entry", help="entry of a file with several models, such as model_ema")
    parser.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out the names that match, such as 'pooler.*'; may be repeated",
    )
    parser.add_argument("--force", action="store_true", help="replace a destination that exists")
    flags.add_trust(parser)
    return parser


@dataclass(frozen=True)
class Source:
    """A file with its weights renamed, and their differences from a model of the same sizes.

    Args:
        renamed: the weights under our names, see name_maps.to_ours.
        weights: {our name: array}, of the names that the model has, in its order.
        size: see architecture.sizes.
        missing, unexpected: names; misshaped: (name, found shape, expected shape).
        described: {"name": ..., keyword arguments of the model}, None if no model has these sizes.
    """

    path: str
    file: formats.WeightFile
    renamed: name_maps.Renamed
    weights: dict[str, np.ndarray]
    size: dict[str, Any]
    missing: list[str]
    unexpected: list[str]
    misshaped: list[tuple]
    described: dict[str, Any] | None

    @property
    def role(self) -> str:
        """Role of the weights, a key of checkpoint.ROLES."""
        return checkpoint.role(self.renamed.weights)


def open_source(
    path: str, *, entry: str | None = None, drop: Sequence[str] = (), trusted: bool = False
) -> Source:
    """Read a file and compare its weights with a model of the same sizes. Raises ValueError.

    Args:
        entry, trusted: see formats.read_weights.
        drop: patterns of names to leave out.
    """
    file = formats.read_weights(path, entry=entry, trusted=trusted)
    renamed = name_maps.to_ours(file.weights, drop=drop)
    size = architecture.sizes(renamed.weights)
    expected = architecture.shapes(size)
    missing, misplaced, misshaped = architecture.differences(renamed.weights, expected)
    models = models_mae.MODELS if checkpoint.role(renamed.weights) == "mae" else models_vit.MODELS
    weights = {name: renamed.weights[name] for name in expected if name in renamed.weights}
    return Source(
        path,
        file,
        renamed,
        weights,
        size,
        missing,
        [*renamed.unknown, *misplaced],
        misshaped,
        architecture.described(size, models),
    )


def check_source(source: Source) -> None:
    """Raise ValueError unless the weights are exactly those of a model."""
    if source.missing or source.unexpected or source.misshaped:
        advice = ["--drop PATTERN leaves unexpected ones out"] if source.unexpected else []
        raise ValueError(
            "\n".join(
                [
                    f"{source.path}: its weights are not exactly those of a model:",
                    *_differences(source),
                    *advice,
                ]
            )
        )


def description(source: Source) -> Iterator[str]:
    """Yield lines that describe a file."""
    md5, renamed, file = formats.md5(source.path), source.renamed, source.file
    known = PUBLISHED.get(md5[:6])
    yield f"{source.path}"
    yield (
        f"  file        {FORMATS[file.file_format]}, {Path(source.path).stat().st_size:,} bytes, MD5 {md5}"
        + (f", as published for {known}" if known else "")
    )
    if file.entry:
        yield f"  entry       '{file.entry}'; beside it: {', '.join(map(str, file.beside)) or 'nothing else'}"
    yield (
        f"  names       {renamed.family}, {renamed.layout} layout"
        + (f", after the prefix '{renamed.prefix}'" if renamed.prefix else "")
    )
    num_values = sum(value.size for value in source.weights.values())
    stored_as = ", ".join(f"{count} {name}" for name, count in sorted(file.stored_as.items()))
    yield (
        f"  weights     {len(source.weights)} tensors with {num_values:,} values; in the file {stored_as}"
        + ("" if set(file.stored_as) <= {"float32", "int64"} else "; read as float32")
    )
    yield f"  model       {checkpoint.ROLES[source.role].description}: {_model_line(source)}"
    if renamed.dropped:
        yield f"  dropped     {len(renamed.dropped)}: {', '.join(renamed.dropped)}"
    if renamed.counters:
        yield f"  not needed  {len(renamed.counters)}: {', '.join(renamed.counters)}"
    yield from _differences(source)
    yield f"  SHA256      {formats.checksum(source.weights)} (of the weights; the same in every format)"


def _differences(source: Source) -> list[str]:
    misshaped = [
        f"{name} {list(found)} instead of {list(wanted)}" for name, found, wanted in source.misshaped
    ]
    return [
        f"  {title:12}{len(names)}" + (f": {', '.join(names)}" if names else "")
        for title, names in [
            ("missing", source.missing),
            ("unexpected", source.unexpected),
            ("mis-shaped", misshaped),
        ]
    ]


def _model_line(source: Source) -> str:
    size = source.size
    if source.described is None:
        return (
            f"none of the sizes of this project (width {size['embed_dim']}, depth {size['depth']}, patch "
            f"{size['patch_size']}, MLP {size['mlp_dim']}"
            + (
                f", decoder width {size['decoder_embed_dim']}, depth {size['decoder_depth']}"
                if "decoder_embed_dim" in size
                else ""
            )
            + ")"
        )
    more = {name: value for name, value in source.described.items() if name != "name"}
    return source.described["name"] + "".join(f", {name} {value}" for name, value in more.items())


def check_destination(path: str, *, force: bool) -> None:
    """Raise ValueError if `path` cannot be written, or exists and `force` is not set."""
    formats.check_suffix(path)
    if Path(path).exists() and not force:
        raise ValueError(f"{path}: already exists; pass --force to replace it")
    if not Path(path).parent.is_dir():
        raise ValueError(f"{path}: there is no folder {Path(path).parent}; create it")


def convert(source: Source, path: str, *, target: str) -> list[str]:
    """Write the weights to `path` under the names of `target`, one of name_maps.TARGETS.

    Returns lines about it.
    """
    weights, homeless = name_maps.from_ours(source.weights, target)
    beside = {}
    if formats.check_suffix(path) == ".pd":
        beside = {name: source.file.beside[name] for name in KEPT_BESIDE if name in source.file.beside}
        if source.described and source.role != "encoder":
            beside.setdefault("architecture", source.described)
    formats.write_weights(path, weights, tensor_format="pd" if target == "paddle" else "pt", beside=beside)
    lines = [
        f"{path}",
        f"  written     {len(weights)} tensors in {Path(path).stat().st_size:,} bytes, "
        f"names: {target}" + (f"; beside them: {', '.join(beside)}" if beside else ""),
    ]
    gone = [str(name) for name in source.file.beside if name not in beside]
    if gone:
        lines.append(f"  left out    {', '.join(gone)}")
    if homeless:
        groups = dict.fromkeys(name.split(".")[0] for name in homeless)
        lines.append(
            f"  left out    {len(homeless)} tensors for which {target} has no place: {', '.join(groups)}"
        )
    return lines


def run(args: argparse.Namespace) -> None:
    """Describe or convert, as the command line says. Raises ValueError if that is not possible."""
    if bool(args.info) == bool(args.source and args.destination):
        raise ValueError("expected either SOURCE and DESTINATION, or --info FILE")
    path, destination = args.info or args.source, args.destination
    if destination:
        check_destination(destination, force=args.force)
    try:
        source = open_source(path, entry=args.entry, drop=args.drop, trusted=args.trust_checkpoint)
        if destination:
            check_source(source)
        lines = [*description(source)]
        if destination:
            lines += convert(
                source, destination, target=args.to or DEFAULT_TARGET[formats.check_suffix(destination)]
            )
    except name_maps.WeightNamesError as error:
        raise ValueError(f"{path}: {error}") from error
    print("\n".join(lines))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = get_args_parser()
    args = parser.parse_args(argv)
    try:
        run(args)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
