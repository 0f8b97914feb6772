"""Checks what a wheel holds: the extension, its stubs, the explorer, nothing that only developers need, no copy of MLX,
and no reference to a GPU-only symbol of MLX.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def main(wheel: str) -> int:
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
            names = archive.namelist()
        extensions = [name for name in names if name.startswith("natten_mlx/_ext") and name.endswith(".so")]
        if not Path(wheel).name.count("-cp310-abi3-"):
            problems.append("it is not for the stable ABI of Python 3.10")
        if len(extensions) != 1:
            problems.append(f"expected one natten_mlx/_ext*.so, found {extensions}")
        for name in ("compare.py", "rivals.py", "guardrail.py", "thresholds.json"):
            if f"natten_mlx/bench/{name}" in names:
                problems.append(f"natten_mlx/bench/{name} is for developers")
        if "natten_mlx/explorer/windows.wasm" not in names:
            problems.append("natten_mlx/explorer/windows.wasm is missing")
        if "natten_mlx/py.typed" not in names:
            problems.append("natten_mlx/py.typed is missing")
        if any(Path(name).name.startswith("libmlx") for name in names):
            problems.append("the wheel holds a copy of libmlx; MLX would be loaded twice")
        if extensions and sys.platform == "linux":
            extension = str(Path(folder) / extensions[0])
            dynamic = subprocess.run(["readelf", "-d", extension], capture_output=True, text=True, check=True).stdout
            if "$ORIGIN/../mlx/lib" not in dynamic:
                problems.append("the extension's run path lacks $ORIGIN/../mlx/lib")
            # MLX's CPU and CUDA libraries share every symbol outside of these namespaces, so one wheel serves both.
            symbols = subprocess.run(["nm", "-DCu", extension], capture_output=True, text=True, check=True).stdout
            device_only = [line for line in symbols.splitlines() if "mlx::core::cu::" in line or "::metal::" in line]
            if device_only:
                problems.append(f"references symbols that only one of MLX's libraries has: {device_only[:3]}")
    for problem in problems:
        print(f"{wheel}: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
