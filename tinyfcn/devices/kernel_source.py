"""Finds the `.cu` files, prepends `common.cuh` to each, and parses the name and the parameters of every kernel.

Both devices compile the text that this module returns, so the emulator compiles the same code as a GPU. With the parsed
parameters, `launch.py` checks each launch against the declaration of its kernel.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import tinyfcn.kernels
from tinyfcn.errors import KernelError

KERNELS = Path(tinyfcn.kernels.__file__).parent
COMMON = "common.cuh"

_BOUNDS = r"(?:__launch_bounds__\s*\([^)]*\)\s*)?"  # before "void" or after it
_KERNEL = re.compile(
    r'(?:extern\s+"C"|template\s*<([^<>]*)>)\s*__global__\s+'
    rf"{_BOUNDS}void\s+{_BOUNDS}(\w+)\s*\(([^)]*)\)",
    re.DOTALL,
)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: `type` is the element type ("float", "int", "unsigned char", ...).

    An array declared `= nullptr` is optional: a launch may give None for it.
    """

    name: str
    type: str
    is_array: bool
    is_const: bool
    is_optional: bool = False


@dataclass(frozen=True)
class Kernel:
    """A `__global__` function: its name, its operation (the name of its file), its line, and its parameters.

    `template` names the template parameters of a kernel that is a C++ template. Such a kernel is compiled for each
    `instance`: the values of these parameters in a launch.
    """

    name: str
    operation: str
    line: int
    parameters: tuple[Parameter, ...]
    template: tuple[str, ...] = ()
    instance: tuple[int, ...] = ()

    @property
    def expression(self) -> str:
        """The kernel or its instance in C++: "relu_forward", "fast_conv_forward<8, 16, ...>"."""
        return f"{self.name}<{', '.join(map(str, self.instance))}>" if self.instance else self.name


def operations(folder: Path = KERNELS) -> list[str]:
    """The names of all `.cu` files, sorted: "add", "conv2d", ..."""
    return sorted(path.stem for path in folder.glob("*.cu"))


def read(operation: str, folder: Path = KERNELS) -> str:
    """The text to compile for one operation. With its `#line` directives, compilers report the lines of the files."""
    parts = [(COMMON, folder / COMMON), (f"{operation}.cu", folder / f"{operation}.cu")]
    return "".join(f'#line 1 "{name}"\n{path.read_text(encoding="utf-8")}\n' for name, path in parts)


def kernels(folder: Path = KERNELS) -> dict[str, Kernel]:
    """All kernels of the folder by name. Each call reads the files anew.

    Raises:
        KernelError: two files define a kernel of the same name.
    """
    found: dict[str, Kernel] = {}
    for operation in operations(folder):
        for kernel in parse((folder / f"{operation}.cu").read_text(encoding="utf-8"), operation):
            if kernel.name in found:
                raise KernelError(
                    f"kernel {kernel.name} is defined in both {found[kernel.name].operation}.cu and {operation}.cu: "
                    "rename one of them"
                )
            found[kernel.name] = kernel
    return found


def parse(text: str, operation: str) -> list[Kernel]:
    """The kernels in a `.cu` file's text, in order."""
    text = _COMMENT.sub(lambda comment: "\n" * comment[0].count("\n"), text)
    return [
        Kernel(
            name, operation, text.count("\n", 0, found.start()) + 1, tuple(_parameters(inside)), _names(template or "")
        )
        for found in _KERNEL.finditer(text)
        for template, name, inside in [found.groups()]
    ]


def _names(template: str) -> tuple[str, ...]:
    """The names in "int C, bool PADDED"."""
    return tuple(parameter.split()[-1] for parameter in template.split(",") if parameter.strip())


def _parameters(inside: str) -> list[Parameter]:
    parameters = []
    for declaration in filter(None, (part.strip() for part in inside.split(","))):
        declaration, _, default = declaration.partition("=")
        is_array = "*" in declaration
        words = declaration.replace("*", " ").replace("__restrict__", " ").split()
        is_const = "const" in words
        words = [word for word in words if word != "const"]
        parameters.append(Parameter(words[-1], " ".join(words[:-1]), is_array, is_const, default.strip() == "nullptr"))
    return parameters
