"""Which arithmetic `--precision auto` means: a static table by device and network, measured end to end.

Where a CPU multiplies bf16 faster than fp32 (`device.kind`), autocast trained gencli's U-Net 1.6 times as fast (1.1 M
parameters, 16×16, batch 128: 1,018 against 632 images/s), its patch transformer about 1.7 times, a decoder of 256 tokens 1.9
times, the small transformers of the recipes `gpt` and `maskgit` 1.5 and 1.3 times; convolutions over a few codes or small
images gain nothing, because element-wise work pays for the casts. On Intel CPUs with AVX512-BF16 and no AMX every network
loses: the U-Net runs at 0.74, the transformer at 0.80 of fp32. `python -m benchmarks precision` measures the table. CUDA
cards with bf16 always gain. The choice is resolved once and stored in the run.
"""

from __future__ import annotations

import torch

from gencli import device as hardware

FASTER_IN_BF16 = {("cpu-bf16", name) for name in ("bidirectional-transformer", "dit", "transformer", "unet")}


def resolve(asked: str, device: torch.device, network: str) -> str:
    """`fp32`, `bf16` or `fp16` from what the user asked for."""
    if asked != "auto":
        return asked
    kind = hardware.kind(device)
    return "bf16" if kind == "cuda-bf16" or (kind, network) in FASTER_IN_BF16 else "fp32"
