"""The errors that this library raises on purpose.

Every message is one sentence (or a few short ones) that a radiologist understands: what was got, what is allowed, what
to do. The command prints it in one line and ends with :attr:`COVIDLesionSegError.exit_status`; the panel shows it.
"""

from __future__ import annotations


class COVIDLesionSegError(Exception):
    """Base of all errors of this library.

    Attributes:
        hint: what the user can do next, as a sentence of its own, or "".
        exit_status: what the command ends with.
    """

    exit_status = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} {self.hint}" if self.hint else message


class InputError(COVIDLesionSegError, ValueError):
    """An argument, a setting or a combination of them that is not allowed."""


class ReadError(InputError):
    """A file or folder that is missing, damaged, or not what it should be."""


class SeriesChoiceError(ReadError):
    """A DICOM folder holds several series; the message lists them with their UIDs."""


class GeometryError(InputError):
    """A grid that no CT can have: spacing not positive, singular or sheared direction, missing slices."""


class GridMismatchError(GeometryError):
    """Two images that should share a grid do not; the message names the difference and its size."""


class IntensityError(InputError):
    """Voxel values that cannot be Hounsfield units, or that are not finite."""


class LungsNotFoundError(InputError):
    """No lungs where lungs are needed."""


class TwoPatientsError(InputError):
    """Two studies to compare that are hardly of one patient."""


class CaseOpenError(InputError):
    """Somebody else has the case of a store open, or has taken it over."""


class ModelError(InputError):
    """A model file or id that is unknown, damaged, of another network, or not safe to load."""


class DownloadError(ModelError):
    """A download that failed, was cut short, or does not have the promised hash."""


class DeviceError(InputError):
    """A device that is unknown or not there."""


class OutputError(COVIDLesionSegError):
    """A result that could not be written; nothing half-written stays."""


class CancelledError(COVIDLesionSegError):
    """The user asked to stop."""

    exit_status = 130
