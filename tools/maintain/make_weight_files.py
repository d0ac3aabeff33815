"""Make the weight files of other programs in tests/golden, which the tests of util/weights read.

    python tools/maintain/make_weight_files.py tests/golden

It needs PyTorch, timm and transformers. The files in the repository come from torch 2.13.0, timm 1.0.31 and
transformers 5.23.0.
"""

import argparse
import collections
import pathlib
import tempfile
from typing import Any

import numpy as np
import timm
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining


def odd_tensors() -> dict[str, Any]:
    """Make a training checkpoint with tensors of every type and with shared storages.

    tests/weights/test_torch_file.py knows the values.
    """
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    model = collections.OrderedDict(
        whole=base,
        view=base[1:, 1::2],
        turned=base.t(),
        spread=base[:1].expand(3, 6),
        scalar=torch.tensor(7),
        parameter=torch.nn.Parameter(torch.tensor([-1.5, 2.0])),
        empty=torch.empty(0, 3),
        half=torch.tensor([1.0, -0.1, 65504.0]).half(),
        brain=torch.tensor([1.0, -0.1, 1e38]).bfloat16(),
        double=torch.tensor([0.1], dtype=torch.float64),
    )
    integers = {
        "ints": torch.tensor([-1, 2], dtype=torch.int32),
        "bytes": torch.tensor([0, 255], dtype=torch.uint8),
        "bools": torch.tensor([True, False]),
    }
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    args = argparse.Namespace(
        lr=1e-3, output_dir=pathlib.PurePosixPath("/checkpoint/run"), device=torch.device("cuda", 0)
    )
    return {
        "model": model,
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "scaler": {"scale": 65536.0},
        "args": args,
        "integers": integers,
    }


def scramble(model: torch.nn.Module) -> torch.nn.Module:
    """Move every parameter away from 0 and 1. Returns the model in evaluation mode."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    folder = parser.parse_args().folder
    torch.manual_seed(0)
    with torch.enable_grad():
        state = odd_tensors()
    torch.save(state, folder / "torch_zip.pth")
    torch.save(state, folder / "torch_legacy.pth", _use_new_zipfile_serialization=False)

    images, noise = torch.randn(2, 3, 8, 8), torch.rand(2, 4)
    outputs = {"images": images.numpy(), "noise": noise.numpy()}
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 8,
        "patch_size": 4,
        "layer_norm_eps": 1e-6,
        "decoder_hidden_size": 4,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 1,
        "decoder_intermediate_size": 16,
    }
    mae = scramble(ViTMAEForPreTraining(ViTMAEConfig(**sizes)))
    with tempfile.TemporaryDirectory() as saved:
        mae.save_pretrained(saved)
        (folder / "hf_vitmae.safetensors").write_bytes(pathlib.Path(saved, "model.safetensors").read_bytes())
    result = mae(pixel_values=images, noise=noise)
    outputs.update(mae_pred=result.logits.numpy(), mae_loss=result.loss.numpy(), mae_mask=result.mask.numpy())

    def timm_vit(pool: str) -> torch.nn.Module:
        return scramble(
            timm.create_model(
                "vit_base_patch16_224",
                pretrained=False,
                img_size=8,
                patch_size=4,
                embed_dim=8,
                depth=1,
                num_heads=2,
                num_classes=5,
                global_pool=pool,
            )
        )

    pooled = timm_vit("avg")
    torch.save(pooled.state_dict(), folder / "timm_vit.pth")
    outputs["vit_logits"] = pooled(images).numpy()

    # The official linear probe has a BatchNorm without scale and shift before its head.
    probe = timm_vit("token")
    probe.head = torch.nn.Sequential(torch.nn.BatchNorm1d(8, affine=False, eps=1e-6), probe.head).train()
    probe(images)  # fills the running statistics
    probe.eval()
    torch.save({"model": probe.state_dict()}, folder / "timm_linear_probe.pth")
    outputs["probe_logits"] = probe(images).numpy()
    np.savez(folder / "weight_files.npz", **outputs)


if __name__ == "__main__":
    main()
