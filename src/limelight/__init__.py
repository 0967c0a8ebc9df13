"""limelight: read, steer and edit the attention of text-to-image models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attention.maps import AttentionMaps
    from .attention.probe import Probe
    from .attention.recording import StepMaps
    from .editing.image_inversion import invert_image
    from .editing.prompt_to_prompt import EditResult, edit
    from .errors import (
        FileError,
        LimelightError,
        LostWords,
        MissingDependency,
        ModelError,
        NoSubjects,
        ProbeError,
        PromptError,
        PromptWarning,
        SettingsError,
        UnknownWords,
        UnsupportedMarkup,
    )
    from .generation.audition import Audition
    from .generation.calibrate import Calibration, calibrate
    from .generation.compare import Comparison, compare
    from .generation.generate import generate
    from .generation.loop import Step, denoise
    from .generation.result import Result
    from .guidance.attend_and_excite import AttendAndExcite
    from .guidance.base import Guidance
    from .guidance.presets import preset
    from .heads.guidance import HeadWeightedAttendAndExcite
    from .integrations.attach import attach
    from .models.base import Model
    from .models.loading import load
    from .models.processors import reset_attention
    from .textual_inversion.folder import learn
    from .textual_inversion.word import LearnedWord

__version__ = "0.2.0"

# Name -> the module that defines it. Each is imported at its first use, so `import limelight` stays quick.
_PUBLIC = {
    "AttendAndExcite": "guidance.attend_and_excite",
    "AttentionMaps": "attention.maps",
    "Audition": "generation.audition",
    "Calibration": "generation.calibrate",
    "Comparison": "generation.compare",
    "EditResult": "editing.prompt_to_prompt",
    "FileError": "errors",
    "Guidance": "guidance.base",
    "HeadWeightedAttendAndExcite": "heads.guidance",
    "LearnedWord": "textual_inversion.word",
    "LimelightError": "errors",
    "LostWords": "errors",
    "MissingDependency": "errors",
    "Model": "models.base",
    "ModelError": "errors",
    "NoSubjects": "errors",
    "Probe": "attention.probe",
    "ProbeError": "errors",
    "PromptError": "errors",
    "Result": "generation.result",
    "PromptWarning": "errors",
    "SettingsError": "errors",
    "Step": "generation.loop",
    "StepMaps": "attention.recording",
    "UnknownWords": "errors",
    "UnsupportedMarkup": "errors",
    "attach": "integrations.attach",
    "calibrate": "generation.calibrate",
    "compare": "generation.compare",
    "denoise": "generation.loop",
    "edit": "editing.prompt_to_prompt",
    "generate": "generation.generate",
    "invert_image": "editing.image_inversion",
    "learn": "textual_inversion.folder",
    "load": "models.loading",
    "preset": "guidance.presets",
    "reset_attention": "models.processors",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'limelight' has no attribute '{name}'")
    value = getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
