"""Errors a person can act on: what was wrong, what was expected, what to do."""


class LabError(Exception):
    """Base of every error whose text is meant to be shown as it stands."""


class RecipeError(LabError):
    """A recipe that cannot be run, or a file that is no recipe."""


class WeightsError(LabError):
    """A network or its weights cannot be had or do not fit together."""


class ImagesError(LabError):
    """Images cannot be read, are too few, or overlap between splits."""


class StoreError(LabError):
    """The store refused: locked, full, unreachable, or the row does not exist."""


class Forbidden(StoreError):
    """A person may not do this: of the wrong role, with another's run, or beyond the quota; the text says what to do."""


class Refused(LabError):
    """A way to run a network that this network, this device or this precision does not allow; the text says why."""


class Cancelled(Exception):
    """Raised inside a run when its owner asked it to stop."""
