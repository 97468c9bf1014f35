"""GPUs by their datasheets: what the roofline and the model of a launch reckon with."""

from dataclasses import dataclass

MEASURED = "measured in this run"  # the source of peaks that are not a datasheet's


@dataclass(frozen=True)
class Peaks:
    """A GPU's highest rates: bytes that memory moves a second, float32 flops a second; a multiply-add is two flops."""

    name: str
    architecture: str
    bandwidth: float
    flops: float
    source: str = MEASURED

    def least_seconds(self, byte_count: float, flops: float) -> float:
        """The time of moving the bytes or of doing the flops, whichever is longer."""
        return max(byte_count / self.bandwidth, flops / self.flops)


@dataclass(frozen=True)
class Card(Peaks):
    """A GPU by its datasheet. lanes: the multiply-adds that each of its multiprocessors does in a cycle."""

    multiprocessors: int = 1
    lanes: int = 128

    @property
    def clock(self) -> float:
        """Cycles a second, at the boost clock for which the datasheet gives its flops."""
        return self.flops / (2 * self.lanes * self.multiprocessors)


# What datasheets promise is never shown beside times that were measured on a card.
CARDS = {
    "t4": Card("NVIDIA T4", "sm_75", 0.300e12, 8.1e12, "T4 datasheet", 40, lanes=64),
    "l4": Card("NVIDIA L4", "sm_89", 0.300e12, 30.3e12, "L4 datasheet", 58),
    "rtx4060-laptop": Card("NVIDIA GeForce RTX 4060 Laptop GPU", "sm_89", 0.256e12, 14.6e12, "Ada whitepaper", 24),
    "rtx4090": Card("NVIDIA GeForce RTX 4090", "sm_89", 1.008e12, 82.6e12, "Ada whitepaper", 128),
    "rtx5090": Card("NVIDIA GeForce RTX 5090", "sm_120", 1.792e12, 104.8e12, "RTX Blackwell whitepaper", 170),
    "a100": Card("NVIDIA A100 SXM 80 GB", "sm_80", 2.039e12, 19.5e12, "A100 datasheet", 108, lanes=64),
    "h100": Card("NVIDIA H100 SXM", "sm_90", 3.35e12, 67e12, "H100 datasheet", 132),
    "h200": Card("NVIDIA H200 SXM", "sm_90", 4.8e12, 67e12, "H200 datasheet", 132),
}
