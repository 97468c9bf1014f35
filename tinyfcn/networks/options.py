"""The options of the designs. `Design`, the training settings and the command line all read this list.

A network's class names those that it takes. Every other one must keep its default there: see `Design.refuse_foreign`.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """A choice that some designs offer.

    name: the field of Design; of FcnSettings if `of_training`. default: its value where a design does not take it.
    choices: all values it may have; () for any number. flag: the option of `tinyfcn train-fcn`; of a bool, "--on/--off"
    or "--on". help: what it does. takers: what the designs that can take it have, for messages.
    """

    name: str
    default: Any
    choices: tuple[Any, ...]
    flag: str
    help: str
    takers: str = ""
    of_training: bool = False

    def spelled(self, value: Any) -> str:
        """The value as the command line spells it: "--reduce last", "--plain-start"."""
        on, _, off = self.flag.partition("/")
        if not isinstance(value, bool):
            return f"{on} {value}"
        return on if value else off or f"no {on}"


REDUCE = Option(
    "reduce",
    "first",
    ("first", "last"),
    "--reduce",
    "Reduce 32 channels to the classes before upsampling, or after it.",
)
UPSAMPLE = Option(
    "upsample",
    "staged",
    ("staged", "once"),
    "--upsample",
    "Upsample by two transposed convolutions of stride 2, or by one of stride 4.",
)
ARTICLE_SKIP = Option(
    "article_skip",
    False,
    (False, True),
    "--article-skip",
    "Add the skip connection of the article's notebook: the mean with a 1x1 convolution of pool1.",
)
DECODER_RELU = Option(
    "decoder_relu",
    False,
    (False, True),
    "--decoder-relu",
    "Add a ReLU after each transposed convolution, as the article's later notebooks have it.",
)
LABELS = Option(
    "labels",
    "digits",
    ("digits", "binary"),
    "--labels",
    "Learn eleven classes (digits, background), or two (ink, background).",
    takers="a class for background",
)
FREEZE = Option(
    "freeze",
    False,
    (False, True),
    "--freeze-encoder/--finetune-encoder",
    "Leave the classifier's weights as they are, or train them too.",
    takers="pretrained layers",
)
INK_START = Option(
    "ink_start",
    True,
    (False, True),
    "--ink-start/--plain-start",
    "Begin with two channels that tell ink from background, or with random weights only.",
)
UP1_KERNEL = Option(
    "up1_kernel",
    4,
    (4, 6, 8),
    "--up1-kernel",
    "Side of the kernel of the first transposed convolution.",
)
UP2_KERNEL = Option(
    "up2_kernel",
    6,
    (6, 8),
    "--up2-kernel",
    "Side of the kernel of the second transposed convolution.",
)
WIDTH = Option(
    "width",
    16,
    (4, 8, 12, 16, 24, 32),
    "--width",
    "Channels of the two transposed convolutions.",
)
UNLABELLED = Option(
    "unlabelled",
    "softmax",
    ("softmax", "zero"),
    "--unlabelled",
    "The gradient of a background pixel: softmax, as TensorFlow computes it, which whitens the background, or zero, "
    "which is mathematically right.",
    takers="no class for background",
    of_training=True,
)
L2 = Option(
    "l2",
    0.0,
    (),
    "--l2",
    "Weight of the penalty on the weights of the transposed convolutions; the article declares 1e-3.",
    takers="transposed convolutions",
    of_training=True,
)
OPTIONS = (
    LABELS,
    REDUCE,
    UPSAMPLE,
    INK_START,
    ARTICLE_SKIP,
    DECODER_RELU,
    UP1_KERNEL,
    UP2_KERNEL,
    WIDTH,
    FREEZE,
    UNLABELLED,
    L2,
)
