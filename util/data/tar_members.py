"""Where the images lie in a tar file."""
import gzip
import io
import json
import posixpath
import tarfile
import zlib
from pathlib import Path


def gunzip(path):
    """The bytes of a compressed tar file, decompressed."""
    try:
        with gzip.open(path) as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"--data_path: {path} cannot be decompressed ({error}). Download or pack it again.") from error


def images(path, data, is_image, progress):
    """[(name, offset, size), ...] of the images in a tar file.

    Args:
        path: of the file; data: what is in it if it is compressed, else None.
        is_image: whether a name is that of an image.
        progress: file_index.ListingProgress.
    """
    found, links, places = [], [], {}
    try:
        with tarfile.open(path if data is None else None, "r:", None if data is None else io.BytesIO(data)) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # or it keeps 1 kB for each of a million members
                name = posixpath.normpath(member.name.lstrip("/"))
                if member.isreg() and not member.issparse():
                    places[name] = member.offset_data, member.size
                if not member.isdir() and is_image(name):
                    found.append(name)
                    progress.update()
                    if member.islnk():
                        links.append((name, posixpath.normpath(member.linkname)))
                    elif member.issym():
                        links.append((name, posixpath.normpath(posixpath.join(name, "..", member.linkname))))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"--data_path: {path} cannot be read as a tar file ({error}). "
                         "Download or pack it again.") from error
    places.update({name: places[target] for name, target in links if target in places})
    lost = [name for name in found if name not in places]
    if lost:
        raise ValueError(f"--data_path: {path} has the names but not the contents of images: {', '.join(lost[:10])}"
                         f"{', ...' if len(lost) > 10 else ''} (links out of the archive, or sparse files). Pack it "
                         "again with tar --dereference.")
    return [(name, *places[name]) for name in dict.fromkeys(found)]


def listed_classes(folder):
    """The names of the classes of a list, in the order of their labels, if tools/pack_dataset.py has packed one there.

    [] for a list without classes; None if no list was packed. The images of one are in the order of the tar files.
    """
    try:
        manifest = json.loads(Path(folder, "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # there is none, or it is another program's
        return None
    return manifest.get("classes") if isinstance(manifest, dict) and "names_sha256" in manifest else None
