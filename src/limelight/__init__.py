"""limelight: look at, steer and edit the attention of text-to-image diffusion models."""

from .attach import attach
from .calibration import Calibration, calibrate
from .concepts import Concept
from .edit import EditResult, edit
from .errors import LimelightError, ModelError, ProbeError, PromptError, SettingsError, UnknownWords
from .generate import Step, denoise, generate
from .guidance import AttendAndExcite, Guidance
from .inversion import invert
from .maps import AttentionMaps, StepMaps
from .models import Model, load
from .probe import Probe
from .result import Result

__version__ = "0.1.0"
__all__ = [
    "AttendAndExcite",
    "AttentionMaps",
    "Calibration",
    "Concept",
    "EditResult",
    "Guidance",
    "LimelightError",
    "Model",
    "ModelError",
    "Probe",
    "ProbeError",
    "PromptError",
    "Result",
    "SettingsError",
    "Step",
    "StepMaps",
    "UnknownWords",
    "attach",
    "calibrate",
    "denoise",
    "edit",
    "generate",
    "invert",
    "load",
]
