"""Counts what each launch of a training step does on a GPU, by Nsight Compute. Writes a CSV, one row a launch.

    python scripts/step_counters.py --out counters.csv [--design skip] [--batch 16] [--naive]

It needs a GPU, `ncu` on the PATH and the right to read counters. Nsight Compute runs each kernel alone, many times, and
empties the caches before: the microseconds are more than within a step. It starts this file again with --step.
"""

import argparse
import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

# column -> the metric of Nsight Compute
METRICS = {
    "microseconds": "gpu__time_duration.sum",
    "registers": "launch__registers_per_thread",
    "shared_bytes": "launch__shared_mem_per_block_static",
    "instructions": "smsp__inst_executed.sum",
    "global_load_requests": "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum",
    "global_load_sectors": "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",
    "global_store_requests": "l1tex__t_requests_pipe_lsu_mem_global_op_st.sum",
    "global_store_sectors": "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum",
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


def rows(table: Iterable[list[str]]) -> Iterator[dict[str, str]]:
    """One row a launch, from Nsight Compute's `--page raw --csv`."""
    names, units, *launches = table
    reasons = {match[1]: name for name in names if (match := STALL.fullmatch(name))}
    for cells in launches:
        launch, unit = dict(zip(names, cells, strict=True)), dict(zip(names, units, strict=True))
        kernel = launch["Kernel Name"].removeprefix("void ").partition("(")[0]
        row = {"kernel": kernel, "grid": launch["Grid Size"], "block": launch["Block Size"]}
        for column, metric in METRICS.items():
            row[column] = f"{float(launch[metric].replace(',', '')) * UNITS.get(unit[metric], 1):.8g}"
        waiting = {reason: float(launch[name]) for reason, name in reasons.items() if "selected" not in reason}
        row["longest_wait"] = max(waiting, key=lambda reason: waiting[reason])
        row["waiting_warps"] = f"{waiting[row['longest_wait']]:.3g}"
        yield row


def launch_step(design: str, batch: int, naive: bool) -> None:
    """Launches a step kernel by kernel, between cudaProfilerStart and cudaProfilerStop."""
    from tinyfcn import on
    from tinyfcn.bench.steps import Step, Task
    from tinyfcn.devices.cuda import import_cupy

    runtime = import_cupy().cuda.runtime
    step = Step(Task(design, batch), on("cuda", naive=naive), composed=design == "skip")
    runtime.deviceSynchronize()
    runtime.profilerStart()
    step.work()
    runtime.deviceSynchronize()
    runtime.profilerStop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("counters.csv"))
    parser.add_argument("--design", default="skip")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--naive", action="store_true")
    parser.add_argument("--step", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        launch_step(options.design, options.batch, options.naive)
        return
    with tempfile.TemporaryDirectory() as folder:
        report = f"{folder}/step.ncu-rep"
        step = [sys.executable, *sys.argv, "--step"]
        profile = ["ncu", "--set", "full", "--clock-control", "none", "--profile-from-start", "off", "-o", report]
        subprocess.run([*profile, *step], check=True)
        raw = ["ncu", "--import", report, "--page", "raw", "--csv"]
        text = subprocess.run(raw, check=True, capture_output=True, text=True).stdout
    counted = list(rows(csv.reader(text.splitlines())))
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, counted[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(counted)
    print(f"{options.out}: {len(counted)} launches")


if __name__ == "__main__":
    main()
