"""Errors that a user can mend. The command line prints one line and exits with 1."""


class TinyfcnError(Exception):
    """The base of all errors whose message is for the user: what was expected, what was found, what to do."""


class DataError(TinyfcnError):
    """A data file or an image is missing, truncated, or of another kind than expected."""


class DeviceError(TinyfcnError):
    """A device cannot be used on this machine: no GPU, no driver, no compiler."""


class KernelError(DeviceError):
    """A kernel does not compile or does not run. The message names the `.cu` file and line."""


class CheckpointError(TinyfcnError):
    """A run folder or weights file is incomplete, was written by another program, or holds another network."""


def in_brief(message: object, length: int = 200) -> str:
    """A library's words on one line and cut at `length`: some quote the whole of a damaged file's header."""
    text = " ".join(str(message).split())
    return text if len(text) <= length else f"{text[:length]}..."
