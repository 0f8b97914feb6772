"""Compiles every CUDA kernel that the tests use. Exits with 1 on an error.

    python tests/nvrtc/gate.py build/dev/tests/nvrtc/natten_cuda_sources

Each kernel is compiled as this library does it, for Ampere or Hopper, every 50th also for the other generations
(--all: each for all). MLX's way, the same text behind headers that take 1.5 s to parse, is tried with every 30th.
Runs without a GPU and without the CUDA toolkit. What compiled once is remembered, by the hash of its text, in
$XDG_CACHE_HOME/natten-mlx/nvrtc (NATTEN_NVRTC_CACHE replaces that folder).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import struct
import subprocess
import sys
import tempfile
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nvrtc

ARCHITECTURES = ("sm_80", "sm_90a")  # Ampere and Hopper
OTHERS = ("sm_89", "sm_100a")  # Ada and Blackwell

BROKEN = {
    "an unknown name": "__global__ void k(float* y) { y[0] = unknown; }",
    "too much shared memory": (
        "__global__ void k(float* y) { __shared__ float x[20000]; x[threadIdx.x] = 1; y[0] = *x; }"
    ),
    "a wrong instruction": '__global__ void k(float* y) { asm("ex3.approx.f32 %0, %0;" : "+f"(y[0])); }',
}

# ptxas (CUDA 12.9, 13.0) makes one instruction of a maximum of three on sm_90, and forgets the sign of operands.
LOST_SIGN = """
  neg.s32 %r1, %r8;
  max.s32 %r2, %r1, %r9;
  max.s32 %r3, %r2, %r7;
"""


def lost_signs(ptx: str) -> list[str]:
    """Registers of PTX that are a maximum (or minimum) of three, of which one is a negated integer."""
    made = {
        match[2]: (match[1], match[3].split(", "))
        for match in re.finditer(r"^\s*([a-z0-9.]+)\s+(%r\d+), ([^;\n]+);", ptx, re.MULTILINE)
    }

    def kind(register: str) -> str:
        return made[register][0] if register in made else ""

    found = []
    for register, (outer, operands) in made.items():
        for inner in operands:
            if outer in ("max.s32", "min.s32") and kind(inner) == outer:
                leaves = {*operands, *made[inner][1]} - {inner}
                found += [register for leaf in leaves if kind(leaf) == "neg.s32"]
    return found


# ptxas makes a predicate of the condition.
CONDITIONAL = """__global__ void k(int* y, int n) {
  const int of_lane = y[threadIdx.x];
  int most = n;
  if (n > 3) most = __reduce_max_sync(~0u, of_lane);
  y[threadIdx.x] = most + of_lane;
}"""


def conditional_reductions(cubin: bytes) -> int:
    """How many REDUX instructions are under a predicate. On sm_90 ptxas (CUDA 12.9, 13.0) gives them the number of a
    uniform predicate and means the plain one of that number, which holds something else."""
    sections_at, size, count = (int.from_bytes(cubin[at : at + n], "little") for at, n in ((40, 8), (58, 2), (60, 2)))
    found = 0
    for i in range(count):
        _, kind, flags, _, offset, length = struct.unpack_from("<IIQQQQ", cubin, sections_at + i * size)
        if kind == 1 and flags & 4:  # a program's bytes, executable
            code = struct.unpack_from(f"<{length // 8}Q", cubin, offset)[::2]  # the half with opcode and predicate
            found += sum(word & 0xFFF == 0x3C4 and word >> 12 & 0xF != 7 for word in code)
    return found


def cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("NATTEN_NVRTC_CACHE") or Path(home) / "natten-mlx" / "nvrtc")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check(job: tuple[str, str, str]) -> str:
    """Compiles one (name, text, architecture). Returns the compiler's messages, empty when it succeeded."""
    name, text, architecture = job
    key = f"{nvrtc.version()}\nevery sign and reduction\n{architecture}\n{text}"
    seen = cache_folder() / hashlib.sha256(key.encode()).hexdigest()
    if seen.exists():
        return ""
    result = nvrtc.compile_cuda(text, architecture, f"{name}.cu")
    if not result.ok:
        return f"{name} for {architecture}:\n{result.log or 'no code, and no message'}"
    # For Ampere too: only Hopper's assembler loses them, but each kernel is compiled for one of the two.
    if registers := lost_signs(result.ptx):
        return f"{name} for {architecture}: the assembler loses signs in {', '.join(registers)}; see opaque()"
    if number := conditional_reductions(result.cubin):
        return f"{name} for {architecture}: {number} reductions of a warp are conditional; see meeting_of()"
    seen.touch()
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", help="writes the sources into the folder that is its argument")
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--all", action="store_true", help="every kernel for every architecture, in both forms")
    parser.add_argument("--only", nargs="+", default=["*"], help="names of kernels, for example '2d_*_forward'")
    arguments = parser.parse_args()

    for what, text in BROKEN.items():
        for architecture in ARCHITECTURES:
            if nvrtc.compile_cuda(text, architecture).ok:
                print(f"The gate is open: it let {what} pass for {architecture}.", file=sys.stderr)
                return 1

    if not lost_signs(LOST_SIGN) or not conditional_reductions(nvrtc.compile_cuda(CONDITIONAL, "sm_90a").cubin):
        print("The gate is open: it does not see a lost sign or a conditional reduction.", file=sys.stderr)
        return 1

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([arguments.program, folder], check=True)
        paths = {path for pattern in arguments.only for path in Path(folder).glob(f"{pattern}.cu")}
        sources = {path.stem: path.read_text(encoding="ascii") for path in sorted(paths)}
    unique = {text: name for name, text in reversed(sources.items())}
    named = sorted((name, text) for text, name in unique.items())
    ours = [(name, text) for name, text in named if not name.endswith("_mlx")]
    of_mlx = [(name, text) for name, text in named if name.endswith("_mlx")]
    jobs: list[tuple[str, str, str]] = []
    for kernels, every in ((ours, 1), (of_mlx, 30)):
        for name, text in kernels:
            number = zlib.crc32(name.encode())  # whatever other kernels there are
            if arguments.all:
                architectures = ARCHITECTURES + OTHERS
            elif number % every:
                continue
            else:
                architectures = (ARCHITECTURES[number // every % 2], *(OTHERS if number // every % 50 == 0 else ()))
            if "_sm_90a" in name:
                architectures = ("sm_90a",)
            jobs += [(name, text, architecture) for architecture in architectures]
    with ProcessPoolExecutor(arguments.jobs) as pool:
        complaints = [complaint for complaint in pool.map(check, jobs, chunksize=4) if complaint]
    kernels_compiled = len({text for _, text, _ in jobs})
    print(f"NVRTC {nvrtc.version()}: {kernels_compiled} kernels, {len(jobs)} times, {len(complaints)} rejected.")
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints or not jobs else 0


if __name__ == "__main__":
    sys.exit(main())
