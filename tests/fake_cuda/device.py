"""Compile and load device.cpp. Nothing here imports torch: its hooks are looked up only once."""

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("device.cpp")
LIBRARIES = ("libtorch_global_deps.so", "libc10.so", "libtorch_cpu.so")


def compiler() -> str | None:
    """The C++ compiler on the path; None if there is none."""
    return shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec and spec.origin
    return Path(spec.origin).parent


def build(library: Path) -> None:
    """Compile the device into `library`, a shared object for the installed torch."""
    torch = torch_folder()
    command = [compiler(), "-std=c++20", "-O0", "-shared", "-fPIC", SOURCE, "-o", library]
    command += [f"-I{torch}/include", f"-L{torch}/lib", "-lc10", "-ltorch_cpu"]
    command += [f"-Wl,-rpath,{torch}/lib"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)


def install(library: Path) -> None:
    """Register the device with this process's torch, which must not have been imported yet."""
    assert "torch" not in sys.modules
    for name in LIBRARIES:
        ctypes.CDLL(str(torch_folder() / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library)).install()
