"""The classifier and the FCN designs: forward and backward written out, layer by layer."""

from tinyfcn.networks.classifier import Classifier
from tinyfcn.networks.design import BACKGROUND, Design
from tinyfcn.networks.early import Early
from tinyfcn.networks.network import Network
from tinyfcn.networks.skip import Skip

__all__ = ["BACKGROUND", "Classifier", "Design", "Early", "Network", "Skip"]
