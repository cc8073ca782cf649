"""The errors users see. Each names the value at fault and the fix; none is shown with a traceback.

One flat type per boundary that was crossed. Programming mistakes are not here: they stay
`AssertionError`, `TypeError` and so on, and keep their tracebacks.
"""

import errno

_FIXES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there",
    errno.EFBIG: "choose another disk",
    errno.EROFS: "choose a folder that may be written",
    errno.EACCES: "allow it, or choose another folder",
    errno.EPERM: "allow it, or choose another folder",
    errno.EEXIST: "name a folder",
    errno.ENOTDIR: "name a folder",
    errno.EISDIR: "name a file",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ELOOP: "mend the link",
    errno.EIO: "look after the disk",
    errno.EMFILE: "raise 'ulimit -n'",
    errno.ENFILE: "close some programs",
}


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


def explain_os_error(error: OSError) -> str | None:
    """One sentence about a full disk, a missing permission and the like; None for other errors,
    which may be mistakes of ours and keep their traceback."""
    fix = _FIXES.get(error.errno or 0)
    if fix is None:
        return None
    where = str(error.filename2 or error.filename or "the output")
    shown = where if len(where) <= 200 else f"{where[:200]}…"
    return f"{shown}: {(error.strerror or str(error)).lower()}; {fix}"
