"""Directories as the commands leave them, written by hand for the report's tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title></style></script><h1>x",
    "'; alert(1); '",
    "&amp; &lt; &#60;",
    "a|b `c` *d* [e](http://evil.example)",
    "line\nbreak\r\t\0\x1b[31m",
    "\u202egnp.exe\u200b",
    "half \udcff a pair",
    "=cmd|' /C calc'!A0",
    "é 漢字 🍲",
    "]]>--><!--",
]
TESTS = ("test", "sketch", "noise")
BINS = [[0.55, 0.5, 40], [0.75, 0.7, 40], [0.97, 0.95, 40]]


def step(index: int, name: str, **changes: Any) -> dict[str, Any]:
    """A step of a trace."""
    known = {
        "step": index,
        "index": index,
        "ingredient": name,
        "single_score": 0.9 - 0.01 * index,
        "candidate_score": 0.9 + 0.005 * index,
        "best_score_before": 0.9 if index else None,
        "accepted": True,
        "ingredients_after": index + 1,
        "seconds": 0.2,
        "samples": 120,
        "of": 120,
        "bound": None,
        "mix_seconds": 0.1,
        "score_seconds": 0.1,
        "note": "",
        "round": None,
    }
    return known | changes


def write_recipe(folder: Path, recipe: str, names: list[str], **changes: Any) -> None:
    """``trace.json`` and ``results.json`` of a recipe that took ``names`` in equal parts."""
    folder.mkdir(parents=True)
    scores = changes.pop("tests", {"test": 0.93, "sketch": 0.5, "noise": 0.25})
    trace = {
        "pysoup": "0.1.0",
        "recipe": recipe,
        "options": {},
        "metric": "accuracy",
        "direction": "max",
        "score": 0.925,
        "ingredients": names,
        "weights": [1 / len(names)] * len(names),
        "notes": [],
        "passes": {"used": 6.5, "saved": 1.5},
        "timing": {"mix": 0.5, "score": 2.0, "read": 0.25},
        "trace": [],
    } | changes
    (folder / "trace.json").write_text(json.dumps(trace))
    results = {"task": "task.py:Task", "tests": scores, "heldout": trace["score"], "recipe": recipe}
    (folder / "results.json").write_text(json.dumps(results))


def evaluation(name: str, heldout: float, test: float, **facts: Any) -> dict[str, Any]:
    """A model of ``evaluations.json``; its shifts score half and a quarter of ``test``."""
    found = {"heldout": heldout, "test": test, "sketch": test / 2, "noise": test / 4}
    scores = {
        key: {"score": value, "nll": 1 - value, "ece": 0.1 * value, "samples": 120, "seconds": 0.1, "bins": BINS}
        for key, value in found.items()
    }
    known = {"name": name, "kind": "checkpoint", "path": f"/models/{name}", "entry": "", "content": f"hash of {name}"}
    return known | {"scores": scores} | facts


def write_evaluations(folder: Path, models: list[dict[str, Any]], **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "evaluations": 1,
        "pysoup": "0.1.0",
        "torch": "2.9.0",
        "task": "task.py:Task",
        "metric": {"name": "accuracy", "direction": "max", "function": "f"},
        "bins": 15,
        "test": "test",
        "sets": {name: {"fingerprint": "x", "selects": name == "heldout"} for name in ("heldout", *TESTS)},
        "models": models,
    } | changes
    (folder / "evaluations.json").write_text(json.dumps(content))


def write_run(folder: Path, names: list[str]) -> None:
    """A whole run over at least three models of these names: a greedy and a uniform soup, two random orders, a learned
    soup, both ensembles, and evaluations of everything single."""
    models = [
        evaluation(
            name,
            0.9 - 0.01 * i,
            0.85 + 0.01 * i,
            hyperparameters={"learning_rate": 0.001 * (i + 1), "epochs": 8, f"odd {name}": name},
            seed=i,
            training_seconds=30.0,
        )
        for i, name in enumerate(names)
    ]
    models.append(evaluation("start/start.safetensors", 0.8, 0.8))
    write_evaluations(folder, models)
    first, second, third, *_ = names
    steps = [
        step(0, first, candidate_score=0.9),
        step(1, second, candidate_score=0.925),
        step(2, third, candidate_score=None, bound=0.91, samples=30, accepted=False, note=third),
    ]
    write_recipe(folder / "greedy", "greedy", [first, second], trace=steps, options={"order": "score", "passes": 1})
    for seed, score in enumerate((0.91, 0.93)):
        order = {"order": "random", "seed": seed}
        tests = {"test": score, "sketch": 0.5, "noise": 0.25}
        write_recipe(
            folder / f"random-{seed}", "greedy", [first, third], trace=steps, options=order, score=score, tests=tests
        )
    write_recipe(folder / "uniform", "uniform", names)
    granules = [
        {"name": name, "tensors": ["w"], "weights": [1.5 / len(names)] * (len(names) - 1) + [-0.25]} for name in names
    ]
    write_recipe(
        folder / "learned",
        "learned",
        names,
        options={"granularity": "layer"},
        granules=granules,
        beta=1.25,
        losses=[0.5, 0.4, 0.35],
        epochs=[],
    )
    write_recipe(folder / "ensemble", "ensemble", names)
    write_recipe(folder / "some", "greedy ensemble", [first, third], trace=steps)
