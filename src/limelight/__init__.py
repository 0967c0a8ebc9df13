"""limelight: read, steer and edit the attention of text-to-image models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # With "as", type checkers take them for public.
    from .attention.maps import AttentionMaps as AttentionMaps
    from .attention.probe import Probe as Probe
    from .attention.recording import StepMaps as StepMaps
    from .editing.image_inversion import invert_image as invert_image
    from .editing.image_maps import read_image as read_image
    from .editing.prompt_to_prompt import EditResult as EditResult
    from .editing.prompt_to_prompt import edit as edit
    from .errors import FileError as FileError
    from .errors import LimelightError as LimelightError
    from .errors import LostWords as LostWords
    from .errors import MissingDependency as MissingDependency
    from .errors import ModelError as ModelError
    from .errors import NoSubjects as NoSubjects
    from .errors import ProbeError as ProbeError
    from .errors import PromptError as PromptError
    from .errors import PromptWarning as PromptWarning
    from .errors import SettingsError as SettingsError
    from .errors import SizeWarning as SizeWarning
    from .errors import UnknownWords as UnknownWords
    from .errors import UnsupportedMarkup as UnsupportedMarkup
    from .generation.audition import Audition as Audition
    from .generation.calibrate import Calibration as Calibration
    from .generation.calibrate import calibrate as calibrate
    from .generation.compare import Comparison as Comparison
    from .generation.compare import compare as compare
    from .generation.generate import generate as generate
    from .generation.loop import Step as Step
    from .generation.loop import denoise as denoise
    from .generation.redraw import redraw as redraw
    from .generation.result import Result as Result
    from .guidance.attend_and_excite import AttendAndExcite as AttendAndExcite
    from .guidance.base import Guidance as Guidance
    from .guidance.presets import preset as preset
    from .heads.guidance import HeadWeightedAttendAndExcite as HeadWeightedAttendAndExcite
    from .integrations.attach import attach as attach
    from .integrations.watch import watch as watch
    from .models.base import Model as Model
    from .models.loading import load as load
    from .models.processors import reset_attention as reset_attention
    from .textual_inversion.folder import learn as learn
    from .textual_inversion.word import LearnedWord as LearnedWord
    from .viz.explain import explain as explain

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
    "SizeWarning": "errors",
    "Step": "generation.loop",
    "StepMaps": "attention.recording",
    "UnknownWords": "errors",
    "UnsupportedMarkup": "errors",
    "attach": "integrations.attach",
    "calibrate": "generation.calibrate",
    "compare": "generation.compare",
    "denoise": "generation.loop",
    "edit": "editing.prompt_to_prompt",
    "explain": "viz.explain",
    "generate": "generation.generate",
    "invert_image": "editing.image_inversion",
    "learn": "textual_inversion.folder",
    "load": "models.loading",
    "preset": "guidance.presets",
    "read_image": "editing.image_maps",
    "redraw": "generation.redraw",
    "reset_attention": "models.processors",
    "watch": "integrations.watch",
}
__all__ = sorted(_PUBLIC)
# limelight.guidance and the like are there without an import of their own.
_FOLDERS = frozenset(
    "attention editing evaluate generation guidance heads integrations models prompts textual_inversion validate "
    "viz".split()
)


def __getattr__(name: str) -> Any:
    if name in _FOLDERS:
        return importlib.import_module(f".{name}", __name__)
    if name not in _PUBLIC:
        raise AttributeError(f"module 'limelight' has no attribute '{name}'")
    value = getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, *_FOLDERS})
