"""nvcc compiles the CUDA kernels for two architectures, warnings as errors, and no kernel keeps registers in memory.

    python ci/check_cuda.py            needs no GPU; without nvcc it says so and passes

Prints what the compiler made of every kernel: registers, bytes of shared memory and of stack, instructions that touch
local memory (spills), loads of 16 bytes. A stack frame or a spill fails: such a kernel waits for memory that no
contract counts. What was compiled with the module is looked at where it is, else it is compiled into build/cuda.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "cuda"
MODULE = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
"""Where setup.py builds the module, with these kernels in it where there is nvcc."""
ARCHITECTURES = ("sm_80", "sm_90")
TARGET = "device_cuda"

_ARCH = re.compile(r"^\s*(?:arch = |code for )(sm_\d+\w*)")
_FUNCTION = re.compile(r"^\s*Function\s*:?\s*([\w$.]+)\s*:?\s*$")
_USAGE = re.compile(r"\b(REG|STACK|SHARED|LOCAL):(\d+)")
_MEMORY = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(LDG|STG|LDL|STL)((?:\.\w+)*)\s")


@dataclass
class Kernel:
    """One kernel as compiled for one architecture."""

    name: str
    arch: str
    registers: int = 0
    stack: int = 0
    shared: int = 0
    local: int = 0
    spills: int = 0
    """Instructions that read or write local memory."""
    loads: Counter[int] = field(default_factory=Counter)
    """Width in bytes -> instructions that load as much from global memory."""
    read_only: Counter[int] = field(default_factory=Counter)
    """Those of the loads that take the memory to be read alone, which the sources of a sum in place are not."""
    stores: Counter[int] = field(default_factory=Counter)

    @property
    def clean(self) -> bool:
        """Whether all of it lives in registers and shared memory."""
        return self.stack == self.local == self.spills == 0


def find_nvcc() -> str | None:
    """The CUDA compiler that CMake would take, or None."""
    named = os.environ.get("CUDACXX")
    return shutil.which(named) if named else shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def disassembler() -> dict[str, str] | None:
    """The environment in which ``cuobjdump`` finds itself and ``nvdisasm``, or None where they are not installed."""
    folders = [str(Path(path).parent) for path in [find_nvcc()] if path]
    for package in ("nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm"):
        try:
            files = metadata.files(package) or []
        except metadata.PackageNotFoundError:
            continue
        folders += [str(Path(str(f.locate())).parent) for f in files if f.parent.name == "bin"]
    path = os.pathsep.join([*folders, os.environ.get("PATH", "")])
    found = all(shutil.which(tool, path=path) for tool in ("cuobjdump", "nvdisasm"))
    return {**os.environ, "PATH": path} if found else None


def compiled(nvcc: str, env: dict[str, str]) -> list[Kernel]:
    """All kernels of this tree for ARCHITECTURES: the module's, where it was built for them, else compiled here.

    Raises CalledProcessError where that fails, the log printed.
    """
    # cmake and ninja of this environment first: the system's may be absent or old.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    tools = {**os.environ, "CUDACXX": nvcc, "PATH": path}
    cache = MODULE / "CMakeCache.txt"
    if cache.exists() and "CMAKE_CUDA_COMPILER:" in cache.read_text():
        found = kernels(_objects(MODULE, tools), env)
        if set(ARCHITECTURES) <= {kernel.arch for kernel in found}:
            return [kernel for kernel in found if kernel.arch in ARCHITECTURES]
    options = ["-DPYSOUP_CUDA=ON", "-DPYSOUP_MODULE=OFF", "-DPYSOUP_WERROR=ON"]
    options += [f"-DPYSOUP_CUDA_ARCH={';'.join(a.removeprefix('sm_') + '-real' for a in ARCHITECTURES)}"]
    _run(["cmake", f"-S{ROOT}", f"-B{BUILD}", "-GNinja", *options], tools)
    return kernels(_objects(BUILD, tools), env)


def _objects(folder: Path, env: dict[str, str]) -> list[Path]:
    """The objects of ``csrc/cuda``, made where a source changed since."""
    _run(["cmake", "--build", str(folder), "--target", TARGET, "--parallel", "2"], env)
    return sorted(folder.rglob(f"{TARGET}.dir/**/*.cu.o"))


def _run(command: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
        done.check_returncode()
    return done.stdout


def kernels(objects: Iterable[Path], env: dict[str, str]) -> list[Kernel]:
    """All kernels of the objects, by name and architecture."""
    found: dict[tuple[str, str], Kernel] = {}
    for path in objects:
        read_usage(_run(["cuobjdump", "--dump-resource-usage", str(path)], env), found)
        read_sass(_run(["cuobjdump", "--dump-sass", str(path)], env), found)
    plain = dict(zip(found, _demangled([name for name, _ in found]), strict=True))
    for key, kernel in found.items():
        kernel.name = plain[key]
    return sorted(found.values(), key=lambda k: (k.name, k.arch))


def read_usage(text: str, found: dict[tuple[str, str], Kernel]) -> None:
    """Adds what ``cuobjdump --dump-resource-usage`` says."""
    for arch, name, line in _functions(text):
        usage = {key: int(value) for key, value in _USAGE.findall(line)}
        if "REG" in usage:
            kernel = found.setdefault((name, arch), Kernel(name, arch))
            kernel.registers, kernel.stack = usage["REG"], usage["STACK"]
            kernel.shared, kernel.local = usage["SHARED"], usage["LOCAL"]


def read_sass(text: str, found: dict[tuple[str, str], Kernel]) -> None:
    """Adds the memory instructions that ``cuobjdump --dump-sass`` lists."""
    for arch, name, line in _functions(text):
        match = _MEMORY.match(line)
        if match is None:
            continue
        kernel = found.setdefault((name, arch), Kernel(name, arch))
        operation, modifiers = match[1], match[2].split(".")
        if operation in ("LDL", "STL"):
            kernel.spills += 1
            continue
        (kernel.loads if operation == "LDG" else kernel.stores)[_width(modifiers)] += 1
        if "CONSTANT" in modifiers:
            kernel.read_only[_width(modifiers)] += 1


def _functions(text: str) -> Iterator[tuple[str, str, str]]:
    """The lines of a listing, each with the architecture and the function that it is about."""
    arch = name = ""
    for line in text.splitlines():
        if match := _ARCH.match(line):
            arch, name = match[1], ""
        elif match := _FUNCTION.match(line):
            name = match[1]
        elif arch and name:
            yield arch, name, line


def _width(modifiers: list[str]) -> int:
    bits = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((bits[m] for m in modifiers if m in bits), 4)


def _demangled(names: list[str]) -> list[str]:
    """``kernel<arguments>``, without namespaces and parameters, where there is a demangler."""
    if not names or shutil.which("c++filt") is None:
        return names
    plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return [_short(name) for name in plain.splitlines()]


def _short(signature: str) -> str:
    name = signature.removeprefix("void ").split("(", 1)[0] if "<" not in signature else _to_parameters(signature)
    return re.sub(r"\b(?:\w+::)+|\([\w ]+\)(?=\d)", "", name.replace("(anonymous namespace)::", ""))


def _to_parameters(signature: str) -> str:
    """Cuts a demangled template's signature before its parameters: at the first bracket outside of ``<>``."""
    text = signature.removeprefix("void ").replace("(anonymous namespace)::", "")
    depth = 0
    for i, sign in enumerate(text):
        depth += {"<": 1, ">": -1}.get(sign, 0)
        if sign == "(" and depth == 0:
            return text[:i]
    return text


def table(found: list[Kernel]) -> str:
    """One line a kernel; what differs between architectures is given for each."""
    names = list(dict.fromkeys(kernel.name for kernel in found))
    wide = max((len(name) for name in names), default=6)
    lines = [f"{' and '.join(dict.fromkeys(k.arch for k in found))}:"]
    lines += [f"{'kernel':{wide}}  registers  shared bytes  stack  spills  16-byte loads  other loads"]
    for name in names:
        alike = [kernel for kernel in found if kernel.name == name]
        narrow = [sum(kernel.loads.values()) - kernel.loads[16] for kernel in alike]
        lines.append(
            f"{name:{wide}}  {_each(k.registers for k in alike):>9}  {_each(k.shared for k in alike):>12}"
            f"  {_each(k.stack for k in alike):>5}  {_each(k.spills for k in alike):>6}"
            f"  {_each(k.loads[16] for k in alike):>13}  {_each(narrow):>11}"
        )
    return "\n".join(lines)


def _each(values: Iterable[int]) -> str:
    different = list(values)
    return "/".join(map(str, different[:1] if len(set(different)) == 1 else different))


def main() -> int:
    nvcc = find_nvcc()
    if nvcc is None:
        looked = "PATH, CUDACXX, /usr/local/cuda/bin"
        print(f"!!! check_cuda: NO nvcc HERE ({looked}): the kernels were NOT compiled for a GPU")
        return 0
    env = disassembler()
    if env is None:
        print("check_cuda: no cuobjdump and nvdisasm: pip install -c constraints.txt '.[test]'", file=sys.stderr)
        return 1
    try:
        found = compiled(nvcc, env)
    except subprocess.CalledProcessError as error:
        print(f"check_cuda: failed: {' '.join(error.cmd)}", file=sys.stderr)
        return 1
    print(table(found))
    seen = {k.arch for k in found}
    missing = [arch for arch in ARCHITECTURES if arch not in seen]
    spoiled = [k for k in found if not k.clean]
    for kernel in spoiled:
        print(f"check_cuda: {kernel.name} ({kernel.arch}) has a stack frame or spills", file=sys.stderr)
    if missing:
        print(f"check_cuda: no kernel for {', '.join(missing)}", file=sys.stderr)
    print(f"check_cuda: {len(found)} kernels, {len(spoiled)} with a stack frame or spills")
    return int(bool(spoiled or missing))


if __name__ == "__main__":
    sys.exit(main())
