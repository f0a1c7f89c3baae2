"""Warnings of the readers and writers: things a user should know that are no errors."""


class ParticleFileWarning(UserWarning):
    """Base of what a reader or writer of particle files has to say."""


class PixelOriginsWarning(ParticleFileWarning):
    """Shifts stand in pixels beside an optics table, where RELION reads them as zero."""


class PlaceholderPoseWarning(ParticleFileWarning):
    """Some particles have -999 for an angle: not aligned, so the stack has no poses."""


class DefaultOpticsWarning(ParticleFileWarning):
    """The microscope's voltage, Cs or amplitude contrast is missing and RELION's default stands in."""


class PixelSizeWarning(ParticleFileWarning):
    """A pixel size was taken from a stack header, or an explicit one overrides the file's."""


class OddBoxWarning(ParticleFileWarning):
    """RELION refuses images with an odd number of pixels."""


class ContrastSignWarning(ParticleFileWarning):
    """The stored images are dark on light and the file written cannot say so in a way other programs read."""


class ShiftUnitWarning(ParticleFileWarning):
    """The unit of the shifts in a pickle had to be guessed."""


class UnusedAberrationWarning(ParticleFileWarning):
    """A file has aberrations that are carried along but not used."""
