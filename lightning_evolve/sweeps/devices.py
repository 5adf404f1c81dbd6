"""The CUDA devices that runs can be shared out to, found without importing torch."""

from __future__ import annotations

import os
import shutil
import subprocess


def cuda_devices() -> list[str]:
    """Returns names for ``CUDA_VISIBLE_DEVICES``, one a device; an empty list without any.

    What this process may see is what that variable says, else what ``nvidia-smi`` lists.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    listing = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)  # noqa: S603 - found by its name
    lines = listing.stdout.splitlines() if listing.returncode == 0 else []
    # The parts of a divided device stand below it, indented.
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in lines))]
