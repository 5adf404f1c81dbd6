"""Stands in for fit: writes what a run leaves, and starts in milliseconds.

Arguments as --name=value: x is the objective of every logging; the others are what goes wrong.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path


def main():
    options = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
    run, what = Path(options["run_dir"]), options.get("what", "")
    time.sleep(float(options.get("late", 0)))
    run.mkdir(parents=True, exist_ok=True)
    lock = (run / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit("lightning-evolve: error: another process trains here")
    started = time.time()
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "WANDB_RUN_GROUP")
    print(json.dumps({"arguments": options, **{name: os.environ.get(name) for name in names}}))
    if what == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if what == "fails":
        print("Traceback\nValueError: too bad\n\n", file=sys.stderr)
        sys.exit(1)
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    x = float(options["x"]) + 0.1 * float(options["seed"])
    name = "val/other" if what == "silent" else "val/reward"
    values = [x - 1, float("nan") if what == "diverges" else x, x - 0.5]
    if what == "diverges":
        values = [float("nan")] * 3
    text = f"step,{name}\r\n"
    for step, value in enumerate(values):
        text += f"{step},{value}\r\n"
        (run / "metrics.csv").write_text(text, newline="")
        time.sleep(float(options.get("pause", 0)))
    while what in ("deaf", "endless"):
        time.sleep(0.05)
    if what != "empty":
        (run / "results.json").write_text("{}")
    (run / "times.json").write_text(json.dumps([started, time.time()]))


if __name__ == "__main__":
    main()
