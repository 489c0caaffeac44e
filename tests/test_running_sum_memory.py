"""The budget of a running sum, measured: anonymous memory stays within it, whatever the size of the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from soup_models import StateDict

ROOT = Path(__file__).parents[1]
MIB = 1 << 20
ELEMENTS = 24 * MIB
"""Of the model's large tensor: 48 MiB in bf16, 96 MiB in the f32 of the sum."""

# As in test_average_memory.py: VmHWM would count the page cache of mapped files.
CODE = """
import sys, threading, time
import torch
from torch import nn
from pysoup import Averager, HeldOut, greedy_soup

torch.set_num_threads(1)
elements, budget, scenario, *paths = sys.argv[1:]

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.large = nn.Parameter(torch.ones(int(elements), dtype=torch.bfloat16))
        self.small = nn.Linear(3, 2)
    def forward(self, x):
        return self.small(x)

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

peak, running = 0, True
def sample():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.001)

def work(model):
    if scenario == "averager":
        averager = Averager(model, sum_memory=budget, threads=2)
        for path in paths:
            averager.preview(path, out=model)
            averager.add(path)
        averager.result(out=model)
    else:
        averager = greedy_soup(paths, model, data, sum_memory=budget).averager
    assert averager.count == len(paths), averager.count
    return averager.sum_place

model = Model()
data = HeldOut((torch.randn(8, 3), torch.zeros(8, dtype=torch.long)))
small = nn.Linear(2, 2)  # what torch and pysoup allocate once
Averager(small).add(small)
with torch.inference_mode():
    model(torch.zeros(1, 3))
sampler = threading.Thread(target=sample)
sampler.start()
time.sleep(0.05)
base, peak = anonymous(), 0
place = work(model)
running = False
sampler.join()
print(peak - base, place)
"""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three equal models: each is taken, since none lowers the score."""
    directory = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    state: StateDict = {
        "large": torch.full((ELEMENTS,), 0.5, dtype=torch.bfloat16),
        "small.weight": torch.randn(2, 3),
        "small.bias": torch.randn(2),
    }
    made = [directory / f"{k}.safetensors" for k in range(3)]
    save_file(state, made[0])
    for path in made[1:]:
        path.hardlink_to(made[0])
    return made


def measured(budget: str, scenario: str, paths: list[Path]) -> tuple[int, str]:
    command = [sys.executable, "-c", CODE, str(ELEMENTS), budget, scenario, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    grown, place = done.stdout.split()
    return int(grown), place


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("scenario", ["averager", "greedy"])
def test_anonymous_memory_stays_within_the_budget(scenario: str, paths: list[Path]) -> None:
    grown, place = measured("16MiB", scenario, paths)
    assert place == "file"
    assert grown <= (16 + 32) * MIB


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_sum_in_memory_would_not(paths: list[Path]) -> None:
    grown, place = measured("1GiB", "averager", paths)
    assert place == "memory"
    assert grown > 90 * MIB
