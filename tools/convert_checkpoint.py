"""Convert weights between PyTorch, Hugging Face, other Paddle ports and this project; or say what a file holds.

    python tools/convert_checkpoint.py mae_pretrain_vit_base.pth mae_pretrain_vit_base.pd
    python tools/convert_checkpoint.py output_dir/checkpoint-best.pd vit_base.pth
    python tools/convert_checkpoint.py --info model.safetensors

Neither PyTorch nor transformers is needed. The suffix of the second file chooses its kind: .pd, .pdparams,
.safetensors, .npz or .pth. Exit code 2 and a sentence for a file that cannot be converted; then nothing is written.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.compute import cpu_runtime

cpu_runtime.prepare()  # before Paddle is imported

import models_mae
import models_vit
from util.options import flags
from util.weights import architecture, checkpoint, formats, name_maps

FILE_KINDS = {"torch": "PyTorch (zip archive)", "torch_legacy": "PyTorch (the format before 1.6)",
              "paddle": "Paddle (pickle)", "safetensors": "safetensors", "npz": "NumPy archive"}

# Beginnings of the MD5 sums that the official READMEs print.
PUBLISHED = {"8cad7c": "mae_pretrain_vit_base.pth", "b8b06e": "mae_pretrain_vit_large.pth",
             "9bdbb0": "mae_pretrain_vit_huge.pth", "1b25e9": "mae_finetuned_vit_base.pth",
             "51f550": "mae_finetuned_vit_large.pth", "2541f2": "mae_finetuned_vit_huge.pth"}

# Whose names a kind of file has unless --to says otherwise.
DEFAULT_TARGET = {".pd": "paddle", ".pdparams": "paddle", ".npz": "paddle", ".safetensors": "hf", ".pth": "official"}

KEPT_BESIDE = ("architecture", "normalization", "classes")  # of a checkpoint of this project, in a .pd file


def get_args_parser():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="file to read")
    parser.add_argument("destination", nargs="?", help=f"file to write; one of {', '.join(formats.SUFFIXES)}")
    parser.add_argument("--info", metavar="FILE", help="describe a file and write nothing")
    parser.add_argument("--to", choices=name_maps.TARGETS, help="whose names and layout (default: by the suffix: "
                        + ", ".join(f"{suffix} {target}" for suffix, target in DEFAULT_TARGET.items()) + ")")
    parser.add_argument("--entry", help="which part of a file with several models, such as model_ema")
    parser.add_argument("--drop", action="append", default=[], metavar="PATTERN",
                        help="leave out the names that match, as in 'pooler.*'; may be repeated")
    parser.add_argument("--force", action="store_true", help="replace a destination that exists")
    flags.add_trust(parser)
    return parser


class Source:
    """A file that was read: its weights under our names, and what they lack to be a model of known sizes."""

    def __init__(self, path, file, *, drop):
        self.path, self.file = path, file
        self.renamed = name_maps.to_ours(file.weights, drop=drop)
        weights = self.renamed.weights
        self.kind = checkpoint.kind(weights)
        self.size = architecture.sizes(weights)
        expected = architecture.shapes(self.size)
        self.missing, self.misplaced, self.misshaped = architecture.differences(weights, expected)
        self.unexpected = [*self.renamed.unknown, *self.misplaced]
        self.weights = {name: weights[name] for name in expected if name in weights}
        models = models_mae.MODELS if self.kind == "mae" else models_vit.MODELS
        self.described = architecture.described(self.size, models)

    def check(self):
        """ValueError unless the weights are exactly a model."""
        if self.missing or self.unexpected or self.misshaped:
            advice = ["--drop PATTERN leaves unexpected ones out"] if self.unexpected else []
            raise ValueError("\n".join([f"{self.path}: its weights are not exactly those of a model:",
                                        *self.differences(), *advice]))

    def differences(self):
        misshaped = [f"{name} {list(found)} instead of {list(wanted)}" for name, found, wanted in self.misshaped]
        return [f"  {title:12}{len(names)}" + (f": {', '.join(names)}" if names else "") for title, names in
                [("missing", self.missing), ("unexpected", self.unexpected), ("mis-shaped", misshaped)]]

    def lines(self):
        """What the file holds, for the console."""
        md5 = formats.md5(self.path)
        known = PUBLISHED.get(md5[:6])
        yield f"{self.path}"
        yield (f"  file        {FILE_KINDS[self.file.kind]}, {Path(self.path).stat().st_size:,} bytes, MD5 {md5}"
               + (f", as published for {known}" if known else ""))
        if self.file.entry:
            beside = ", ".join(map(str, self.file.beside)) or "nothing else"
            yield f"  entry       '{self.file.entry}'; beside it: {beside}"
        renamed = self.renamed
        yield (f"  names       {renamed.family}, {renamed.layout} layout"
               + (f", after the prefix '{renamed.prefix}'" if renamed.prefix else ""))
        num_values = sum(value.size for value in self.weights.values())
        stored_as = ", ".join(f"{count} {name}" for name, count in sorted(self.file.stored_as.items()))
        yield (f"  weights     {len(self.weights)} tensors with {num_values:,} values; in the file {stored_as}"
               + ("" if set(self.file.stored_as) <= {"float32", "int64"} else "; read as float32"))
        yield f"  model       {checkpoint.KINDS[self.kind][0]}: {self.model_line()}"
        if renamed.dropped:
            yield f"  dropped     {len(renamed.dropped)}: {', '.join(renamed.dropped)}"
        if renamed.counters:
            yield f"  not needed  {len(renamed.counters)}: {', '.join(renamed.counters)}"
        yield from self.differences()
        yield f"  SHA256      {formats.checksum(self.weights)} (of the weights; the same in every kind of file)"

    def model_line(self):
        size = self.size
        if self.described is None:
            return (f"none of the sizes of this project (width {size['embed_dim']}, depth {size['depth']}, patch "
                    f"{size['patch_size']}, MLP {size['mlp_dim']}"
                    + (f", decoder width {size['decoder_embed_dim']}, depth {size['decoder_depth']}"
                       if "decoder_embed_dim" in size else "") + ")")
        more = {name: value for name, value in self.described.items() if name != "name"}
        return self.described["name"] + "".join(f", {name} {value}" for name, value in more.items())

    def beside(self):
        """What a .pd file keeps beside the weights."""
        kept = {name: self.file.beside[name] for name in KEPT_BESIDE if name in self.file.beside}
        if self.described and self.kind not in ("encoder", "unknown"):
            kept.setdefault("architecture", self.described)
        return kept


def check_destination(path, *, force):
    """ValueError if a file at `path` cannot or may not be written."""
    formats.check_suffix(path)
    if Path(path).exists() and not force:
        raise ValueError(f"{path} exists already; --force replaces it")
    if not Path(path).parent.is_dir():
        raise ValueError(f"{path}: there is no folder {Path(path).parent}")


def convert(source, path, *, target):
    """Write a Source to `path` under the names of `target`, and return lines about that."""
    weights, homeless = name_maps.from_ours(source.weights, target)
    beside = source.beside() if formats.check_suffix(path) == ".pd" else {}
    formats.write(path, weights, tensor_format="pd" if target == "paddle" else "pt", beside=beside)
    lines = [f"{path}", f"  written     {len(weights)} tensors in {Path(path).stat().st_size:,} bytes, names: {target}"
             + (f"; beside them: {', '.join(beside)}" if beside else "")]
    gone = [str(name) for name in source.file.beside if name not in beside]
    if gone:
        lines.append(f"  left out    {', '.join(gone)}")
    if homeless:
        groups = dict.fromkeys(name.split(".")[0] for name in homeless)
        lines.append(f"  left out    {len(homeless)} tensors for which {target} has no place: {', '.join(groups)}")
    return lines


def run(args):
    """What the command line asks for; ValueError with a sentence where that cannot be done."""
    if bool(args.info) == bool(args.source and args.destination):
        raise ValueError("expected either SOURCE and DESTINATION, or --info FILE")
    path, destination = args.info or args.source, args.destination
    if destination:
        check_destination(destination, force=args.force)
    file = formats.read(path, entry=args.entry, trusted=args.trust_checkpoint)
    try:
        source = Source(path, file, drop=args.drop)
        if destination:
            source.check()
        lines = [*source.lines()]
        if destination:
            target = args.to or DEFAULT_TARGET[formats.check_suffix(destination)]
            lines += convert(source, destination, target=target)
    except name_maps.WeightNamesError as error:
        raise ValueError(f"{path}: {error}") from error
    print("\n".join(lines))


def main(argv=None):
    """The exit code."""
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
