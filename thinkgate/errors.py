"""The errors users see. Each names the value at fault and the fix; none is shown with a traceback.

One flat type per boundary that was crossed. Programming mistakes are not here: they stay
`AssertionError`, `TypeError` and so on, and keep their tracebacks.
"""


class ThinkgateError(Exception):
    """A mistake the user can fix; the command line prints it and exits with `exit_code`."""

    exit_code = 2


class ConfigError(ThinkgateError):
    """A recipe, suite, policy or command-line value is missing, unknown or out of range."""


class DataError(ThinkgateError):
    """A problem set, records file or data folder is missing or malformed."""


class CheckpointError(ThinkgateError):
    """A checkpoint folder is incomplete, changed, or not one thinkgate wrote."""


class RegistryError(ThinkgateError):
    """The registry does not know the alias, or refuses the promotion."""


class ServerError(ThinkgateError):
    """The server could not start, or stopped answering."""


class EndpointError(ThinkgateError):
    """An OpenAI-compatible endpoint could not be reached or refused the request."""


class TrainingError(ThinkgateError):
    """Training cannot start or cannot go on."""


class MissingDependencyError(ThinkgateError):
    """An optional package is not installed."""
