"""NVIDIA's run-time compiler, from PyPI: compiles CUDA C++ for a named GPU on a machine that has none.

Needs the wheels `nvidia-cuda-nvrtc-cu12`, `nvidia-cuda-runtime-cu12` and `nvidia-cuda-cccl-cu12` (the extra `nvrtc`).
Options and headers are those that MLX 0.32 gives to NVRTC for `mx.fast.cuda_kernel`.
"""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# MLX generates `#include "mlx/backend/cuda/device/utils.cuh"`; it holds these things, and more that kernels don't use.
MLX_UTILS = b"""
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda/std/array>
#include <cuda/std/limits>
namespace mlx::core::cu {
using Shape = cuda::std::array<int32_t, 10>;
using Strides = cuda::std::array<int64_t, 10>;
}
"""


@dataclass(frozen=True)
class Compiled:
    """What NVRTC made of a source: machine code, or nothing and the compiler's messages."""

    cubin: bytes
    ptx: str
    log: str

    @property
    def ok(self) -> bool:
        return bool(self.cubin)


def _wheel(name: str) -> Path:
    """Folder of one of NVIDIA's wheels inside site-packages; ImportError when it is not installed."""
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or [] if spec else []:
        if (Path(root) / name).is_dir():
            return Path(root) / name
    raise ImportError(f"nvidia/{name} is not installed: pip install 'natten-mlx[nvrtc]'")


@cache
def _library() -> ctypes.CDLL:
    folder = _wheel("cuda_nvrtc") / "lib"
    for builtins in folder.glob("libnvrtc-builtins.so*"):
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(next(folder.glob("libnvrtc.so*"))))


def _check(status: int, what: str) -> None:
    if status != 0:
        raise RuntimeError(f"NVRTC: {what} failed with status {status}")


def version() -> str:
    """NVRTC's version, such as "12.9"."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "nvrtcVersion")
    return f"{major.value}.{minor.value}"


def compile_cuda(source: str, architecture: str, file_name: str = "kernel.cu") -> Compiled:
    """Compiles `source` for `architecture`, such as "sm_90a". Never raises for an error in the source."""
    library = _library()
    program = ctypes.c_void_p()
    headers = (ctypes.c_char_p * 1)(MLX_UTILS)
    header_names = (ctypes.c_char_p * 1)(b"mlx/backend/cuda/device/utils.cuh")
    status = library.nvrtcCreateProgram(
        ctypes.byref(program), source.encode("ascii"), file_name.encode(), 1, headers, header_names
    )
    _check(status, "nvrtcCreateProgram")
    try:
        options = [
            "--device-as-default-execution-space",
            f"--gpu-architecture={architecture}",
            f"--include-path={_wheel('cuda_cccl') / 'include'}",
            f"--include-path={_wheel('cuda_runtime') / 'include'}",
        ]
        pointers = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        succeeded = library.nvrtcCompileProgram(program, len(options), pointers) == 0
        log = _text(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog").rstrip(b"\0\n").decode()
        if not succeeded:
            return Compiled(b"", "", log)
        ptx = _text(program, "nvrtcGetPTXSize", "nvrtcGetPTX").rstrip(b"\0").decode()
        return Compiled(_text(program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN"), ptx, log)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _text(program: ctypes.c_void_p, get_size: str, get: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(_library(), get_size)(program, ctypes.byref(size)), get_size)
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(_library(), get)(program, buffer), get)
    return buffer.raw
