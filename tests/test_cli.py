"""The command: what each one prints, where it prints it, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors_files import f32, load, save

from pysoup import _native
from pysoup._version import __version__
from pysoup.cli import files, main


def pysoup(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a user has it."""
    return subprocess.run([sys.executable, "-m", "pysoup", *args], capture_output=True, text=True, **options)


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    return [
        save(tmp_path / "a.safetensors", {"w": f32(1, 2, 3), "b": f32(0)}),
        save(tmp_path / "b.safetensors", {"w": f32(3, 2, 5), "b": f32(1)}),
    ]


def test_version_is_printed_alone() -> None:
    done = pysoup("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"pysoup {__version__}\n", "")


def test_version_among_other_arguments_is_printed_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version", "inspect"]) == 0
    assert capsys.readouterr().out == f"pysoup {__version__}\n"


@pytest.mark.parametrize(
    "args",
    [
        ["cook"],
        ["average"],
        ["average", "a.safetensors"],
        ["average", "a", "-o", "b", "--threads", "many"],
        ["average", "a", "-o", "b", "--weights", "1,x"],
        ["average", "a", "-o", "b", "--keys", "some"],
        ["average", "a", "-o", "b", "--integers", "min"],
        ["average", "a", "-o", "b", "--frobnicate"],
        ["greedy", "a", "-o", "b"],
        ["greedy", "a", "-o", "b", "--task", "t.py:T", "--accept", "="],
        ["inspect"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2_with_nothing_on_stdout(args: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("Usage: pysoup")


def test_no_arguments_show_the_commands_and_exit_2(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "average" in "".join(capfd.readouterr())


@pytest.mark.parametrize("command", ["average", "inspect", "doctor", "uniform", "greedy", "demo"])
def test_help_of_every_command_exits_0(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"pysoup {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], {"weights": None, "normalize": True, "dtype": None, "threads": None, "sync": None, "overwrite": False}),
        (["--sync", "--force"], {"sync": True, "overwrite": True}),
        (["--no-sync", "--no-normalize", "--threads", "3"], {"sync": False, "normalize": False, "threads": 3}),
    ],
    ids=["none", "on", "off"],
)
def test_average_passes_options_on_and_leaves_the_others_open(
    args: list[str], expected: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, object]] = []
    monkeypatch.setattr(files, "average", lambda *_, **options: calls.append(options))
    assert main(["average", "a", "-o", "b", *args]) == 0
    (options,) = calls
    assert {name: options[name] for name in expected} == expected


def test_average_writes_the_mean_and_a_summary(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "soup.safetensors"
    assert main(["average", *pair, "-o", str(output)]) == 0
    assert load(output) == {"w": f32(2, 2, 4), "b": f32(0.5)}
    out, err = capsys.readouterr()
    assert "averaged 2 checkpoints" in out
    assert "2 tensors, 4 parameters" in out
    assert err == ""


def test_average_weights_are_normalised_unless_told_otherwise(pair: list[str], tmp_path: Path) -> None:
    output = tmp_path / "soup.safetensors"
    assert main(["average", *pair, "-o", str(output), "--weights", "3,1"]) == 0
    assert load(output)["w"] == f32(1.5, 2, 3.5)
    assert main(["average", *pair, "-o", str(output), "--weights=-1,2", "--no-normalize", "--force"]) == 0
    assert load(output)["w"] == f32(5, 2, 7)


def test_average_dtype_changes_the_output_type(pair: list[str], tmp_path: Path) -> None:
    output = tmp_path / "soup.safetensors"
    assert main(["average", *pair, "-o", str(output), "--dtype", "bf16"]) == 0
    dtype, shape, data = load(output)["w"]
    assert (dtype, shape) == ("BF16", [3])
    assert data == b"".join(f32(x)[2][2:] for x in (2, 2, 4))


@pytest.mark.parametrize(("keys", "names"), [("intersection", {"w"}), ("union", {"w", "b", "c"})])
def test_average_keys_choose_the_tensors(keys: str, names: set[str], tmp_path: Path) -> None:
    a = save(tmp_path / "a.safetensors", {"w": f32(1), "b": f32(7)})
    b = save(tmp_path / "b.safetensors", {"w": f32(3), "c": f32(9)})
    output = tmp_path / "soup.safetensors"
    assert main(["average", a, b, "-o", str(output), "--keys", keys]) == 0
    found = load(output)
    assert set(found) == names
    assert found["w"] == f32(2)
    assert found.get("c", f32(9)) == f32(9)


def test_average_integers_option_decides_where_they_differ(tmp_path: Path) -> None:
    inputs = [save(tmp_path / f"{n}.safetensors", {"n": ("I32", [1], n.to_bytes(4, "little"))}) for n in (5, 9)]
    output = tmp_path / "soup.safetensors"
    for choice, expected in (("first", 5), ("max", 9)):
        assert main(["average", *inputs, "-o", str(output), "--integers", choice, "--force"]) == 0
        assert load(output)["n"][2] == expected.to_bytes(4, "little")
    assert main(["average", *inputs, "-o", str(output), "--force"]) == 1


def test_average_dry_run_writes_nothing(pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tmp_path.iterdir())
    assert main(["average", *pair, "-o", str(tmp_path / "soup.safetensors"), "--dry-run"]) == 0
    assert "would average 2 checkpoints" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before


def test_average_json_is_one_object_that_says_what_was_done(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "soup.safetensors")
    assert main(["average", *pair, "-o", output, "--weights", "3,1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["output"] == output
    assert report["inputs"] == pair
    assert report["weights"] == [0.75, 0.25]
    assert (report["tensors"], report["parameters"], report["dry_run"]) == (2, 4, False)


def test_average_reports_duplicate_inputs(pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twin = tmp_path / "twin.safetensors"
    twin.write_bytes(Path(pair[0]).read_bytes())
    assert main(["average", pair[0], str(twin), "-o", str(tmp_path / "soup.safetensors")]) == 0
    assert "twin.safetensors" in capsys.readouterr().out


def test_average_stays_within_the_threads_and_memory_given(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "soup.safetensors")
    assert main(["average", *pair, "-o", output, "--threads", "1", "--memory", "16MiB", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["threads"] == 1
    assert report["memory_bytes"] <= 16 << 20


def test_inspect_lists_every_tensor(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", pair[0]]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["w", "F32", "3", "12", "B"] in lines
    assert ["b", "F32", "1", "4", "B"] in lines
    assert ["total:", "2", "tensors,", "16", "B"] in lines


def test_inspect_json_has_the_facts_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {"layer.w": ("BF16", [2, 3], bytes(12)), "n": ("I64", [], bytes(8)), "none": ("F32", [0, 4], b"")}
    header = {
        "__metadata__": {"format": "pt"},
        "layer.w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
        "n": {"dtype": "I64", "shape": [], "data_offsets": [12, 20]},
        "none": {"dtype": "F32", "shape": [0, 4], "data_offsets": [20, 20]},
    }
    path = save(tmp_path / "a.safetensors", tensors, header)
    assert main(["inspect", path, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["together"] is None
    (facts,) = result["checkpoints"]
    assert facts["path"] == path
    assert facts["metadata"] == {"format": "pt"}
    assert {t["name"]: (t["dtype"], t["shape"], t["bytes"]) for t in facts["tensors"]} == {
        "layer.w": ("BF16", [2, 3], 12),
        "n": ("I64", [], 8),
        "none": ("F32", [0, 4], 0),
    }
    assert facts["dtypes"]["BF16"] == {"tensors": 1, "elements": 6, "bytes": 12}


def test_inspect_of_shards_names_the_file_of_each_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    save(tmp_path / names[0], {"w": f32(1)})
    save(tmp_path / names[1], {"b": f32(2)})
    index = {"metadata": {"total_size": 8}, "weight_map": {"w": names[0], "b": names[1]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert main(["inspect", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["w", "F32", "1", "4", "B", names[0]] in lines
    assert ["b", "F32", "1", "4", "B", names[1]] in lines


def inspected(paths: Sequence[str], capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert main(["inspect", *paths, "--json"]) == 0
    together = json.loads(capsys.readouterr().out)["together"]
    assert isinstance(together, dict)
    return together


def test_inspect_of_several_says_that_they_can_be_averaged(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert inspected(pair, capsys) == {"can_average": True, "differences": [], "duplicates": []}
    assert main(["inspect", *pair]) == 0
    assert capsys.readouterr().out.endswith("can be averaged: yes\n")


def test_inspect_of_several_says_what_differs_and_which_are_copies(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = save(tmp_path / "shape.safetensors", {"w": f32(1, 2), "b": f32(0)})
    dtype = save(tmp_path / "dtype.safetensors", {"w": f32(1, 2, 3), "b": ("F16", [1], bytes(2))})
    twin = tmp_path / "twin.safetensors"
    twin.write_bytes(Path(pair[0]).read_bytes())
    together = inspected([*pair, shape, dtype, str(twin)], capsys)
    assert together["can_average"] is False
    assert together["duplicates"] == [[pair[0], str(twin)]]
    differences = together["differences"]
    assert isinstance(differences, list)
    assert len(differences) == 2
    assert "shape.safetensors" in differences[0]
    assert "dtype.safetensors" in differences[1]
    assert "F16" in differences[1]


def test_inspect_escapes_control_characters_in_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.safetensors", {"evil\x1b[31m\nname": f32(1)})
    assert main(["inspect", path]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "evil\\x1b[31m\\nname" in out


def test_doctor_agrees_with_the_native_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    native = _native.capabilities()
    assert facts["pysoup"] == __version__
    assert {key: facts[key] for key in ("isa", "isas", "cuda", "threads")} == {
        key: native[key] for key in ("isa", "isas", "cuda", "threads")
    }
    assert all(value > 0 for value in facts["bandwidth_bytes_per_second"].values())


def test_doctor_in_text_names_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    labels = [line.split()[0] for line in out.splitlines()]
    assert labels == ["pysoup", "python", "platform", "torch", "cpus", "compiler", "isa", "cuda", "threads", "memory"]


def test_doctor_without_the_native_module_says_why_and_exits_1() -> None:
    # None in sys.modules is how Python itself marks a module that cannot be imported.
    code = "import sys; sys.modules['pysoup._C'] = None; from pysoup.cli import main; sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "native code unusable" in done.stdout
    assert "Traceback" not in done.stderr


def test_doctor_names_an_isa_forced_by_mistake() -> None:
    done = pysoup("doctor", env={**os.environ, "PYSOUP_ISA": "sse9"})
    assert done.returncode == 1
    assert "sse9" in done.stdout + done.stderr


def test_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", {f"layer.{i}.weight": f32(i) for i in range(20_000)})
    command = [sys.executable, "-m", "pysoup", "inspect", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1


@pytest.mark.alone
def test_interrupt_leaves_one_line_no_file_and_exit_130(tmp_path: Path) -> None:
    # One sparse file under 200 names: 50 GiB to read, so the average still runs when the signal arrives.
    names = [tmp_path / f"{i}.safetensors" for i in range(200)]
    size = 1 << 28
    save(names[0], {}, {"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}})
    os.truncate(names[0], names[0].stat().st_size + size)
    for name in names[1:]:
        os.link(names[0], name)
    before = sorted(tmp_path.iterdir())
    command = [sys.executable, "-m", "pysoup", "average", *names, "-o", tmp_path / "soup.safetensors"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while sorted(tmp_path.iterdir()) == before and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        out, err = process.communicate()
        assert time.monotonic() - started < 1
    assert (process.returncode, out, err) == (130, "", "pysoup: interrupted\n")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", [["--version"], ["inspect", "FILE"], ["average", "FILE", "-o", "OUT"], ["doctor"]])
def test_commands_without_a_model_do_not_import_torch(command: list[str], tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", {"w": f32(1)})
    args = [{"FILE": path, "OUT": str(tmp_path / "out.safetensors")}.get(word, word) for word in command]
    heavy = ["torch", "numpy", "rich"]
    heavy += ["click"] if command == ["--version"] else []
    # Slow to load, and the fast commands can do without.
    heavy += ["importlib.metadata", "hashlib", "random"] if command != ["doctor"] else []
    code = (
        "import sys; from pysoup.cli import main; code = main(sys.argv[2:]); "
        "loaded = [m for m in sys.argv[1].split(',') if m in sys.modules]; sys.exit(str(loaded) if loaded else code)"
    )
    done = subprocess.run([sys.executable, "-c", code, ",".join(heavy), *args], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
