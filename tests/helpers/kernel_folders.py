"""Folders with kernels that a test defines."""

from pathlib import Path


def folder_with(folder: Path, common: str = "", **operations: str) -> Path:
    """Writes a folder of kernels: `operation="text"` becomes operation.cu."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "common.cuh").write_text(common)
    for operation, text in operations.items():
        (folder / f"{operation}.cu").write_text(text)
    return folder
