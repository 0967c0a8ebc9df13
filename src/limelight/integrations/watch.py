"""Attention maps of diffusers pipelines that limelight does not drive."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..attention.maps import AttentionMaps, without_heads
from ..attention.probe import Probe
from ..attention.recording import RunningMean, StepMaps, spilled
from ..errors import ModelError, ProbeError
from ..models.base import Model
from ..models.loading import load
from ..models.unet import UNet
from ..prompts.prompt import Prompt
from ..utils.torch import remove_hook, undone
from .attach import asked_of, put_around


@contextmanager
def watch(pipeline: Any) -> Iterator[Watched]:
    """Keep the attention maps of every call of a diffusers pipeline with a UNet, for as long as the ``with`` lasts.

        >>> import limelight
        >>> pipe = limelight.load("pocket", device="cpu").pipeline
        >>> pipe.set_progress_bar_config(disable=True)
        >>> with limelight.watch(pipe) as watched:
        ...     image = pipe("a cat and a dog", num_inference_steps=2).images[0]
        >>> tuple(watched.maps["dog"].shape), len(watched.steps)
        ((1, 8, 8), 2)

    The pipeline keeps its own loop (img2img, inpainting, ControlNet, SDXL), whatever is loaded into it stays in force,
    and its images stay the same. Maps are of the prompt, not of the negative prompt, and of the thread that entered the
    ``with``. Together with `limelight.attach` they are those of the steered run.

    Heat maps by word of a diffusers pipeline are those of Raphael Tang et al., "What the DAAM: Interpreting Stable
    Diffusion Using Cross Attention", 2022, https://arxiv.org/abs/2210.04885

    Args:
        pipeline: a live pipeline.

    Raises:
        ModelError: the pipeline has no UNet, or runs it with other rows than those of a negative and a positive prompt.
    """
    model = load(pipeline)
    if not isinstance(model, UNet) or not hasattr(pipeline, "encode_prompt"):
        raise ModelError(
            f"'{type(pipeline).__name__}' cannot be watched: it has no UNet, or no method encode_prompt, through which "
            "the prompts are seen. Generate with limelight.generate(limelight.load(pipeline), ...), which records maps."
        )
    with Probe(model, model.guided_sites) as probe:
        watched = Watched(pipeline, model, probe)
        hook = watched._after_pass  # one object, by which it is found again
        with (
            undone(partial(remove_hook, model.denoiser, hook)),
            put_around([(pipeline, "encode_prompt", watched._encode_prompt)]),
        ):
            model.denoiser.register_forward_hook(hook, with_kwargs=True)
            yield watched


class Watched:
    """The maps of the last call of a pipeline."""

    def __init__(self, pipeline: Any, model: Model, probe: Probe) -> None:
        self._pipeline, self._model, self._probe = pipeline, model, probe
        self._prompts: list[Prompt] = []
        self._forget()

    @property
    def maps(self) -> AttentionMaps:
        """The mean over the call, by word: ``maps["dog"]`` is a tensor [images, height, width].

        Raises:
            ProbeError: the pipeline was not called yet.
        """
        mean = self._mean.result()
        if mean is None:
            raise ProbeError("Nothing was watched yet; call the pipeline inside the with.")
        return mean

    @property
    def steps(self) -> StepMaps:
        """The same of each pass of the denoiser, in the main memory as float16."""
        return StepMaps([self._steps] if self._steps else ())

    def _forget(self) -> None:
        self._mean, self._steps = RunningMean(), list[AttentionMaps]()

    def _encode_prompt(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Read the prompts at the begin of a call of the pipeline."""
        asked = asked_of(original, args, kwargs, self._model.prompt)
        self._forget()
        self._prompts = [prompt for prompt in asked.prompts for _ in range(asked.copies)]  # one prompt's side by side
        self._probe.images = len(self._prompts)
        return original(*args, **kwargs)

    def _after_pass(self, unet: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Keep the maps of a pass of the denoiser."""
        if not self._probe._is_mine():
            return
        sample = args[0] if args else kwargs["sample"]
        self._check_rows(len(sample))
        maps = without_heads(self._probe.take(sample, self._prompts)).each(lambda p: p.detach())
        self._mean.add(maps)
        self._steps.append(spilled(maps))

    def _check_rows(self, rows: int) -> None:
        """Refuse passes of which it is not known which rows are the prompt's.

        Raises:
            ModelError: this is one.
        """
        images, pipeline = len(self._prompts), self._pipeline
        both = getattr(pipeline, "do_classifier_free_guidance", rows == 2 * images)
        if rows != images * (2 if both else 1) or getattr(pipeline, "do_perturbed_attention_guidance", False):
            raise ModelError(
                f"'{type(pipeline).__name__}' runs its denoiser with {rows} rows for {images} images, and not with "
                "those of a negative and a positive prompt; its maps cannot be told apart."
            )
