"""The errors that a user can mend. Each is one sentence that quotes the user's words and says what to do."""


class LimelightError(Exception):
    """Base of limelight's own errors; the command line prints its text and exits with 2."""


class PromptError(LimelightError, ValueError):
    """A word, phrase or index is not where the user said."""


class ModelError(LimelightError, ValueError):
    """A model cannot be found, read or driven."""


class SettingsError(LimelightError, ValueError):
    """A setting is out of its range or does not fit the model."""


class ProbeError(LimelightError, RuntimeError):
    """An attention layer that should have been seen was not."""
