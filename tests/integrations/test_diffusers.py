"""Old scripts that change one import get the same images."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

from limelight import PromptError
from limelight.integrations.diffusers import StableDiffusionAttendAndExcitePipeline as Ours

CALL = {
    "prompt": "a cat and a dog",
    "token_indices": [2, 5],
    "num_inference_steps": 6,
    "max_iter_to_alter": 3,
    "thresholds": {0: 0.6, 2: 0.65, 4: 0.7},
    "attn_res": (8, 8),
    "output_type": "latent",
}


@pytest.fixture
def pair(tiny_pipeline):
    def build(scheduler: str = "ddim"):
        return (
            tiny_pipeline(scheduler, cls=Ours),
            tiny_pipeline(scheduler, cls=diffusers.StableDiffusionAttendAndExcitePipeline),
        )

    return build


@pytest.mark.parametrize("scheduler", ["ddim", "pndm"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"negative_prompt": "a frog", "scale_factor": 10},
        {"prompt": ["a cat and a dog", "a red car and a frog"], "token_indices": [[2, 5], [3, 6]]},
        {"output_type": "np"},
    ],
)
def test_equal_to_the_deprecated_pipeline(pair, scheduler, changes):
    ours, theirs = pair(scheduler)
    calls: list[list[tuple]] = [[], []]
    results = [
        pipeline(
            **{**CALL, **changes},
            generator=torch.Generator().manual_seed(4),
            callback=lambda i, t, latents, seen=seen: seen.append((i, t.item(), latents.shape)),
        ).images
        for pipeline, seen in zip((ours, theirs), calls, strict=True)
    ]
    assert np.abs(np.asarray(results[0]) - np.asarray(results[1])).max() < 1e-8
    assert calls[0] == calls[1]
    assert ours.get_indices("a red car") == theirs.get_indices("a red car")


def test_several_images_of_a_prompt(pair):
    """What the deprecated pipeline cannot do: a row for every image."""
    ours, _ = pair()
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    both = ours(**CALL, num_images_per_prompt=2, generator=generators).images
    alone = ours(**CALL, generator=torch.Generator().manual_seed(2)).images
    assert torch.allclose(both[1:], alone, atol=1e-8)


def test_prompt_embeddings(pair):
    ours, _ = pair()
    embedded, _ = ours.encode_prompt("a cat and a dog", "cpu", 1, False)
    empty, _ = ours.encode_prompt("", "cpu", 1, False)
    seeded = [torch.Generator().manual_seed(1) for _ in range(2)]
    given = {**CALL, "prompt": None, "prompt_embeds": embedded, "negative_prompt_embeds": empty}
    with pytest.raises(PromptError, match="Token index 500 is not between 1 and 75"):
        ours(**{**given, "token_indices": [[2, 500]]})
    assert torch.allclose(ours(**given, generator=seeded[0]).images, ours(**CALL, generator=seeded[1]).images)


def test_bad_arguments(pair):
    ours, _ = pair()
    with pytest.raises(PromptError, match="token_indices must hold a list of indices for each of 1 prompts"):
        ours("a cat", [])
    with pytest.raises(PromptError, match="either prompt or prompt_embeds"):
        ours(token_indices=[2])
