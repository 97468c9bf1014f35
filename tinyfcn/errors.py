"""What can go wrong in a way that a user can mend. The command line prints one line and exits with 1."""


class TinyfcnError(Exception):
    """Base of every error whose message is meant for the user: what, expected, found, next step."""


class DataError(TinyfcnError):
    """A data file or image that is missing, truncated, or not what it claims to be."""


class DeviceError(TinyfcnError):
    """A place to run kernels that this machine does not have: no GPU, no driver, no compiler."""


class KernelError(DeviceError):
    """A kernel that does not compile or does not run; the message carries the `.cu` file and line."""


class CheckpointError(TinyfcnError):
    """A run folder or weights file that is incomplete, foreign, or of another network."""
