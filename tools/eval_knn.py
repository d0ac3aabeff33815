"""How good the features of a pretrained encoder are without any training: k-NN on the val images.

    python tools/eval_knn.py --config configs/demo/knn.yaml
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

import numpy as np
import paddle

import models_vit
from util import amp, checkpoint, distributed, knn, operations, options
from util.bad_images import BadImages
from util.datasets import open_classes
from util.loaders import eval_loader
from util.run_log import progress, say
from util.transforms import EvalTransform


def get_args_parser():
    parser = options.Parser("k-NN accuracy of a pretrained encoder: mean patch token, cosine similarity.")
    options.add_model(parser, models_vit.MODELS, "vit_base_patch16")
    options.add_data(parser)
    options.add_device(parser)
    parser.add_argument("--finetune", default="", help="pretrained checkpoint")
    options.add_trust(parser)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--k", type=int, nargs="+", default=[10, 20, 100, 200], help="numbers of neighbours")
    parser.add_argument("--temperature", type=float, default=0.07)
    return parser


@paddle.no_grad()
def features(model, loader, autocast, title):
    """Mean normalised patch token of every readable image: float32 [M, D], and the labels int64 [M]."""
    found, labels = [], []
    for images, label in progress(loader, title):
        with autocast():
            tokens = model.norm(model.forward_tokens(images)).astype("float32")
        found.append(tokens[:, 1:].mean(axis=1).numpy())
        labels.append(label.numpy())
    loader.bad_images.agree()
    say(loader.bad_images.listing())
    return np.concatenate(found), np.concatenate(labels)


def main(args):
    device = distributed.init(args.device)
    if device == "cpu":
        say(f"{cpu_runtime.describe()}; {operations.describe()}")
    autocast = amp.autocast(amp.resolve(args.amp, device))
    if not args.finetune:
        raise ValueError("--finetune FILE is needed: the pretrained checkpoint whose features are to be judged")
    model = models_vit.MODELS[args.model](**options.model_sizes(args), num_classes=1)
    model.eval()
    checkpoint.load_encoder(args.finetune, model, trusted=args.trust_checkpoint)
    transform = EvalTransform(model.patch_embed.img_size, **options.normalization(args),
                              image_backend=args.image_backend)
    train, val = open_classes(args.data_path, dataset=args.dataset, in_chans=args.in_chans, num_classes=10 ** 9)
    known, asked = (features(model, eval_loader(
        images, transform, args.batch_size, args.num_workers, shared=False,
        bad_images=BadImages(args.bad_images, split, len(images))), autocast, split) for split, images in
        (("train", train), ("val", val)))
    for k, accuracy in knn.accuracy(*known, *asked, k=args.k, temperature=args.temperature).items():
        say(f"* k-NN Acc@1 {accuracy:.3f} k {k}")


if __name__ == "__main__":
    options.run(main, get_args_parser())
