"""How kernel files are found and read: hidden and damaged files, and C++ that hides or imitates kernels."""

import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from helpers.kernel_folders import folder_with
from hypothesis import given
from hypothesis import strategies as st

from tinyfcn.devices import kernel_source
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.emulator.translate import translate
from tinyfcn.devices.kernel_source import Parameter, Source
from tinyfcn.errors import KernelError

# Tests mark the line of a kernel by /*here*/.
K = '/*here*/ extern "C" __global__ void k() {}'


def kernels(text: str) -> dict[str, int]:
    """The expression and the line of each kernel of a text."""
    return {kernel.expression: kernel.line for kernel in Source(text, "file").kernels}


@pytest.mark.parametrize(
    "text",
    [
        f"// {K}",
        f"/* {K.replace('*/', '')} */",
        f"// a comment that goes on \\\n{K}",
        f'const char* text = R"(\n{K}\n)";',
        f"#if 0\n{K}\n#endif",
        f"#if 0\n#if 1\n#else\n#endif\n{K}\n#endif",
        f"#if 1\n#elif 1\n{K}\n#else\n{K}\n#endif",
        f"#ifdef NEVER_DEFINED\n{K}\n#endif",
        f"#define ONE 1\n#if defined(ONE) && !(ONE + 1 == 2 || 0)\n{K}\n#endif",
        f"#define ONE\n#undef ONE\n#if defined ONE\n{K}\n#endif",
        f"#define UNUSED {K}",
        'extern "C" __global__ void k();',
        "template __global__ void k<3>(float* x);",
    ],
)
def test_what_only_looks_like_a_kernel_is_none(text: str) -> None:
    assert kernels(f"{text}\n__global__ void other() {{}}") == {"other": text.count("\n") + 2}


@pytest.mark.parametrize(
    "text",
    [
        f'const char* text = "/*"; {K}  // */',
        f"const char quote = '\"'; {K}",
        f'const char* text = R"x(" /* )" )x"; {K}',
        f"const int separated = 1'000; {K}",
        f"int initialised[] = {{1, 2}}; struct S {{ int f() {{ return 1; }} }}; {K}",
        f"auto lambda = [](int x) {{ return x; }}; {K}",
        f"#error don't \"\n{K}",
        f"#if 0\ndon't {{ \" ' R\"\n#else\n{K}\n#endif",
        f"#if __CUDA_ARCH__ >= 700 && __cplusplus >= 201703L\n{K}\n#endif",
        f"#if __has_include(<x.h>)\n{K}\n#else\n{{\n#endif",
        f"#if true\n{K}\n#endif",
        f"#ifndef FILE_CU\n#define FILE_CU\n{K}\n#endif",
        f"#ifndef __CUDACC__\n#define __global__\n#endif\n{K}",
        '#ifdef __cplusplus\nextern "C" {\n#endif\n/*here*/ __global__ void k() {}\n#ifdef __cplusplus\n}\n#endif',
        '#define KERNEL extern "C" __global__ __launch_bounds__(64) void\n/*here*/ KERNEL k() {}',
        f"__device__ inline float f(float x) {{ return x; }}\n{K}",
        f'extern "C" __global__ void k();\n{K}',
        "/*here*/ static __global__ void k() {}",
        "/*here*/ __global__ static void k() {}",
        "/*here*/ __global__ void __launch_bounds__((8 * 4) / (2 * 1), 2) k() {}",
        "/*here*/ __launch_bounds__(64) __global__ void k() {}",
        "/*here*/ [[maybe_unused]] __global__ void __attribute__((noinline)) k() {}",
        "/*here*/ __global__ void OTHER_WORD(64) k(void) noexcept {}",
        "/*here*/ __glo\\\nbal__ void k() {}",
        "\n/*here*/ __global__\nvoid\nk(\n)\n{}",
        "/*here*/ template <int N>\n__global__ void k() {}\ntemplate <> __global__ void k<3>() {}",
        "namespace {\n/*here*/ __global__ void k() {}\n}",
    ],
)
def test_a_kernel_is_found_whatever_stands_around_it(text: str) -> None:
    assert kernels(text) == {"k": text[: text.index("/*here*/")].count("\n") + 1}


def test_names_linkage_and_template_parameters_of_kernels() -> None:
    (plain, inner, template) = Source(
        """__global__ void plain(int n) {}
        namespace a { namespace { inline namespace b::c { __global__ void inner() {} } } }
        template <int A,
                  bool B = (3 > 2), class T = Pair<int, float>, typename = void>
        __global__ void template_(T* x) {}""",
        "file",
    ).kernels
    assert (plain.expression, inner.expression) == ("plain", "a::b::c::inner")
    assert not plain.is_c
    assert (template.template, template.required) == (("A", "B", "T", ""), 1)
    linked = Source('extern "C" { __global__ void k() {} } extern "C++" { __global__ void m() {} }', "file").kernels
    assert [kernel.is_c for kernel in linked] == [True, False]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("float x[]", Parameter("x", "float", True, False)),
        ("const float x[16]", Parameter("x", "float", True, True)),
        ("float const* __restrict__ x", Parameter("x", "float", True, True)),
        ("float* const x", Parameter("x", "float", True, False)),
        ("const float* x = nullptr", Parameter("x", "float", True, True, True)),
        ("const float* x = NULL", Parameter("x", "float", True, True, True)),
        ("size_t n", Parameter("n", "unsigned long", False, False)),
        ("real* x", Parameter("x", "float", True, False)),
        ("const two_reals x[]", Parameter("x", "float2", True, True)),
        ("float** x", Parameter("x", "float*", True, False)),
        ("float& x", Parameter("x", "float &", False, False)),
        ("unsigned n", Parameter("n", "unsigned int", False, False)),
        ("int n = f(1, 2) >> 1", Parameter("n", "int", False, False)),
        ("float4 x = {1, 2, 3, 4}", Parameter("x", "float4", False, False)),
        ("[[maybe_unused]] alignas(16) /* , int m */ int n  // ,\n", Parameter("n", "int", False, False)),
        ("struct Pair<int, float> x", Parameter("x", "Pair < int , float >", False, False)),
        ("unsigned int", Parameter("parameter 1", "unsigned int", False, False)),
        ("std::uint32_t", Parameter("parameter 1", "std::uint32_t", False, False)),
        ("DATA RESTRICT x", Parameter("x", "float", True, False)),
    ],
)
def test_parameters(text: str, expected: Parameter) -> None:
    macros = "#define RESTRICT __restrict__\n#define DATA float*\n"
    macros += "typedef float real;\nusing two_reals = float2;\n"
    for following in ("", ", int last"):
        (kernel,) = Source(f"{macros}__global__ void k({text}{following}) {{}}", "file").kernels
        assert kernel.parameters[0] == expected
        assert len(kernel.parameters) == 1 + bool(following)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n__global__ void k(const) {}", r"file\.cu:2: parameter 1 is not understood: 'const'"),
        ("__global__ void k(int n,) {}", r"file\.cu:1: parameter 2 is not understood: ''"),
        ("__global__ void k(bool b = A < B, int n) {}", r"file\.cu:1: a < of this list is not closed"),
        ("__global__ void (k)(int n) {}", r"file\.cu:1: this __global__ function has no name"),
        ("int a;\n__global__ void k() {\n{ }\n", r"file\.cu:2: this { is not closed"),
        ("__global__ void k() { f(1; }", r"file\.cu:1: this \( is not closed"),
        ("__global__ void k() {\n}}", r"file\.cu:2: this } closes nothing"),
        (f"\n/* {K.replace('*/', '')}", r"file\.cu:2: this /\* is not closed"),
        (f'\nconst char* text = R"x({K})"', r"file\.cu:2: this R\"x\( is not closed"),
        ("\n#if 0\n__global__ void k() {}", r"file\.cu:2: this #if has no #endif"),
        (
            "#define MAKE(name) __global__ void name() {}\nMAKE(k)",
            r"file\.cu:1: the macro MAKE makes kernels: write each",
        ),
        (f"{K}\n\n{K}", r"file\.cu:3: kernel k stands on line 1 too: rename one"),
        ("void f() " + "{" * 300 + "}" * 300, r"file\.cu:1: brackets are more than 256 deep"),
    ],
)
def test_what_is_not_understood_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(KernelError, match=f"^{message}"):
        Source(text, "file", common="// one\n// two\n")


def test_shared_variables_are_read() -> None:
    text = """__global__ void k(int n) {
        // extern __shared__ float comment[];
        const char* text = "extern __shared__ float literal[];";
        if (n) __shared__ float tile[16][N(1, 2)], sum;
        extern __shared__ __align__(16) volatile unsigned dynamic[];
        float __shared__ *pointer;
    }
    extern __shared__ int outside[];"""
    found = [
        (each.type, each.names, each.is_dynamic, each.in_function, text[each.start - start : each.end - start])
        for source in [Source(text, "file")]
        for start in [source.text.index(text)]
        for each in source.shared
    ]
    assert found == [
        ("float", ("tile", "sum"), False, True, "__shared__ float tile[16][N(1, 2)], sum;"),
        ("unsigned int", ("dynamic",), True, True, "extern __shared__ __align__(16) volatile unsigned dynamic[];"),
        ("float*", ("pointer",), False, True, "float __shared__ *pointer;"),
        ("int", ("outside",), True, False, "extern __shared__ int outside[];"),
    ]


def test_hidden_files_folders_and_dangling_links_are_no_operations(tmp_path: Path) -> None:
    folder_with(tmp_path, relu=K)
    (tmp_path / "._relu.cu").write_bytes(b"\x00\x05\x16\x07\xff")
    (tmp_path / ".#relu.cu").symlink_to("nobody@nowhere.1234")
    (tmp_path / "dangling.cu").symlink_to("nowhere")
    (tmp_path / "folder.cu").mkdir()
    assert kernel_source.operations(tmp_path) == ["relu"]
    assert [*kernel_source.kernels(tmp_path)] == ["k"]
    assert not kernel_source.unread(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"// caf\xc3\xa9\n// caf\xe9\n", r"bad\.cu:2: the byte 0xe9 is not UTF-8: save the file as UTF-8"),
        ("// UTF-16".encode("utf-16"), r"bad\.cu:1: the byte 0xff is not UTF-8"),
        ("\n// UTF-16".encode("utf-16-le"), r"bad\.cu:2: the byte 0x00 is no text"),
        (b'extern "C" __global__ void bad() {\n', r"bad\.cu:1: this { is not closed"),
    ],
)
def test_a_file_that_cannot_be_read_stops_its_own_kernels_alone(tmp_path: Path, content: bytes, message: str) -> None:
    (folder_with(tmp_path, good=K) / "bad.cu").write_bytes(content)
    device = Emulator(tmp_path)
    device.launch("k", 1, 1, [])
    with pytest.raises(KernelError, match=rf"no kernel named bad in .*; it may stand in a file .* read: {message}"):
        device.launch("bad", 1, 1, [])
    with pytest.raises(KernelError, match=message):
        kernel_source.source("bad", tmp_path)


def test_a_missing_common_file_is_named_once(tmp_path: Path) -> None:
    (folder_with(tmp_path, one=K, two="") / "common.cuh").unlink()
    (line,) = kernel_source.unread(tmp_path)
    assert line == f"{tmp_path / 'common.cuh'} cannot be read: No such file or directory"


UNUSUAL = r"""// A kernel of each kind.
#define KERNEL extern "C" __global__ void
__device__ const char* text = "/* 1.5f expf(";
__device__ const char quote = '"';
static __global__ void a(float* x) { x[0] = expf(0.5f) + 0x1p-1f; }
namespace n { namespace { __global__ void b(float x[]) { __shared__ float t[4]; x[0] = t[0] = text[3]; } } }
extern "C" { __global__ void c(float* x) { extern __shared__
    volatile float t[]; t[0] = 4; x[0] = t[0]; } }
KERNEL d(float* RESTRICT x) { x[0] = quote; }
#if 0
don't { KERNEL e(int x) {}
#endif
#ifdef __CUDACC__
__global__ void e(float* x) {
    x[1'000] = 7;
}
#endif
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["single", "double"])
def test_unusual_files_in_unusual_folders_run_and_keep_their_lines(tmp_path: Path, precision: str) -> None:
    folder = folder_with(tmp_path / "a 'space', a \"quote\" \\ and é", "#define RESTRICT __restrict__")
    (folder / 'my "kernels".cu').write_bytes(b"\xef\xbb\xbf" + UNUSUAL.replace("\n", "\r\n").encode())
    device = Emulator(folder, "check", precision=precision)
    expected = {"a": np.exp(0.5) + 0.5, "b": ord("1"), "c": 4, "d": ord('"')}
    for kernel, value in expected.items():
        x = device.empty((1,))
        device.launch(kernel, 1, 1, [x], shared_bytes=16)
        np.testing.assert_allclose(x, value, rtol=1e-15 if precision == "double" else 1e-7)
    with pytest.raises(KernelError, match=r'e in my "kernels"\.cu: .* writes x\[1000\] .* at my "kernels"\.cu:15'):
        device.launch("e", 1, 1, [device.empty((1,))])


def test_only_numbers_and_functions_become_double(tmp_path: Path) -> None:
    text = 'const char* t = "1.5f";  // 1.5f\n#define HALF .5f\n'
    text += "constexpr float f(int expf) { return expf(1.5f) + 0x1p3f + 0x1f; }"
    translated = translate("file", folder_with(tmp_path, file=text), double=True)
    assert 'const char* t = "1.5f";  // 1.5f\n#define HALF .5\n' in translated
    assert "constexpr float f(int expf) { return exp(1.5) + 0x1p3 + 0x1f; }" in translated


PIECES = [*"\"'\\\n/*#(){}[]<>,;=", "/*", "*/", "//", 'R"(', ')"', "#if 0\n", "#if X\n", "\n#else\n", "\n#endif\n"]
PIECES += [
    "#define X X X\n",
    "X",
    "template <",
    "__global__ ",
    "void k(",
    "extern ",
    '"C"',
    "__shared__ ",
    "int n",
    "[]",
]


@pytest.mark.slow
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=60).map("".join))
def test_any_text_is_read_or_refused_with_a_line(text: str) -> None:
    try:
        Source(text, "file")
    except KernelError as error:
        assert str(error).startswith("file.cu:") and "\n" not in str(error)


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece", ['"/* ', "/* ", "'", 'R"(', "{", "<", "#if 1\n", "#define B A A\n#define A B B\n", "a\\\n"]
)
def test_the_time_of_reading_is_proportional_to_the_length(piece: str) -> None:
    start = time.process_time()
    with suppress(KernelError):
        Source(piece * (200_000 // len(piece)), "file")
    assert time.process_time() - start < 5, "it takes a second at most; with time squared it would take minutes"
