"""All that a number depends on besides the code: the device, versions, the commit, other load."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from bench.measure import Settings
from fcnfast._version import __version__


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        names = [text for text in text.splitlines() if text.startswith("model name")]
        name = names[0].partition(":")[2].strip()
    except (OSError, IndexError):
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def commit() -> str | None:
    """The checkout's commit, with "-dirty" when files differ from it; None when nobody knows.

    Where git does not know it, FCNFAST_COMMIT in the environment names it.
    """
    named = os.environ.get("FCNFAST_COMMIT")
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return named
    command = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return named
    return done.stdout.strip()


def conditions(settings: Settings) -> dict[str, Any]:
    """The conditions as they go into the JSON file."""
    try:
        import triton
    except ImportError:
        triton = None
    return {
        "device": settings.device.type,
        "device_name": device_name(settings.device),
        "dtype": str(settings.dtype).removeprefix("torch."),
        "fcnfast": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "triton": triton.__version__ if triton else None,
        "cuda": torch.version.cuda or torch.version.hip,
        "python": platform.python_version(),
        "backend_forced": os.environ.get("FCNFAST_BACKEND"),
        "copy_gb_s": settings.bandwidth * 1e-9 if settings.bandwidth else None,
    }


def summary(about: dict[str, Any]) -> str:
    """The conditions in one line."""
    words = [f"fcnfast {about['fcnfast']}", f"commit {(about['commit'] or 'unknown')[:12]}"]
    words += [f"torch {about['torch']}", f"triton {about['triton'] or 'none'}", about["dtype"]]
    if about["backend_forced"]:
        words.append(f"FCNFAST_BACKEND={about['backend_forced']}")
    if about["copy_gb_s"]:
        words.append(f"copies at {about['copy_gb_s']:.0f} GB/s")
    return f"{about['device_name']}: {', '.join(words)}"


def busy() -> list[str]:
    """A warning when other work keeps the processors of this machine."""
    load, processors = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0, os.cpu_count() or 1
    if load < 0.7 * processors:
        return []
    return [f"this machine is busy (load {load:.1f} on {processors} processors): expect noise"]
