"""The errors that a user can mend. The command line prints them without a traceback."""


class ConlstError(Exception):
    """Base of every error whose message names the thing and the fix."""


class ConfigError(ConlstError):
    """A configuration that cannot be used."""


class DataError(ConlstError):
    """Pairs that cannot be read or trusted."""


class ArtifactError(ConlstError):
    """A folder that is incomplete, altered or of another kind."""


class LabelError(ConlstError):
    """Labels in another order or with other names than the contract's."""


class BackendError(ConlstError):
    """A service or program outside conlst that is missing or failed."""


class UnsupportedDirection(BackendError):
    """A translation backend that works, but not between these languages."""


class TrainingError(ConlstError):
    """A training run that must not go on."""


class RegistryError(ConlstError):
    """A model version that cannot be registered, promoted or served."""
