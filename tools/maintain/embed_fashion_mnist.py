"""Make data/fashion_mnist/{train,val}.tar.gz from the four official Fashion-MNIST files.

    python tools/maintain/embed_fashion_mnist.py FOLDER_OF_THE_FOUR_GZ_FILES data/fashion_mnist

Takes the first images of each class in official order: 1,000 for each class from the training set, 200 from
the test set. Members are `<class>/<official index>.png`, greyscale 28x28, sorted. Prints the size and SHA-256
of each archive.
"""

import argparse
import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

# Folder names in the order of the official labels 0 to 9.
CLASSES = [
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
]

# (archive, official set, images of each class)
SELECTION = [("train.tar.gz", "train", 1000), ("val.tar.gz", "t10k", 200)]

# Checksums of the uncompressed content, because distributors compress the files again.
SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def read_checked(path: Path) -> bytes:
    """Returns the uncompressed bytes of an official file. Raises ValueError if its checksum is wrong."""
    content = gzip.decompress(path.read_bytes())
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[path.name]:
        raise ValueError(
            f"{path}: expected SHA-256 {SHA256[path.name]} of the uncompressed content, got {found}"
        )
    return content


def first_of_each_class(labels: np.ndarray, per_class: int) -> list[tuple[str, int]]:
    """Returns [(class, index)] in the order of the archive; labels [N]."""
    return sorted(
        (name, int(index))
        for label, name in enumerate(CLASSES)
        for index in np.flatnonzero(labels == label)[:per_class]
    )


def png(pixels: np.ndarray) -> bytes:
    """Encode uint8 [28, 28] as a PNG without compression, because the archive's gzip then does better."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=0)
    return stream.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    args = parser.parse_args()
    args.destination.mkdir(parents=True, exist_ok=True)
    for archive_name, official_set, per_class in SELECTION:
        # The headers of the IDX format are 16 bytes (images) and 8 bytes (labels) long.
        images = np.frombuffer(
            read_checked(args.source / f"{official_set}-images-idx3-ubyte.gz"), np.uint8, offset=16
        )
        labels = np.frombuffer(
            read_checked(args.source / f"{official_set}-labels-idx1-ubyte.gz"), np.uint8, offset=8
        )
        images = images.reshape(len(labels), 28, 28)
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name, index in first_of_each_class(labels, per_class):
                content = png(images[index])
                member = tarfile.TarInfo(f"{name}/{index:05d}.png")  # its time, owner and mode are constants
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        packed = gzip.compress(plain.getvalue(), 9, mtime=0)
        (args.destination / archive_name).write_bytes(packed)
        print(f"{archive_name}: {len(packed):,} bytes, SHA-256 {hashlib.sha256(packed).hexdigest()}")


if __name__ == "__main__":
    main()
