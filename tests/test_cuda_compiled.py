"""What nvcc makes of the kernels, read off its machine code: no GPU runs here."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ci_scripts import script

CHECK: ModuleType = script("check_cuda")
NVCC = CHECK.find_nvcc()
TOOLS = CHECK.disassembler()

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc here")
needs_disassembler = pytest.mark.skipif(TOOLS is None, reason="no cuobjdump and nvdisasm here")

USAGE = """
Fatbin elf code:
================
arch = sm_80

Resource usage:
 Common:
  GLOBAL:0
 Function _ZN4soup10sum_kernelIfLi4EEEvPKf:
  REG:40 STACK:16 SHARED:1024 LOCAL:0 CONSTANT[0]:372 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
SASS = """
	code for sm_80
		Function : _ZN4soup10sum_kernelIfLi4EEEvPKf
	.headerflags	@"EF_CUDA_TEXMODE_UNIFIED"
        /*0000*/                   MOV R1, c[0x0][0x28] ;               /* 0x00000a0000017a02 */
        /*0010*/                   LDG.E.128.STRONG.SM R4, [R2.64] ;    /* 0x0000000402047981 */
        /*0020*/              @!P0 LDG.E.U16 R8, [R2.64+0x10] ;         /* 0x0000000402047981 */
        /*0030*/                   LDG.E.CONSTANT R9, [R2.64+0x14] ;    /* 0x0000000402047981 */
        /*0040*/                   STL.64 [R1], R8 ;                    /* 0x0000000402047981 */
        /*0050*/              @P1  STG.E.EF.64 [R2.64], R8 ;            /* 0x0000000402047981 */
        /*0060*/                   LDL R8, [R1+0x8] ;                   /* 0x0000000402047981 */
"""
STACKED = """
__global__ void stacked_kernel(const float* a, float* b, int n) {
  float kept[256];
  for (int i = 0; i < 256; i++) kept[i] = a[i];
  for (int i = 0; i < n; i++) kept[(i * n) & 255] += a[i] * kept[i & 255];
  for (int i = 0; i < 256; i++) b[i] = kept[i];
}
__global__ void plain_kernel(const float4* a, float4* b) { b[threadIdx.x] = a[threadIdx.x]; }
"""


def test_usage_and_instructions_of_a_listing_are_read() -> None:
    found: dict[tuple[str, str], Any] = {}
    CHECK.read_usage(USAGE, found)
    CHECK.read_sass(SASS, found)
    (kernel,) = found.values()
    assert (kernel.arch, kernel.registers, kernel.stack, kernel.shared) == ("sm_80", 40, 16, 1024)
    assert kernel.loads == {16: 1, 2: 1, 4: 1}
    assert kernel.read_only == {4: 1}
    assert kernel.stores == {8: 1}
    assert kernel.spills == 2
    assert not kernel.clean


def test_check_without_nvcc_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(CHECK, "find_nvcc", lambda: None)
    assert CHECK.main() == 0
    assert "NO nvcc HERE" in capsys.readouterr().out


@needs_nvcc
@needs_disassembler
def test_kernel_with_an_array_in_local_memory_is_noticed(tmp_path: Path) -> None:
    source, target = tmp_path / "stacked.cu", tmp_path / "stacked.o"
    source.write_text(STACKED)
    subprocess.run([str(NVCC), "-arch=sm_90", "-c", str(source), "-o", str(target)], check=True)
    found = {kernel.name: kernel for kernel in CHECK.kernels([target], TOOLS)}
    stacked, plain = (next(k for name, k in found.items() if word in name) for word in ("stacked", "plain"))
    assert not stacked.clean
    assert stacked.stack >= 1024
    assert plain.clean
    assert plain.loads[16] == 1


@pytest.fixture(scope="module")
def compiled() -> list[Any]:
    """The kernels of this tree, compiled now unless the module has them or ``make cuda-check`` did it."""
    return CHECK.compiled(str(NVCC), TOOLS)


@needs_nvcc
@needs_disassembler
def test_kernels_are_compiled_for_two_architectures_without_spills(compiled: list[Any]) -> None:
    assert {kernel.arch for kernel in compiled} == set(CHECK.ARCHITECTURES)
    assert [f"{k.name} ({k.arch})" for k in compiled if not k.clean] == []


@needs_nvcc
@needs_disassembler
@pytest.mark.parametrize("name", ["weighted_sum_kernel", "logits_kernel", "dots_kernel"])
def test_kernel_loads_sixteen_bytes_at_a_time(compiled: list[Any], name: str) -> None:
    chosen = [kernel for kernel in compiled if kernel.name.startswith(name)]
    assert chosen
    for kernel in chosen:
        assert kernel.loads[16] > 0, f"{kernel.name} ({kernel.arch})"


@needs_nvcc
@needs_disassembler
def test_rows_of_logits_in_registers_are_all_on_their_way_at_once(compiled: list[Any]) -> None:
    chosen = [kernel for kernel in compiled if kernel.name.startswith("logits_rows_kernel")]
    assert chosen
    for kernel in chosen:
        assert kernel.loads[8] >= 16, f"{kernel.name} ({kernel.arch})"


@needs_nvcc
@needs_disassembler
def test_sums_never_take_their_sources_for_unchanging(compiled: list[Any]) -> None:
    """In place the destination is a source: a load through the read-only cache could miss what was written."""
    for kernel in compiled:
        if kernel.name.startswith("weighted_sum_kernel"):
            assert kernel.read_only[16] == 0, f"{kernel.name} ({kernel.arch})"
