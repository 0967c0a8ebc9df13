"""What needs more than a laptop: a CUDA device, or a real checkpoint from the hub."""

from __future__ import annotations

import pytest
import torch

import limelight

OPTIONS = {"subjects": ["cat", "dog"], "steps": 10, "guidance": limelight.AttendAndExcite()}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pocket_on_cuda(dtype):
    on_gpu = limelight.generate(limelight.load("pocket", device="cuda", dtype=dtype), "a cat and a dog", **OPTIONS)
    on_cpu = limelight.generate(limelight.load("pocket", device="cpu"), "a cat and a dog", **OPTIONS)
    # The same noise, and so nearly the same image: what differs is rounding, and near-ties of the loss.
    correlation = torch.corrcoef(torch.stack([on_gpu.latents.float().cpu().flatten(), on_cpu.latents.flatten()]))[0, 1]
    assert correlation > 0.9


@pytest.mark.hub
@pytest.mark.parametrize(
    "name",
    ["CompVis/stable-diffusion-v1-4", "stabilityai/stable-diffusion-xl-base-1.0", "CompVis/ldm-text2im-large-256"],
)
def test_real_checkpoints(name):
    model = limelight.load(name)
    guidance = limelight.AttendAndExcite.suited(model)
    result = limelight.generate(model, "a cat and a dog", **{**OPTIONS, "guidance": guidance})
    losses = [row["loss"][0] for row in result.trace]
    assert losses[-1] < losses[0]
