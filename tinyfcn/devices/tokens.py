"""Splits the text of a kernel file into tokens, as the first phases of a C++ compiler do.

A comment, a string, a macro, or a branch of #if that is not compiled can hide code or look like code. So the structure
of a kernel file is read from its tokens, never from its text.
"""

import operator
import re
from collections.abc import Mapping
from typing import NamedTuple

# Macros that the compiler for GPUs defines. The emulator defines the same ones, so that both compile the same branches.
# nvcc, which compiles other people's files, does not define the second one.
PREDEFINED = {"__CUDACC__": "1", "__CUDACC_RTC__": "1", "__CUDA_ARCH__": "750"}
PREDEFINED_BY_NVCC = {name: value for name, value in PREDEFINED.items() if name != "__CUDACC_RTC__"}
# Some headers define these as nothing, for a compiler that is not CUDA's. Here they keep their meaning.
CUDA_WORDS = {f"__{word}__" for word in ("global", "device", "host", "shared", "constant", "launch_bounds", "align")}
MAX_MACRO = 16  # tokens of a macro that is replaced, so that macros of macros cannot grow without limit
MAX_CONDITION = 50  # tokens after #if; each ( is a recursion
# The operators of conditions, from the loosest to the tightest.
_OPERATORS = (
    {"||": lambda a, b: a or b},
    {"&&": lambda a, b: a and b},
    {"==": operator.eq, "!=": operator.ne},
    {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge},
    {"+": operator.add, "-": operator.sub},
)

# Every alternative takes its characters in one go (*+ and ++ never give any back), a literal that is not closed ends
# with its line, and a comment that is not closed is an error. So the time is proportional to the length of the text.
_TOKEN = re.compile(
    r"""
    (?P<newline>\n)
    | (?P<blank>(?: [^\S\n] | \\[ \t]*\n )++ | //(?: \\[ \t]*\n | [^\n] )*+ | /\*.*?\*/)
    | (?P<literal>
        (?: u8 | [uUL] )?R"(?P<tag>[^\s()\\]{0,16})\(.*?\)(?P=tag)"
        | "(?: \\. | [^"\\\n] )*+"? | '(?: \\. | [^'\\\n] )*+'?
      )
    | (?P<unclosed>/\* | (?: u8 | [uUL] )?R"[^\s()\\]{0,16}\()
    | (?P<number>\.?[0-9](?: [eEpP][+-] | '?[\w.] )*+)
    | (?P<word>[^\W\d][\w$]*+(?: \\\n[\w$]*+ )*+)
    | (?P<mark>:: | -> | << | <= | >= | == | != | && | \|\| | . )
    """,
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    """A token: kind is "word", "number", "literal" (of a string or character) or "mark" (operators, brackets).

    It is text[start:end] of the file; a token that a macro produces has the start and end of the macro's name.
    """

    kind: str
    text: str
    start: int
    end: int


NO_TOKEN = Token("mark", "", 0, 0)
Macros = dict[str, list[Token]]


class Unreadable(ValueError):
    """A part of a kernel file that the reader does not understand, and its position in the text."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position = position


class Tokens(NamedTuple):
    """The tokens of a text, without comments and without branches of #if that are not compiled.

    written: as they stand in the text, those of directives such as #define included. compiled: without directives, and
    with macros that have no parameters replaced.
    """

    written: list[Token]
    compiled: list[Token]


def tokenise(text: str, predefined: Mapping[str, str] = PREDEFINED) -> Tokens:
    """The tokens of a text whose lines end with "\\n", and for whose compiler the macros `predefined` are defined.

    Raises:
        Unreadable: a comment, a raw string or an #if is not closed; or a macro with parameters makes kernels.
    """
    written: list[Token] = []
    compiled: list[Token] = []
    known = {**predefined, "__cplusplus": "201703", "true": "1"}
    macros = {name: [Token("number", value, 0, 0)] for name, value in known.items()}
    conditions = _Conditions()
    directive: list[Token] | None = None
    is_first = True  # in its line
    for match in _TOKEN.finditer(text + "\n"):
        kind = match.lastgroup or ""
        if kind == "unclosed":
            raise Unreadable(match.start(), f"this {match[0]} is not closed")
        if kind == "newline":
            if directive:
                if conditions.compiles(directive, macros):
                    written += directive
                    _define(directive[1:], macros)
                directive = None
            is_first = True
        elif kind != "blank":
            token = Token(kind, match[0], *match.span())
            if kind == "word" and "\\" in token.text:
                token = token._replace(text=token.text.replace("\\\n", ""))
            if is_first and token.text == "#":
                directive = []
            is_first = False
            if directive is not None:
                directive.append(token)
            elif conditions.hold:
                written.append(token)
                body = macros.get(token.text, [token])
                compiled += [Token(part.kind, part.text, token.start, token.end) for part in body]
    if conditions.open:
        raise Unreadable(conditions.open[-1].start, "this #if has no #endif")
    return Tokens(written, compiled)


def _define(directive: list[Token], macros: Macros) -> None:
    """Notes a #define or an #undef. A macro with parameters, or a long one, is noted as itself, and never replaced."""
    command, name, *body = [*directive, NO_TOKEN, NO_TOKEN][: max(2, len(directive))]
    if command.text == "undef":
        macros.pop(name.text, None)
    elif command.text == "define":
        has_parameters = bool(body) and body[0].text == "(" and body[0].start == name.end
        if has_parameters and any(token.text == "__global__" for token in body):
            raise Unreadable(name.start, f"the macro {name.text} makes kernels: write each of them out")
        body = [replaced for token in body for replaced in macros.get(token.text, [token])]
        is_replaced = not has_parameters and len(body) <= MAX_MACRO and name.text not in CUDA_WORDS
        macros[name.text] = body if is_replaced else [name]


class _If(NamedTuple):
    start: int
    surrounding: bool  # whether the text around the #if is compiled
    taken: bool  # whether the condition of this branch or of an earlier one holds


class _Conditions:
    """The #if that are open, and whether all of their conditions hold."""

    def __init__(self) -> None:
        self.open: list[_If] = []
        self.hold = True

    def compiles(self, directive: list[Token], macros: Macros) -> bool:
        """Whether a directive is compiled: false for the conditions themselves, and where they do not hold."""
        command, *words = [token.text for token in directive[1:]] or [""]
        if command in ("if", "ifdef", "ifndef"):
            holds = _holds(words if command == "if" else ["defined", *words], macros) != (command == "ifndef")
            self.open.append(_If(directive[0].start, self.hold, holds))
            self.hold = self.hold and holds
        elif command in ("elif", "else") and self.open:
            start, surrounding, taken = self.open.pop()
            holds = not taken and (command == "else" or _holds(words, macros))
            self.open.append(_If(start, surrounding, taken or holds))
            self.hold = surrounding and holds
        elif command == "endif" and self.open:
            self.hold = self.open.pop().surrounding
        else:
            return self.hold
        return False


def _holds(condition: list[str], macros: Macros) -> bool:
    """Whether the condition of an #if is true. One that is not understood is taken as true."""
    words: list[str] = []
    rest = iter(condition)
    for word in rest:
        if word == "defined":
            name = next(rest, "")
            words.append(str(int((next(rest, "") if name == "(" else name) in macros)))
            if name == "(":
                next(rest, "")
        else:
            replaced = [part.text for part in macros.get(word, [NO_TOKEN._replace(text=word)])]
            words += ["0" if re.match(r"[^\W\d]", part) else part for part in replaced]
    try:
        return len(words) > MAX_CONDITION or bool(_value(words) or words)
    except (ValueError, IndexError):
        return True


def _value(words: list[str], level: int = 0) -> int:
    """The value of the expression with which a list of words begins; removes its words from the list."""
    if level < len(_OPERATORS):
        left = _value(words, level + 1)
        while words and words[0] in _OPERATORS[level]:
            combine = _OPERATORS[level][words.pop(0)]
            left = int(combine(left, _value(words, level + 1)))
        return left
    word = words.pop(0)
    if word == "(":
        value = _value(words)
        if words.pop(0) != ")":
            raise ValueError
        return value
    if word in ("!", "-"):
        value = _value(words, level)
        return -value if word == "-" else int(not value)
    return int(word.rstrip("uUlL").replace("'", ""), 0)
