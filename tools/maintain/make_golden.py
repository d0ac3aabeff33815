"""Write tests/golden/*.npz: inputs and outputs of other implementations, which the tests compare with ours.

    python tools/maintain/make_golden.py

It is run again only to change what is compared. It needs PyTorch (CPU), torchvision, timm and transformers,
which the project itself does not need. The versions that made a file are in its "meta".

Models and training run in float64, so that a difference in a test is our rounding and not the reference's.
Where a reference differs from the official code, which is built on timm 0.3.2, a comment says so.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.maintain.golden.common import FOLDER
from tools.maintain.golden.data import erasing, mixup, randaug, transforms
from tools.maintain.golden.models import mae, positions, vit
from tools.maintain.golden.training import finetune, linprobe, pretrain


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    positions()
    mae()
    weights = vit()
    pretrain()
    finetune(weights)
    linprobe(weights)
    transforms()
    randaug()
    erasing()
    mixup()
    sizes = {path.name: path.stat().st_size for path in sorted(FOLDER.glob("*.npz"))}
    for name, size in {**sizes, "together": sum(sizes.values())}.items():
        print(f"{name:18} {size / 1024:7.1f} kB")
    if sum(sizes.values()) > 2e6:
        raise SystemExit("more than 2 MB, the limit for the repository")


if __name__ == "__main__":
    main()
