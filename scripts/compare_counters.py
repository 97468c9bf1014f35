"""Lays what profile mode counts beside what a GPU counts (Nsight Compute), and writes what the GPU counted.

    python scripts/compare_counters.py --out counters [--only accesses known step] [--design skip] [--batch 16]

It needs a GPU, `ncu` on the PATH, the right to read counters, and a checkout. Three kinds of launches are compared:

    accesses  one access of a warp to shared memory in each (OUT/shared-memory.json): strides, vectors, broadcasts
    known     the kernels whose cost can be told by hand (tests/helpers/known_costs.py)
    step      the launches of a training step (OUT/step.csv)

Nsight Compute runs each kernel alone, several times, and empties the caches before: the microseconds in step.csv are
more than within a step. It starts this file again with --launch.
"""

import argparse
import csv
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.checks.profile import compile_parts, profile_part, wavefronts
from tinyfcn.devices.cuda import Cuda, import_cupy
from tinyfcn.devices.device import Device
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.emulator.profile import EVERY_BLOCK, LANES, LaunchProfile, Requests
from tinyfcn.machine import gpu
from tinyfcn.operations import on
from tinyfcn.training.step import Step, Task, parts_of

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
sys.path.insert(0, str(TESTS))
from helpers.known_costs import KNOWN, known_folder, launch_known  # noqa: E402

ACCESSES = ROOT / "docs/measured/h200-shared-memory.json"
ELEMENTS = {4: "float", 8: "float2", 16: "float4"}

# column -> the metric of Nsight Compute
COUNTS = {
    "global_load_requests": "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum",
    "global_load_sectors": "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",
    "global_store_requests": "l1tex__t_requests_pipe_lsu_mem_global_op_st.sum",
    "global_store_sectors": "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum",
    "shared_load_wavefronts": "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum",
    "shared_store_wavefronts": "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_st.sum",
}
METRICS = {
    "microseconds": "gpu__time_duration.sum",
    "registers": "launch__registers_per_thread",
    "shared_bytes": "launch__shared_mem_per_block_static",
    "instructions": "smsp__inst_executed.sum",
    **{name: metric for name, metric in COUNTS.items() if name.startswith("global")},
    "sectors": "memory_l2_theoretical_sectors_global",
    "sectors_ideal": "memory_l2_theoretical_sectors_global_ideal",
    "shared_load_requests": "sass__inst_executed_shared_loads",
    "shared_store_requests": "sass__inst_executed_shared_stores",
    "shared_wavefronts": "memory_l1_wavefronts_shared",
    "shared_wavefronts_ideal": "memory_l1_wavefronts_shared_ideal",
    "dram_read_bytes": "dram__bytes_read.sum",
    "dram_write_bytes": "dram__bytes_write.sum",
    "active_warps_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "issue_active_percent": "smsp__issue_active.avg.pct_of_peak_sustained_active",
}
STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio")
UNITS = {"ns": 1e-3, "ms": 1e3, "Kbyte": 1e3, "Kbyte/block": 1e3, "Mbyte": 1e6}  # others are printed as they are


def accesses() -> list[dict[str, Any]]:
    return json.loads(ACCESSES.read_text(encoding="utf-8"))["accesses"]


def launch_accesses(device: Device) -> None:
    for each in accesses():
        index = np.array([-1 if at is None else at for at in each["index"]], np.int32)
        values = device.asarray(np.ones((LANES, each["bytes"] // 4), np.float32))
        arrays = [device.asarray(index), *([values] if each["access"] == "store" else []), device.empty(values.shape)]
        device.launch(each["access"], 1, LANES, arrays, 8 * 1024, template=(ELEMENTS[each["bytes"]],))


def launch_all_known(device: Device) -> None:
    for known in KNOWN:
        launch_known(device, known)


def launcher(options: argparse.Namespace, folder: Path) -> Callable[[], None]:
    """A function that makes the launches of options.launch on the GPU, in the same order each time."""
    if options.launch == "accesses":
        device = Cuda(TESTS / "helpers" / "shared_accesses.cu")
        return lambda: launch_accesses(device)
    if options.launch == "known":
        device = Cuda(known_folder(folder))
        return lambda: launch_all_known(device)
    ops = on("cuda", naive=options.naive)
    return Step(Task(options.design, options.batch), ops, composed=options.design == "skip").work


def launch(options: argparse.Namespace) -> None:
    """Makes the launches once to compile the kernels, then between cudaProfilerStart and cudaProfilerStop."""
    runtime = import_cupy().cuda.runtime
    with tempfile.TemporaryDirectory() as folder:
        make_launches = launcher(options, Path(folder))
        make_launches()
        runtime.deviceSynchronize()
        runtime.profilerStart()
        make_launches()
        runtime.deviceSynchronize()
        runtime.profilerStop()


def measured(what: str, *collect: str) -> tuple[list[dict[str, str]], dict[str, str]]:
    """The launches of a kind as Nsight Compute measured them, a row each; and the units of their columns."""
    with tempfile.TemporaryDirectory() as folder:
        report = f"{folder}/report.ncu-rep"
        program = [sys.executable, *sys.argv, "--launch", what]
        profile = ["ncu", *collect, "--clock-control", "none", "--profile-from-start", "off", "-o", report]
        subprocess.run([*profile, *program], check=True)
        raw = ["ncu", "--import", report, "--page", "raw", "--csv"]
        text = subprocess.run(raw, check=True, capture_output=True, text=True).stdout
    names, units, *launches = csv.reader(text.splitlines())
    return [dict(zip(names, cells, strict=True)) for cells in launches], dict(zip(names, units, strict=True))


def counted_by_ncu(what: str) -> list[dict[str, int]]:
    rows, _ = measured(what, "--metrics", ",".join(COUNTS.values()))
    return [{name: int(float(row[metric].replace(",", ""))) for name, metric in COUNTS.items()} for row in rows]


def rows_of_step(rows: Iterable[dict[str, str]], units: dict[str, str]) -> Iterator[dict[str, str]]:
    """The rows of step.csv."""
    reasons = {match[1]: name for name in units if (match := STALL.fullmatch(name))}
    for launch in rows:
        kernel = launch["Kernel Name"].removeprefix("void ").partition("(")[0]
        row = {"kernel": kernel, "grid": launch["Grid Size"], "block": launch["Block Size"]}
        for column, metric in METRICS.items():
            row[column] = f"{float(launch[metric].replace(',', '')) * UNITS.get(units[metric], 1):.8g}"
        waiting = {reason: float(launch[name]) for reason, name in reasons.items() if "selected" not in reason}
        row["longest_wait"] = max(waiting, key=lambda reason: waiting[reason])
        row["waiting_warps"] = f"{waiting[row['longest_wait']]:.3g}"
        yield row


def counted_here(profile: LaunchProfile) -> dict[str, int]:
    """What profile mode counts of a launch, under the names of COUNTS."""
    found = dict.fromkeys(COUNTS, 0)
    for line in profile.requests:
        kind = {"read": "load", "write": "store"}.get(line.kind)
        if kind and line.is_shared:
            found[f"shared_{kind}_wavefronts"] += line.parts
        elif kind:
            found[f"global_{kind}_requests"] += line.requests
            found[f"global_{kind}_sectors"] += line.parts
    return found


def compare_accesses(options: argparse.Namespace) -> None:
    found = accesses()
    same = 0
    for each, row in zip(found, counted_by_ncu("accesses"), strict=True):
        at = [None if index is None else index * each["bytes"] for index in each["index"]]
        kind = "read" if each["access"] == "load" else "write"
        here = len(wavefronts(Requests("", "", "x", True, kind, each["bytes"], worst_at=at)))
        each["wavefronts"] = row[f"shared_{each['access']}_wavefronts"]
        same += here == each["wavefronts"]
        if here != each["wavefronts"]:
            print(f"  {each['access']} of {each['bytes']} bytes, {at}: {each['wavefronts']} wavefronts, {here} here")
    what = "wavefronts of one warp's access to shared memory, by Nsight Compute; lane k accesses element index[k]"
    lines = ",\n".join(json.dumps(each, separators=(",", ":")) for each in found)
    head = json.dumps({"card": gpu()[0], "what": what}, separators=(",", ":"))[:-1]
    (options.out / "shared-memory.json").write_text(f'{head},"accesses":[\n{lines}\n]}}\n', encoding="utf-8")
    print(f"accesses: {same} of {len(found)} as counted here")


def compare_known(options: argparse.Namespace) -> None:
    rows = counted_by_ncu("known")
    with tempfile.TemporaryDirectory() as folder:
        device = Emulator(known_folder(Path(folder)), mode="profile", sample=EVERY_BLOCK)
        launch_all_known(device)
    same = 0
    for known, row, profile in zip(KNOWN, rows, device.profiles, strict=True):
        here = counted_here(profile)
        same += here == row
        for name in (name for name in COUNTS if here[name] != row[name]):
            print(f"  {known.kernel} {known.what}: {name} {row[name]:,}, {here[name]:,} here")
    print(f"known: {same} of {len(KNOWN)} as counted here in each count")


def compare_step(options: argparse.Namespace) -> None:
    """Writes step.csv, and prints the counts of each launch and of the step beside those of profile mode."""
    rows = [*rows_of_step(*measured("step", "--set", "full"))]
    path = options.out / "step.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    parts = parts_of(Task(options.design, options.batch), on("cpu"))
    compile_parts(parts)
    totals = np.zeros((3, 2))
    print(f"  {'requests':>22} {'sectors':>22} {'shared wavefronts':>22}   on the GPU, and here")
    waiting = [*rows]
    for counted in (each for part in parts for each in profile_part(part, options.naive, EVERY_BLOCK)):
        key = counted.launch.kernel.expression, str(counted.launch.grid)
        row = next(each for each in waiting if (each["kernel"], each["grid"]) == key)
        waiting.remove(row)
        requests = int(row["global_load_requests"]) + int(row["global_store_requests"])
        here = counted.totals()
        pairs = np.array(
            [
                (requests, counted.sum("requests", shared=False)),
                (int(row["sectors"]), here["sectors"]),
                (int(row["shared_wavefronts"]), here["shared_wavefronts"]),
            ]
        )
        totals += pairs
        print(" ", *(f"{gpu:>11,.0f} {emulator:>10,.0f}" for gpu, emulator in pairs), "", counted.name)
    print(" ", *(f"{gpu:>11,.0f} {emulator:>10,.0f}" for gpu, emulator in totals), "  the step")
    print(f"step: {len(rows)} launches, {path}")


COMPARISONS = {"accesses": compare_accesses, "known": compare_known, "step": compare_step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("counters"))
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, default=[*COMPARISONS])
    parser.add_argument("--design", default="skip")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--naive", action="store_true")
    parser.add_argument("--launch", choices=COMPARISONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.launch:
        launch(options)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        COMPARISONS[name](options)


if __name__ == "__main__":
    main()
