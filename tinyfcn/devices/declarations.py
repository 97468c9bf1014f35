"""Parses the declarations of a kernel file that launches depend on: kernels, their parameters, and shared variables."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from textwrap import shorten

from tinyfcn.devices.tokens import Token, Unreadable

# These stand in a declaration beside the type.
_QUALIFIER = re.compile(
    "const|volatile|restrict|__restrict|__restrict__|register|struct|class|enum|union|__grid_constant__|"
    "extern|static|inline|__shared__"
)
# These may take arguments in parentheses.
_ATTRIBUTE = re.compile(
    "__launch_bounds__|__cluster_dims__|__block_size__|__maxnreg__|__align__|__attribute__|alignas|noexcept"
)
# A type may have several of these words, and no parameter has one of them as its name.
_BUILTIN = re.compile("bool|char|short|int|long|signed|unsigned|float|double|void")
_FULL_NAMES = {
    "uchar": "unsigned char",
    "ushort": "unsigned short",
    "uint": "unsigned int",
    "ulong": "unsigned long",
    "unsigned": "unsigned int",
    "signed": "int",
    "signed int": "int",
    "short int": "short",
    "unsigned short int": "unsigned short",
    "long int": "long",
    "unsigned long int": "unsigned long",
    "long unsigned int": "unsigned long",
    "long unsigned": "unsigned long",
    "long long int": "long long",
    "unsigned long long int": "unsigned long long",
    "long long unsigned int": "unsigned long long",
    "size_t": "unsigned long",
    "ptrdiff_t": "long",
    "clock_t": "long",
    **{f"int{bits}_t": type_ for bits, type_ in ((8, "signed char"), (16, "short"), (32, "int"), (64, "long"))},
    **{f"uint{bits}_t": f"unsigned {type_}" for bits, type_ in ((8, "char"), (16, "short"), (32, "int"), (64, "long"))},
}
# Words of the statements outside of functions that a GPU's compiler needs.
_DEVICE_STATEMENT = {
    *(
        "__global__",
        "__device__",
        "__constant__",
        "__shared__",
        "__managed__",
        "const",
        "constexpr",
        "typedef",
        "using",
    ),
    *("struct", "class", "union", "enum", "namespace", "static_assert", "asm"),
}
_HOST_NAME = re.compile("cuda[A-Z]|cu(blas|rand|dnn|fft|sparse)")
_NULL = ("nullptr", "NULL")
_CLOSING = {"(": ")", "[": "]", "{": "}"}
MAX_DEPTH = 256  # of brackets within brackets; clang allows as many
MAX_QUOTED = 60  # characters of a parameter in a message


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: `type` is the element type ("float", "int", "unsigned char", ...).

    An array that is declared `= nullptr`, or that its kernel compares with it, is optional: a launch may give None.
    """

    name: str
    type: str
    is_array: bool
    is_const: bool
    is_optional: bool = False


@dataclass(frozen=True)
class Function:
    """A function with a body: text[start:end] goes from its name to the closing brace.

    first: where its declaration starts. body: behind its opening brace. scope: the namespaces around it, "a::b::".
    is_c: whether it is extern "C". is_device: whether a GPU may call it: a kernel, or a function that is `__device__`
    or constexpr. bounds: text[start:end] is what __launch_bounds__ takes. For a kernel only: its parameters, the names
    of its template parameters, and the defaults of the last of these.
    """

    name: str
    first: int
    start: int
    body: int
    end: int
    scope: str
    is_c: bool
    is_kernel: bool
    is_device: bool
    bounds: tuple[int, int] | None
    parameters: tuple[Parameter, ...] = ()
    template: tuple[str, ...] = ()
    defaults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shared:
    """The declaration of shared variables in text[start:end]: `__shared__ float tile[16][17], sum;`.

    word: the token __shared__ (or the macro that stands for it), or None if an attribute precedes it. is_dynamic:
    whether it declares an array without a size, `extern __shared__ float tile[];`. commas: the positions of those
    between variables of a type that is one word or several.
    """

    type: str
    names: tuple[str, ...]
    is_dynamic: bool
    is_volatile: bool
    commas: tuple[int, ...]
    in_function: bool
    word: Token | None
    start: int
    end: int


class Declarations:
    """The functions of a text (those in classes left out) and its shared variables, from its compiled tokens.

    Types that `typedef` or `using` gives a name to are replaced in the parameters of kernels.

    Raises:
        Unreadable: brackets that do not match, or a kernel whose name or parameters are not understood.
    """

    def __init__(self, tokens: list[Token]) -> None:
        self.functions: list[Function] = []
        self.shared: list[Shared] = []
        self.tokens = tokens
        self.host_statements: list[tuple[int, int]] = []  # variables and declarations that no GPU knows: start, end
        self._aliases: dict[str, list[str]] = {}
        self._closing = _pairs(self.tokens)
        scopes: list[tuple[str, bool]] = []  # of the open namespaces and linkage blocks: name, whether extern "C"
        first = index = 0  # of the statement, and the current token
        body = -1  # the closing brace of the function, class or initialiser that is read or was read last
        while index < len(self.tokens):
            text = self.tokens[index].text
            if text == "(" and index > body:
                index = self._closing[index]  # a { among parameters is a default value
            elif text in (";", "{", "}"):
                statement = range(first, index)
                if text == ";":
                    self._read_shared(statement, index < body)
                    if index > body:
                        self._read_alias(self._texts(statement))
                        self._read_host_statement(statement)
                elif text == "{" and index > body:
                    scope = self._scope(statement)
                    if scope:
                        scopes.append(scope)
                    else:
                        self._read_function(statement, index, scopes)
                        body = self._closing[index]
                elif index > body:
                    scopes.pop()
                first = index + 1
            index += 1

    def _texts(self, indices: Iterable[int]) -> list[str]:
        return [self.tokens[index].text for index in indices]

    def _plain(self, indices: range) -> Iterator[int]:
        """The indices without those of attributes: [[nodiscard]], __align__(16) ..."""
        skipped = -1
        for index in indices:
            if index > skipped:
                text, next_text = self.tokens[index].text, self.tokens[index + 1].text
                if _ATTRIBUTE.fullmatch(text):
                    skipped = self._closing[index + 1] if next_text == "(" else index
                elif text == next_text == "[":
                    skipped = self._closing[index]
                else:
                    yield index

    def _scope(self, statement: range) -> tuple[str, bool] | None:
        """The namespace or the linkage block that begins: its name, and whether it is extern "C". None for others."""
        texts = self._texts(self._plain(statement))
        if len(texts) == 2 and texts[0] == "extern":
            return "", texts[1] == '"C"'
        if "namespace" in texts:
            return "".join(f"{word}::" for word in texts[texts.index("namespace") + 1 :] if word != "::"), False
        return None

    def _read_alias(self, texts: list[str]) -> None:
        """Notes `typedef float real;` and `using real = float;`."""
        match texts:
            case ["typedef", *type_, name]:
                self._aliases[name] = self._unaliased(type_)
            case ["using", name, "=", *type_]:
                self._aliases[name] = self._unaliased(type_)

    def _read_host_statement(self, statement: range) -> None:
        """Notes `int count;` and `void f();` outside of functions, if neither a GPU nor a constant needs them."""
        texts = self._texts(statement)
        is_macro = len(texts) > 1 and texts[1] == "("
        is_template = texts[:2] == ["template", "<"]  # and not the instance of one
        if texts[-1:] == [")"] and "=" not in texts:  # the parameters of a function may be const
            texts = texts[: texts.index("(")]
        if len(texts) > 1 and not is_macro and not is_template and _DEVICE_STATEMENT.isdisjoint(texts):
            self.host_statements.append((self.tokens[statement.start].start, self.tokens[statement.stop].end))

    def _read_host_class(self, first: int, texts: list[str], brace: int) -> None:
        """Notes a class that calls the host's CUDA functions: a timer, a check of errors ..."""
        end = self._closing[brace]
        body = self._texts(range(brace, end))
        is_of_host = any(_HOST_NAME.match(text) for text in body) and "__device__" not in body
        if is_of_host and not {"struct", "class"}.isdisjoint(texts):
            while self.tokens[end].text != ";" and end + 1 < len(self.tokens):
                end += 1
            self.host_statements.append((first, self.tokens[end].end))

    def _unaliased(self, texts: list[str]) -> list[str]:
        return [each for text in texts for each in self._aliases.get(text, [text])]

    def _read_function(self, statement: range, brace: int, scopes: list[tuple[str, bool]]) -> None:
        indices = [*self._plain(statement)]
        texts = self._texts(indices)
        opening = end = -1  # of the last list in parentheses after a word: there may be others before it
        for previous, index in pairwise(indices):
            if self.tokens[index].text == "(" and index > end:
                end = self._closing[index]
                before = self.tokens[previous]
                if before.kind == "word" and not _BUILTIN.fullmatch(before.text):
                    opening, name = index, before
        is_kernel = "__global__" in texts and texts[:3] != ["template", "<", ">"]  # a specialisation has its template
        first = self.tokens[statement.start].start if statement else 0
        if opening < 0:
            if is_kernel:
                raise Unreadable(first, "this __global__ function has no name, or no parameters in parentheses")
            self._read_host_class(first, texts, brace)
            return
        template = [*self._template(indices)] if is_kernel else []
        self.functions.append(
            Function(
                name.text,
                first,
                name.start,
                self.tokens[brace].end,
                self.tokens[self._closing[brace]].end,
                "".join(name for name, _ in scopes),
                '"C"' in texts or any(is_c for _, is_c in scopes),
                is_kernel,
                not {"__global__", "__device__", "constexpr"}.isdisjoint(texts),
                self._bounds(statement),
                tuple(self._parameters(opening, self._compared_with_null(brace))) if is_kernel else (),
                tuple(name for name, _ in template),
                tuple(default for _, default in template if default),
            )
        )

    def _bounds(self, statement: range) -> tuple[int, int] | None:
        for index in statement:
            if self.tokens[index].text == "__launch_bounds__" and self.tokens[index + 1].text == "(":
                return self.tokens[index + 1].end, self.tokens[self._closing[index + 1]].start
        return None

    def _compared_with_null(self, brace: int) -> set[str]:
        """The names that a function compares with nullptr."""
        texts = self._texts(range(brace, self._closing[brace]))
        triples = zip(texts, texts[1:], texts[2:], strict=False)
        return {name for name, mark, null in triples if mark in ("==", "!=") and null in _NULL}

    def _parameters(self, opening: int, optional: set[str]) -> Iterator[Parameter]:
        parts = [*self._parts(range(opening + 1, self._closing[opening]))]
        for number, part in enumerate(parts if parts not in ([[]], [["void"]]) else [], 1):
            declared, default = _halves(part)
            declared = self._unaliased(declared[:-1]) + declared[-1:] if len(declared) > 1 else declared
            name, type_, pointers, sizes = _declared(declared)
            if not type_:
                text = shorten(" ".join(part), MAX_QUOTED, placeholder=" ...")
                raise Unreadable(self.tokens[opening].start, f"parameter {number} is not understood: {text!r}")
            pointers += bool(sizes)  # float x[] is float* x
            before_star = declared[: declared.index("*")] if "*" in declared else declared
            yield Parameter(
                name or f"parameter {number}",
                type_ + "*" * (pointers - 1),
                pointers > 0,
                "const" in before_star,
                pointers > 0 and (name in optional or default in ([null] for null in _NULL)),
            )

    def _template(self, indices: list[int]) -> Iterator[tuple[str, str]]:
        """The names in `template <int C, bool = false>` ("" for a parameter without one), and the defaults, or ""."""
        if self.tokens[indices[0]].text != "template":
            return
        for part in self._parts(range(indices[1] + 1, indices[-1]), is_template=True):
            declared, default = _halves(part)
            yield declared[-1] if len(declared) > 1 else "", " ".join(default)

    def _parts(self, indices: range, is_template: bool = False) -> Iterator[list[str]]:
        """The texts between the commas of a list. A comma inside brackets, those of a template included, ends no part.

        The list ends with `indices`, or with the > that closes a template's parameters.
        """
        part: list[str] = []
        depth = angles = 0
        for index in self._plain(indices):
            text = self.tokens[index].text
            depth += (text in _CLOSING) - (text in _CLOSING.values())
            if text in ("<", ">") and not depth:
                angles += 1 if text == "<" else -1
                if angles < 0 and is_template:
                    break
                angles = max(angles, 0)
            if text == "," and not depth and not angles:
                yield part
                part = []
            else:
                part.append(text)
        if angles > 0:
            raise Unreadable(self.tokens[indices.start].start, "a < of this list is not closed: put it in parentheses")
        yield part

    def _commas(self, indices: list[int], is_plain: bool) -> Iterator[int]:
        """The positions of the commas outside of brackets."""
        closed = -1
        for index in indices if is_plain else ():
            if index > closed:
                closed = self._closing.get(index, closed)
                if self.tokens[index].text == ",":
                    yield self.tokens[index].start

    def _read_shared(self, statement: range, in_function: bool) -> None:
        indices = [*self._plain(statement)]
        texts = self._texts(indices)
        if "__shared__" not in texts:
            return
        word = indices[texts.index("__shared__")]
        before = texts[: texts.index("__shared__")]
        first = max((i + 1 for i, text in enumerate(before) if text in (")", "else", "do", ":")), default=0)
        parts = [*self._parts(range(indices[first], statement.stop))]
        name, type_, pointers, sizes = _declared(self._unaliased(parts[0]))
        others = (_declared(["", *part])[0] for part in parts[1:])
        self.shared.append(
            Shared(
                type_ + "*" * pointers,
                (name, *others),
                "extern" in parts[0] and sizes == ["[", "]"],
                "volatile" in parts[0],
                tuple(self._commas(indices[first:], is_plain="<" not in parts[0] and not pointers)),
                in_function,
                None if self.tokens[word - 1].text == ")" else self.tokens[word],
                self.tokens[indices[first]].start,
                self.tokens[statement.stop].end,
            )
        )


def _pairs(tokens: list[Token]) -> dict[int, int]:
    """The index of each opening bracket -> the index of the bracket that closes it."""
    pairs: dict[int, int] = {}
    open_: list[int] = []
    for index, token in enumerate(tokens):
        if token.text in _CLOSING:
            open_.append(index)
            if len(open_) > MAX_DEPTH:
                raise Unreadable(token.start, f"brackets are more than {MAX_DEPTH} deep")
        elif token.text in _CLOSING.values():
            if not open_:
                raise Unreadable(token.start, f"this {token.text} closes nothing")
            opening = tokens[open_[-1]]
            if _CLOSING[opening.text] != token.text:
                raise Unreadable(opening.start, f"this {opening.text} is not closed")
            pairs[open_.pop()] = index
    if open_:
        raise Unreadable(tokens[open_[0]].start, f"this {tokens[open_[0]].text} is not closed")
    return pairs


def _halves(texts: list[str]) -> tuple[list[str], list[str]]:
    """What stands before and after the first =."""
    equals = texts.index("=") if "=" in texts else len(texts)
    return texts[:equals], texts[equals + 1 :]


def _declared(texts: list[str]) -> tuple[str, str, int, list[str]]:
    """The name that is declared ("" for none), its type, how often it is a pointer, and its sizes: ["[", "16", "]"]."""
    if ("(", "*") in pairwise(texts) and texts[-1] == "]":  # float (*rows)[16] is a pointer to floats too
        texts = [text for text in texts[: texts.index(")")] if text != "("]
    bracket = texts.index("[") if "[" in texts else len(texts)
    declared, sizes = texts[:bracket], texts[bracket:]
    words = [text for text in declared if text != "*" and not _QUALIFIER.fullmatch(text)]
    is_named = len(words) > 1 and words[-2] != "::" and words[-1].isidentifier() and not _BUILTIN.fullmatch(words[-1])
    name = words.pop() if is_named else ""
    type_ = " ".join(words).replace(" :: ", "::")
    return name, full_name(type_), declared.count("*"), sizes


def full_name(type_: str) -> str:
    """The usual name of a type: "unsigned int" for "unsigned"."""
    return _FULL_NAMES.get(type_, type_)
