"""How kernel files are compiled: messages, the cache, and several threads and processes at the same time."""

import ctypes
import errno
import os
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.kernel_folders import folder_with
from helpers.package_copy import copy_package, run
from helpers.small_kernels import launch, wrong_folder

from tinyfcn.devices.emulator import Emulator, build, emulator, library, profile
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.errors import DeviceError, KernelError

SCALE = """// Multiplies by a number.
extern "C" __global__ void scale(float* x) {
    extern __shared__ float unused[];
    x[threadIdx.x] *= FACTOR;
}
"""


def scaled(kernels: Path) -> float:
    """The result of the kernel of SCALE for an input of 1."""
    device = Emulator(kernels)
    x = device.asarray(np.ones(1, np.float32))
    device.launch("scale", 1, 1, [x])
    return float(x[0])


@pytest.mark.parametrize(
    ("common", "text", "location", "quoted"),
    [
        ("", SCALE, "scale.cu:4:", "x[threadIdx.x] *= FACTOR;"),
        ("\n__device__ int f() { return none; }", SCALE.replace("FACTOR", "2"), "common.cuh:2:", "return none;"),
    ],
)
def test_a_kernel_that_does_not_compile_gives_file_line_and_text(tmp_path, common, text, location, quoted):
    with pytest.raises(KernelError) as caught:
        scaled(folder_with(tmp_path, common, scale=text))
    message = str(caught.value)
    assert message.startswith("scale.cu does not compile:\n")
    assert location in message and "error:" in message and quoted in message
    assert "kernels::" not in message, "the namespaces of the emulator do not show"


RUNTIME_FILES, SCALE_FILES = ["runtime.sha256", "runtime.so"], ["scale.sha256", "scale.so", "scale.symbols"]


def kept(cache: Path) -> list[str]:
    """The files of a cache without their hashes, sorted by operation."""
    names = [(path.name.split("-")[0], path.name.partition("-")[2].partition(".")[0], path) for path in cache.iterdir()]
    return [f"{name}{path.suffix}" for name, _, path in sorted(names)]


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYFCN_CACHE", "cache")
    return tmp_path / "cache" / "emulator"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that has the emulator's own library, which takes six seconds to compile, and nothing else."""
    runtime = build._runtime()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYFCN_CACHE", "cache")
    for path in (runtime, runtime.with_suffix(".sha256")):
        shutil.copy(path, build.cache_folder())
    return tmp_path / "cache" / "emulator"


@pytest.mark.slow
def test_a_kernel_is_compiled_once_until_it_or_its_common_part_is_edited(tmp_path, empty_cache, monkeypatch):
    compiled = []
    run = build._run_compiler

    def recorded(*arguments: str, **options: Path) -> str:
        compiled.extend(Path(argument).stem for argument in arguments if argument.endswith(".cpp"))
        return run(*arguments, **options)

    monkeypatch.setattr(build, "_run_compiler", recorded)
    kernels = folder_with(tmp_path / "kernels", "#define FACTOR 3", scale=SCALE)
    assert scaled(kernels) == scaled(kernels) == 3
    runtime = sorted(path.stem for path in build.RUNTIME)
    assert compiled == [*runtime, "scale"]
    assert scaled(folder_with(tmp_path / "kernels", "#define FACTOR 4", scale=SCALE)) == 4
    assert compiled == [*runtime, "scale", "scale"]
    assert kept(empty_cache) == [*RUNTIME_FILES, *SCALE_FILES, *SCALE_FILES], "two kernels, and no temporary files"


@pytest.mark.slow
def test_folders_with_kernels_of_one_name_do_not_mix(tmp_path, own_cache):
    folders = [folder_with(tmp_path / str(factor), scale=SCALE.replace("FACTOR", str(factor))) for factor in (2, 5)]
    devices = [Emulator(folder) for folder in folders]
    x = devices[0].asarray(np.ones(1, np.float32))
    for device in [*devices, *devices]:
        device.launch("scale", 1, 1, [x])
    assert x[0] == 100


def test_a_copy_of_the_package_uses_the_same_libraries(tmp_path):
    code = "from tinyfcn.devices.emulator import build; from tinyfcn.devices.kernel_source import KERNELS\n"
    copied = run(copy_package(tmp_path), "-c", f"{code}print(build.library('relu', KERNELS))")
    assert copied.stdout.strip() == str(build.library("relu", KERNELS)), copied.stderr


def build_elsewhere(kernels: Path, times: int = 1) -> subprocess.Popen:
    """Builds scale.cu in another process, in several threads at the same time."""
    code = "import sys, pathlib, concurrent.futures; from tinyfcn.devices.emulator import build\n"
    code += "with concurrent.futures.ThreadPoolExecutor() as pool:\n"
    code += "    print(*pool.map(lambda _: build.library('scale', pathlib.Path(sys.argv[1])), range(int(sys.argv[2]))))"
    return subprocess.Popen([sys.executable, "-c", code, str(kernels), str(times)], stdout=subprocess.PIPE, text=True)


def logging_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float = 0) -> Path:
    """Makes CXX a script that takes so long, logs its arguments and calls the compiler. Returns the log."""
    script, log = folder / "compiler", folder / "log"
    command = shlex.join(build.compiler())
    script.write_text(f'#!/bin/sh\nsleep {seconds}\necho "$@" >> {shlex.quote(str(log))}\nexec {command} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    return log


@pytest.mark.slow
def test_two_processes_of_two_threads_compile_a_library_once(tmp_path, empty_cache, monkeypatch):
    kernels = folder_with(tmp_path / "kernels", "#define FACTOR 7", scale=SCALE)
    log = logging_compiler(tmp_path, monkeypatch, seconds=0.3)
    processes = [build_elsewhere(kernels, 2) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        paths = {*pool.map(lambda _: str(build.library("scale", kernels)), range(2))}
    for process in processes:
        paths |= {*process.communicate()[0].split()}
        assert process.returncode == 0
    assert len(paths) == 1
    calls = [line for line in log.read_text().splitlines() if line != "--version"]
    made = sorted(Path(call.split()[-1]).name for call in calls)
    assert made == ["runtime.so", "scale.o", "scale.so"], "each is the output of one call"
    assert kept(empty_cache) == [*RUNTIME_FILES, *SCALE_FILES]
    monkeypatch.delenv("CXX")
    assert scaled(kernels) == 7


@pytest.mark.slow
def test_a_process_that_dies_while_it_compiles_leaves_no_lock_and_no_folder(tmp_path, empty_cache, monkeypatch):
    kernels = folder_with(tmp_path / "kernels", "#define FACTOR 8", scale=SCALE)
    logging_compiler(tmp_path, monkeypatch, seconds=0.2)
    process = build_elsewhere(kernels)
    while not [*empty_cache.glob("scale-*-*")]:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert [*empty_cache.glob("scale-*.lock")] and [*empty_cache.glob("scale-*-*")]
    assert scaled(kernels) == 8
    assert kept(empty_cache) == [*RUNTIME_FILES, *SCALE_FILES]


def test_a_kernel_that_does_not_compile_leaves_nothing_in_the_cache(tmp_path, own_cache):
    kernels = folder_with(tmp_path / "kernels", scale=SCALE)
    for _ in range(2):
        with pytest.raises(KernelError, match="FACTOR"):
            scaled(kernels)
    assert kept(own_cache) == RUNTIME_FILES


@pytest.mark.slow
def test_an_unusable_cache_folder_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder can be made in here")
    monkeypatch.setenv("TINYFCN_CACHE", str(tmp_path / "file"))
    assert scaled(folder_with(tmp_path / "kernels", "#define FACTOR 6", scale=SCALE)) == 6
    assert tmp_path not in build.cache_folder().parents


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    (path / "within").mkdir(parents=True)


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.slow
def test_a_damaged_cache_is_mended(tmp_path, own_cache):
    kernels = folder_with(tmp_path / "kernels", "#define FACTOR 8", scale=SCALE)
    assert build_elsewhere(kernels).wait() == 0
    damages = [
        (cut, "*.*"),  # the emulator's own library too
        (empty, "scale-*.so"),
        (empty, "*.symbols"),
        (replace_by_folder, "scale-*.*"),
        (Path.unlink, "scale-*.sha256"),
    ]
    damages += [(replace_by_pipe, "scale-*.*"), (replace_by_dangling_link, "scale-*.*")]
    for damage, pattern in damages:
        for path in own_cache.glob(pattern):
            damage(path)
        build.library("scale", kernels)
        assert kept(own_cache) == [*RUNTIME_FILES, *SCALE_FILES]
        assert all(path.stat().st_size for path in own_cache.iterdir())
    assert scaled(kernels) == 8


@pytest.mark.slow
def test_a_library_that_cannot_be_loaded_is_named(tmp_path, own_cache):
    kernels = folder_with(tmp_path / "kernels", "#define FACTOR 8", scale=SCALE)
    library = build.library("scale", kernels)
    library.write_bytes(b"of another machine")
    library.with_suffix(".sha256").write_bytes(build._checksum([library.with_suffix(".symbols"), library]))
    with pytest.raises(
        DeviceError, match=rf"cannot load {library}, made by .*/.*; delete {own_cache}, set TINYFCN_CACHE"
    ):
        scaled(kernels)


def test_a_file_that_cannot_be_written_to_the_cache_is_an_error_with_a_way_out(tmp_path, own_cache, monkeypatch):
    def full(*_: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        DeviceError, match=rf"no library can be kept in {own_cache} \(No space left .*: set TINYFCN_CACHE"
    ):
        scaled(folder_with(tmp_path / "kernels", "#define FACTOR 8", scale=SCALE))


def test_a_lock_that_is_a_folder_does_no_harm(tmp_path):
    (tmp_path / "library-1.lock").mkdir()
    made = build._build_once(tmp_path / "library-1.so", lambda path: path.touch())
    assert made.exists()


def test_a_missing_compiler_is_an_error_with_the_command_that_installs_one(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    with pytest.raises(DeviceError, match="'no-such-compiler', which CXX names, was not found"):
        Emulator(tmp_path)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.compiler() == [sys.executable, "-m", "ziglang", "c++"], "of the packages that the tests need"
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    supply = "xcode-select --install" if sys.platform == "darwin" else r"apt install g\+\+"
    with pytest.raises(DeviceError, match=rf"{supply}.*or pip install ziglang"):
        Emulator(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 3", "does not run: exit code 3"),
        ("echo broken >&2; echo more >&2; exit 1", "does not run: broken$"),
        ("sleep 60 & wait", "does not run: it did not end within 1 seconds"),
        ("", "cannot compile the emulator:\nit reports no error, and wrote no runtime.so"),
        ("test $2 = --version || { printf 'caf\\351' >&2; kill $$; }", "cannot compile the emulator:\ncaf"),
        ("test $2 = --version || sleep 60", "cannot compile the emulator:\nit did not end within 1 seconds"),
        (None, "does not run: .*/compiler cannot be run: Exec format error"),
    ],
)
def test_a_compiler_that_does_not_work_is_named(tmp_path, empty_cache, monkeypatch, script, message):
    compiler = tmp_path / "compiler"
    compiler.write_text("\x7fELF" if script is None else f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", "./compiler -O1")
    for limit in ("VERSION_SECONDS", "COMPILER_SECONDS"):
        monkeypatch.setattr(build, limit, 1)
    with pytest.raises(DeviceError, match=rf"the C\+\+ compiler {compiler} -O1 {message}"):
        scaled(folder_with(tmp_path / "kernels", scale=SCALE))


@pytest.mark.slow
def test_warnings_of_the_compiler_do_not_matter(tmp_path, own_cache, monkeypatch):
    command = shlex.join(build.compiler())
    (tmp_path / "compiler").write_text(f'#!/bin/sh\necho "warning: caf\\0351" >&2\nexec {command} "$@"\n')
    (tmp_path / "compiler").chmod(0o755)
    monkeypatch.setenv("CXX", "./compiler")
    assert scaled(folder_with(tmp_path / "kernels", "#define FACTOR 6", scale=SCALE)) == 6


@pytest.mark.parametrize("cxx", ["g++ '", 'g++ "-O2', "g++ \\"])
def test_a_CXX_that_is_no_command_is_named(tmp_path, monkeypatch, cxx):
    monkeypatch.setenv("CXX", cxx)
    with pytest.raises(DeviceError, match=r"CXX is .*, which is no command \(no .*\): set it to a C"):
        Emulator(folder_with(tmp_path))


def test_an_unknown_function_is_named_with_its_line(tmp_path: Path) -> None:
    text = "__global__ void asin_of(float* y, const float* x, int n) {\n    y[0] = __asinf(x[0]);\n}"
    with pytest.raises(
        KernelError,
        match=r"(?s)asin_of\.cu does not link:(.*asin_of\.cu:2|.*undefined (reference to|symbol:) .?__asinf){2}",
    ):
        launch(Emulator(folder_with(tmp_path, asin_of=text)), "asin_of", 1)


@pytest.mark.slow
def test_the_compiler_that_CXX_names_is_used(tmp_path, own_cache, monkeypatch):
    monkeypatch.setenv("CXX", shlex.join([*build.compiler(), "-DFACTOR=9"]))
    assert scaled(folder_with(tmp_path / "kernels", scale=SCALE)) == 9


def test_an_accumulator_without_an_initial_value_does_not_compile(tmp_path: Path) -> None:
    text = """extern "C" __global__ void total(float* y, const float* x, int n) {
        float sum;
        for (int i = 0; i < n; ++i) sum += x[i];
        y[threadIdx.x] = sum;
    }"""
    with pytest.raises(KernelError, match=r"total\.cu:\d+:\d+: error: (variable )?.sum. .*uninitialized"):
        launch(Emulator(folder_with(tmp_path, total=text)), "total", 4)


def test_structures_are_as_large_in_python_as_in_cpp(tmp_path: Path) -> None:
    device = Emulator(wrong_folder(tmp_path))
    launch(device, "sound", 3)
    (made,) = device._libraries.values()
    sizes = (ctypes.c_size_t * 6).in_dll(ctypes.CDLL(str(made.path)), "emulator_sizes")
    structures = [ctypes.sizeof(library._Launch), ctypes.sizeof(library._Region), library.RECORD.itemsize]
    assert [*sizes] == [*structures, 2 * emulator.MAX_SHARED, emulator.GUARD, library.TRACED.itemsize]
    sizes = (ctypes.c_size_t * 4).in_dll(ctypes.CDLL(str(made.path)), "emulator_profile_sizes")
    structures = [ctypes.sizeof(each) for each in (profile._Count, profile._Total, profile._Context, profile.Result)]
    assert [*sizes] == structures


@pytest.mark.parametrize("what", ["mode", "order", "precision"])
def test_an_unknown_mode_is_refused_with_the_known_ones(tmp_path: Path, what: str) -> None:
    with pytest.raises(ValueError, match=f"no {what} named 'quick'; there are .*(check|reverse|double)"):
        Emulator(wrong_folder(tmp_path), **{what: "quick"})
