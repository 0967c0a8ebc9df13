"""The arguments of `limelight.generate`: their types for editors, and errors for what people write instead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, TypedDict

from torch import Tensor

from ..attention.edits import BindableEdit, Edit
from ..errors import PromptError, SettingsError, meant
from ..guidance.base import Guidance
from ..guidance.presets import preset
from ..models.base import Conditioning, Model
from ..prompts.subjects import Place, SubjectChoice
from ..utils.numbers import check_finite, shown
from .audition import Audition
from .loop import Record, Step


class RunOptions(TypedDict, total=False):
    """Options of `limelight.generate` about sampling, described there."""

    steps: int
    guidance_scale: float | None
    true_cfg_scale: float
    height: int | None
    width: int | None
    latents: Tensor | None
    conditioning: Conditioning | None
    clip_skip: int
    eta: float
    batch: int | None
    memory: float | None
    record: Record
    audition: int | Audition | None
    on_step: Callable[[Step], None] | None


class GenerateOptions(RunOptions, total=False):
    """The other options of `limelight.generate`."""

    guidance: Guidance | str | None
    place: Place | Sequence[Place | None] | None
    negative: str | Sequence[str] | None
    also: str | Sequence[str]
    edits: Sequence[Edit | BindableEdit]


class OnePromptOptions(RunOptions, total=False):
    """Options of `limelight.compare` and `limelight.explain`, which generate one prompt."""

    subjects: SubjectChoice
    seeds: int | str | Sequence[int]
    negative: str | None


# What other libraries call an option, and what it is here.
_FOREIGN: Mapping[str, str] = {
    "num_inference_steps": "steps",
    "sampling_steps": "steps",
    "negative_prompt": "negative",
    "seed": "seeds",
    "generator": "seeds",
    "num_images_per_prompt": "seeds, one for each image",
    "num_images": "seeds, one for each image",
    "cfg_scale": "guidance_scale",
    "cfg": "guidance_scale",
    "prompt_embeds": "conditioning",
    "batch_size": "batch",
    "callback": "on_step",
    "callback_on_step_end": "on_step",
    "token_indices": "subjects",
    "indices_to_alter": "subjects",
    "max_iter_to_alter": "guidance=limelight.AttendAndExcite(until=...)",
    "scheduler": "limelight.load(..., scheduler=...)",
    "sampler": "limelight.load(..., scheduler=...)",
    "device": "limelight.load(..., device=...)",
    "dtype": "limelight.load(..., dtype=...)",
}


def refuse_unknown(function: str, unknown: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse options that a function does not have, with what was probably meant.

    Args:
        function: its name.
        unknown: what it was given beside its options.
        known: its options.

    Raises:
        SettingsError: there is one.
    """
    for name in unknown:
        if name in _FOREIGN:
            raise SettingsError(f"{function} has no option '{name}'. Use {_FOREIGN[name]}.")
        listed = ", ".join(known)
        raise SettingsError(f"{function} has no option '{name}'. Choose one of: {listed}.{meant(name, known)}")


def check_model(model: Any) -> None:
    """Refuse what is not an open model.

    Raises:
        SettingsError: it is a name, a pipeline of another library, or something else.
    """
    if isinstance(model, Model):
        return
    if isinstance(model, str):
        raise SettingsError(f"model='{model}' is a name. Open the model first: model = limelight.load('{model}').")
    if hasattr(model, "components"):
        raise SettingsError(f"model is a {type(model).__name__}. Open it first: model = limelight.load(pipeline).")
    raise SettingsError(f"model={shown(model)} is not a model. Open one first: model = limelight.load('pocket').")


def texts_of(prompt: Any) -> list[str]:
    """One prompt or several as a list.

    Raises:
        PromptError: it is something else.
    """
    listed = [prompt] if isinstance(prompt, str) or not isinstance(prompt, Iterable) else list(prompt)
    for text in listed:
        if not isinstance(text, str):
            raise PromptError(f"prompt={shown(text)} must be text, for example 'a cat and a dog', or a list of texts.")
    return listed


def guidance_of(guidance: Any, model: Model) -> Guidance | None:
    """Guidance that is given by itself or by the name of a preset; "none" and None are none.

    Raises:
        SettingsError: it is something else, or the name is unknown.
    """
    if guidance is None or isinstance(guidance, Guidance):
        return guidance
    if guidance == "none":
        return None
    if isinstance(guidance, str):
        return preset(guidance, model)
    if isinstance(guidance, Real):
        raise SettingsError(
            f"guidance={guidance} must be a Guidance or the name of a preset; the strength of classifier-free guidance "
            f"is guidance_scale={guidance}."
        )

    name = guidance.__name__ if isinstance(guidance, type) else "AttendAndExcite"
    raise SettingsError(
        f"guidance={shown(guidance)} must be a Guidance or the name of a preset, for example limelight.{name}()."
    )


def audition_of(audition: Any) -> Audition | None:
    """An audition that is given by itself or by its number of candidates.

    Raises:
        SettingsError: it is something else.
    """
    if isinstance(audition, int) and not isinstance(audition, bool):
        return Audition(candidates=audition)
    if audition is not None and not isinstance(audition, Audition):
        raise SettingsError(f"audition={shown(audition)} must be a number of seeds to try, or a limelight.Audition.")
    return audition


def check_scales(*, guidance_scale: Any, true_cfg_scale: Any) -> None:
    """Refuse strengths of classifier-free guidance that are not finite numbers.

    Raises:
        SettingsError: one is not.
    """
    _check_numbers(guidance_scale=guidance_scale, true_cfg_scale=true_cfg_scale)
    check_finite(guidance_scale=guidance_scale, true_cfg_scale=true_cfg_scale)


def _check_numbers(**values: Any) -> None:
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise SettingsError(f"{name}={shown(value)} must be a number.")


def check_types(*, eta: Any, latents: Any, conditioning: Any, on_step: Any) -> None:
    """Refuse options of a wrong type; numbers within limits are checked where they are used.

    Raises:
        SettingsError: one has.
    """
    _check_numbers(eta=eta)
    if not isinstance(latents, Tensor | None):
        raise SettingsError(f"latents={shown(latents)} must be a tensor [images, channels, height, width].")
    if not isinstance(conditioning, Conditioning | None):
        raise SettingsError(f"conditioning={shown(conditioning)} must be what model.encode gives.")
    if on_step is not None and not callable(on_step):
        raise SettingsError(f"on_step={shown(on_step)} must be a function that takes a limelight.Step.")


def edits_of(edits: Any) -> tuple[Edit | BindableEdit, ...]:
    """Attention edits as a tuple.

    Raises:
        SettingsError: something else is among them.
    """
    listed = tuple(edits) if isinstance(edits, Iterable) and not isinstance(edits, str) else (edits,)
    for edit in listed:
        if not (callable(edit) or isinstance(edit, BindableEdit)):
            raise SettingsError(
                f"edits has the entry {shown(edit)}; each must be an edit such as limelight.heads.gains.HeadGain."
            )
    return listed
