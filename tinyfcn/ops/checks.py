"""Shape checks for the launchers. A kernel accepts any pointer, so mismatches must be reported before the launch."""

from typing import Any


def expect_shape(name: str, array: Any, shape: tuple[int | None, ...]) -> None:
    """Raises ValueError, naming the argument, unless `array` has this shape; None stands for any size."""
    fits = len(array.shape) == len(shape) and all(
        want in (None, have) for want, have in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have shape ({wanted}), got {tuple(array.shape)}")


def expect_positive(name: str, size: int, why: str) -> None:
    """Raises ValueError unless the size that an operation's output would have is at least 1."""
    if size < 1:
        raise ValueError(f"{name} would be {size}: {why}")


def expect_at_least_one(name: str, number: int) -> None:
    """Raises ValueError, naming the argument, unless `number` is at least 1: kernels divide by it, or loop up to it."""
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
