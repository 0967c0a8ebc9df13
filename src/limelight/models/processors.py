"""What computes the attention of diffusers' layers, and how it gets there again."""

from __future__ import annotations

from typing import Any

from ..errors import ProbeError


def describe_attention(module: Any) -> str:
    """Name what computes a layer's attention: its processor, or a `forward` that another tool has put on it."""
    replaced = vars(module).get("forward")
    if replaced is not None:
        return f"the function '{getattr(replaced, '__qualname__', type(replaced).__name__)}' in place of its forward"
    return f"its processor '{type(module.processor).__name__}'"


def _check_weightless(name: str, module: Any) -> None:
    """Raise a ProbeError where resetting a layer would lose weights."""
    if not _fits(module) and getattr(module.processor, "state_dict", dict)():
        raise ProbeError(
            f"The layer '{name}' cannot be reset: {describe_attention(module)} has weights of its own. Unload what "
            "brought them, for example with pipe.unload_ip_adapter()."
        )


def reset_attention(pipeline: Any) -> tuple[str, ...]:
    """Put diffusers' own attention back into a pipeline whose layers another tool has changed.

    diffusers' own processors that call torch's scaled_dot_product_attention stay, those of an IP-Adapter as well. All
    others (attention slicing, xFormers, the stores of attention that other tools install) are replaced, and a `forward`
    that was put on a layer is taken away. End the other tool's own context first, if it has one.

    Args:
        pipeline: a live diffusers pipeline, or a `Model`.

    Returns:
        The names of the layers that were changed.

    Raises:
        ProbeError: a processor has weights of its own, which would be lost.

    Examples:
        >>> from diffusers.models.attention_processor import AttnProcessor
        >>> pipe = limelight.load("pocket", device="cpu").pipeline
        >>> pipe.unet.set_attn_processor(AttnProcessor())
        >>> len(limelight.reset_attention(pipe)) == len(pipe.unet.attn_processors)
        True
        >>> limelight.reset_attention(pipe)
        ()
    """
    from diffusers.models.attention_processor import Attention

    denoiser = getattr(pipeline, "denoiser", None) or getattr(pipeline, "unet", None)
    if denoiser is None:
        return ()

    changed = {}
    for name, module in denoiser.named_modules():
        if isinstance(module, Attention) and ("forward" in vars(module) or not _fits(module)):
            _check_weightless(name, module)
            changed[name] = module

    for module in changed.values():
        vars(module).pop("forward", None)
        if not _fits(module):
            module.set_processor(_usual(module))
    return tuple(changed)


def _fits(module: Any) -> bool:
    """Whether a processor is one of diffusers' own that call scaled_dot_product_attention."""
    kind = type(module.processor)
    return kind.__module__ == "diffusers.models.attention_processor" and kind.__name__.endswith("2_0")


def _usual(module: Any) -> Any:
    """The processor that diffusers gives such a layer."""
    from diffusers.models import attention_processor as known

    if module.added_kv_proj_dim is not None:
        return known.AttnAddedKVProcessor2_0()
    if getattr(module, "fused_projections", False):
        return known.FusedAttnProcessor2_0()
    return known.AttnProcessor2_0()
