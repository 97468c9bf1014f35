"""The classifier and the FCN designs: forward and backward written out, layer by layer.

A new design is one file here, with a subclass of Network, and one line below that imports it, such as
`from tinyfcn.networks.wide import Wide as Wide`.
"""

from tinyfcn.networks.classifier import Classifier
from tinyfcn.networks.design import BACKGROUND, Design
from tinyfcn.networks.early import Corrected, Early
from tinyfcn.networks.network import DESIGNS, Network, Recipe
from tinyfcn.networks.options import OPTIONS, Option
from tinyfcn.networks.skip import Skip

__all__ = [
    "BACKGROUND",
    "DESIGNS",
    "OPTIONS",
    "Classifier",
    "Corrected",
    "Design",
    "Early",
    "Network",
    "Option",
    "Recipe",
    "Skip",
]
