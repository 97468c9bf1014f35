"""Builds the stand-in into a folder: `python tests/standin/build.py FOLDER`. README.md says what it is.

One module of the installed CuPy holds CUDA's runtime. It is compiled again, unchanged, from CuPy's own source package,
and linked with standin.cpp in the runtime's place. The installed CuPy stays as it is.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from importlib.metadata import distributions
from pathlib import Path

SOURCE = Path(__file__).with_name("standin.cpp")
MODULE = "cupy_backends/cuda/api/runtime"
# Headers that CUDA's compiler or profiler would bring: the words that the runtime's headers take from there.
HEADERS = {
    "crt/host_config.h": "",
    "crt/host_defines.h": """#pragma once
#define __host__
#define __device__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define __forceinline__ inline
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __builtin_align__(bytes) __attribute__((aligned(bytes)))
""",
    "cuda_profiler_api.h": 'extern "C" { int cudaProfilerStart(); int cudaProfilerStop(); }\n',
}


class CannotBuild(Exception):
    """Why the stand-in cannot be built here, and the next step; one line."""


def run(*command: object, step: str, cwd: Path | None = None, **environment: str) -> str:
    """The output of a command. Raises CannotBuild, with the first line of its errors."""
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if "error" in line.lower()]
        raise CannotBuild(f"{(lines or ['no reason given'])[0].strip()[:200]}; next step: {step}")
    return done.stdout


def installed_cupy() -> tuple[str, int]:
    """The version of the installed CuPy, and the CUDA version that it is built for: "14.2.0", 12."""
    for each in distributions():
        if found := re.fullmatch(r"cupy-cuda(\d+)x", each.metadata["Name"] or ""):
            return each.version, int(found[1])
    raise CannotBuild("CuPy's wheel is not installed; next step: pip install -e '.[test]'")


def headers(cuda: int) -> Path:
    """The folder of the header files that come with CUDA's runtime."""
    packages = Path(sysconfig.get_paths()["purelib"]).parent.rglob("cuda_runtime_api.h")
    for path in [*packages, *(Path(p) / "x" for p in sys.path if p)]:
        for folder in (
            path.parent,
            path.parent / "nvidia/cuda_runtime/include",
            path.parent / f"nvidia/cu{cuda}/include",
        ):
            header = folder / "cuda_runtime_api.h"
            if header.is_file() and re.search(rf"define CUDART_VERSION\s+{cuda}\d\d\d\b", header.read_text()):
                return folder
    raise CannotBuild(f"no headers of CUDA {cuda} found; next step: pip install 'cuda-toolkit[nvrtc,cudart]=={cuda}.*'")


def sdist(version: str, folder: Path) -> Path:
    """CuPy's source package of this version, unpacked."""
    (unpacked := folder / f"cupy-{version}").exists() or run(
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "cupy", f"cupy=={version}"),
        step="let pip reach a package index: CuPy's source package is needed once",
        cwd=folder,
        READTHEDOCS="True",  # CuPy's word for: do not look for CUDA
    )
    if not unpacked.exists():
        with tarfile.open(folder / f"cupy-{version}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return unpacked


def cythonized(source: Path, folder: Path, cuda_version: str) -> Path:
    """The module in C++, by the Cython that CuPy's source package names."""
    wanted = tomllib.loads((source / "pyproject.toml").read_text())["build-system"]["requires"]
    cython = next(each for each in wanted if each.lower().startswith("cython"))
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", folder / "cython", cython),
        step=f"let pip reach a package index: {cython} is needed once",
    )
    # As in CuPy's install/cupy_builder/_command.py.
    constants = dict(CUPY_USE_CUDA_PYTHON=False, CUPY_CUFFT_STATIC=False, CUPY_CYTHON_VERSION="3", CUPY_HIP_VERSION=0)
    directives = {"embedsignature": True, "binding": False, "c_api_binop_methods": True, "warn.deprecated.IF": False}
    code = f"""
from Cython.Build import cythonize
from Cython.Distutils import Extension
module = Extension({MODULE.replace("/", ".")!r}, [{MODULE + ".pyx"!r}], language="c++")
cythonize([module], language_level=3, force=True, compiler_directives={directives},
          compile_time_env={constants | {"CUPY_CUDA_VERSION": int(cuda_version)}})"""
    run(sys.executable, "-c", code, step="report it: Cython refuses", cwd=source, PYTHONPATH=str(folder / "cython"))
    return source / f"{MODULE}.cpp"


def build(folder: Path) -> None:
    """Leaves libcuda.so.1 and the module in `folder`, unless they are there and newer than their sources."""
    version, cuda = installed_cupy()
    driver, module = folder / "libcuda.so.1", folder / f"runtime-{version}-cuda{cuda}.so"
    if all(file.exists() and file.stat().st_mtime > SOURCE.stat().st_mtime for file in (driver, module)):
        return
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if not compiler:
        raise CannotBuild("there is no C++ compiler; next step: apt install g++")
    include = headers(cuda)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in HEADERS.items():
        (folder / "include" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "include" / name).write_text(text)
    found = re.search(r"define CUDART_VERSION\s+(\d+)", (include / "cuda_runtime_api.h").read_text())
    assert found, "`headers` has found it"
    text = cythonized(sdist(version, folder), folder, found[1])
    flags = ["-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", f"-I{folder / 'include'}", f"-I{include}"]
    step, runtime = "report it: this compiler refuses", folder / "runtime.o"
    python = sysconfig.get_paths()["include"]
    run(
        compiler,
        *flags,
        "-w",
        f"-I{python}",
        "-c",
        text,
        "-o",
        runtime,
        step="apt install python3-dev, if Python.h is missing",
    )
    run(compiler, *flags, "-Wall", "-Wextra", "-c", SOURCE, "-o", folder / "standin.o", step=step)
    # What CuPy links and the stand-in lacks is refused when it is called.
    unknown = set(re.findall(r" U (cuda\w+)", run("nm", runtime, step="apt install binutils")))
    known = set(re.findall(r" T (cuda\w+)", run("nm", folder / "standin.o", step="apt install binutils")))
    lacking = "".join(f'extern "C" int {name}() {{ return 801; }}\n' for name in sorted(unknown - known))
    (folder / "lacking.cpp").write_text(f"#pragma GCC visibility push(default)\n{lacking}")
    run(
        *(compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", folder / "standin.o", folder / "lacking.cpp"),
        *("-o", driver, "-lpthread"),
        step=step,
    )
    run(compiler, "-shared", runtime, driver, "-Wl,-rpath,$ORIGIN", "-o", module, step=step)


if __name__ == "__main__":
    try:
        build(Path(sys.argv[1]).resolve())
    except (CannotBuild, OSError) as error:
        sys.exit(f"the stand-in cannot be built: {error}")
