"""The report as one page: complete by itself, well-formed, readable by everybody, and safe from any name."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from page_reader import Element, read_page
from report_runs import HOSTILE, evaluation, step, write_evaluations, write_recipe, write_run

from pysoup.report.html import clean
from pysoup.report.write import write_report

NAMES = [f"sweep/model_{i:02d}.safetensors" for i in range(4)]


def made(tmp_path: Path, names: list[str]) -> str:
    write_run(tmp_path / "run", names)
    write_report(tmp_path / "run", tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def text(tmp_path: Path) -> str:
    return made(tmp_path, NAMES)


@pytest.fixture
def page(text: str) -> Element:
    return read_page(text)


def test_the_reader_finds_what_is_not_well_formed() -> None:
    for broken in ("<p><b></p>", "<p>", "</p>", '<p id="a" id="b"></p>'):
        with pytest.raises(AssertionError):
            read_page(broken)


def test_nothing_is_loaded_from_elsewhere(text: str, page: Element) -> None:
    for element in page.all():
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            if name in element.attributes:
                assert element.attributes[name].startswith(("#", "data:image/svg+xml;base64,"))
    assert not page.all("link", "iframe", "object", "embed", "base", "form")
    assert not re.search(r"https?:|@import|url\(", text)


def test_the_policy_allows_the_script_of_the_page_alone(page: Element) -> None:
    (policy,) = [e.attributes["content"] for e in page.having(http_equiv="Content-Security-Policy")]
    (script,) = page.all("script")
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert not [e for e in page.all() if any(name.startswith("on") or name == "style" for name in e.attributes)]


def test_ids_are_unique_and_references_lead_somewhere(page: Element) -> None:
    ids = [e.attributes["id"] for e in page.all() if "id" in e.attributes]
    assert len(set(ids)) == len(ids)
    links = [e.attributes["href"].removeprefix("#") for e in page.all("a")]
    labels = [e.attributes["aria-labelledby"] for e in page.all() if "aria-labelledby" in e.attributes]
    assert len(links) == len(labels) == len(page.all("section")) >= 9
    assert set(links) | set(labels) <= set(ids)


def test_headings_go_down_one_level_at_a_time(page: Element) -> None:
    levels = [int(e.tag[1]) for e in page.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_tables_have_captions_and_headers_for_rows_and_columns(page: Element) -> None:
    tables = page.all("table")
    assert len(tables) >= 6
    for table in tables:
        assert table.all("caption")[0].text
        (head,), (body,) = table.all("thead"), table.all("tbody")
        columns = head.all("th")
        assert all(cell.attributes["scope"] == "col" for cell in columns)
        for row in body.all("tr"):
            cells = row.all("th", "td")
            assert len(cells) == len(columns)
            assert [cell.attributes.get("scope") for cell in cells] == ["row", *[None] * (len(cells) - 1)]
    boxes = [e for e in page.having(class_="scroll") if e.all("table")]
    assert len(boxes) == len(tables)  # so that the page itself never scrolls sideways
    assert all(box.attributes["tabindex"] == "0" and box.attributes["aria-label"] for box in boxes)


def test_figures_are_named_and_their_marks_say_what_they_are_without_a_script(page: Element) -> None:
    drawings = [svg for svg in page.all("svg") if svg.attributes.get("aria-hidden") != "true"]
    assert len(drawings) >= 6
    assert all(svg.attributes["aria-label"] and svg.attributes["viewbox"] for svg in drawings)
    marks = page.having(class_="mark")
    assert len(marks) > 20
    for mark in marks:
        assert mark.attributes["tabindex"] == "0"
        assert mark.attributes["aria-label"] == mark.all("title")[0].text
        assert json.loads(mark.attributes["data-tip"])


def test_a_model_is_a_point_that_tells_its_hyperparameters(page: Element) -> None:
    (figure,) = page.having(id="figure")
    models = figure.having(class_="model")
    marks = [mark for mark in models if "mark" in mark.attributes["class"]]
    assert len(marks) == len(NAMES)
    tip = dict(json.loads(marks[1].attributes["data-tip"]))
    assert tip["learning_rate"] == "0.002"
    assert (tip["heldout"], tip["test"]) == ("89.00", "86.00")
    labels = [mark.attributes["aria-label"] for mark in figure.having(class_="mark")]
    assert sum(label.startswith("model_") for label in labels) == len(NAMES)
    for soup in ("Uniform soup", "Greedy soup", "Learned soup (by layer)", "Ensemble", "Greedy ensemble"):
        assert any(label.startswith(f"{soup};") for label in labels)


def test_the_place_of_a_point_is_its_scores(page: Element) -> None:
    (figure,) = page.having(id="figure")
    centres = []
    for mark in figure.having(class_="model"):
        if "mark" in mark.attributes["class"]:
            path = mark.all("path")[0].attributes["d"]
            numbers = [float(number) for number in re.findall(r"-?[0-9.]+", path)]
            centres.append((sum(numbers[::2]) / 4, sum(numbers[1::2]) / 4))
    # Test scores rise by 0.01 a model, shifts with them: equal steps to the right and up.
    steps = [(b[0] - a[0], a[1] - b[1]) for a, b in pairwise(centres)]
    assert all(x > 5 and y > 5 for x, y in steps)
    assert max(x for x, _ in steps) - min(x for x, _ in steps) < 0.3


def test_the_best_of_each_column_is_bold(page: Element) -> None:
    (section,) = page.having(id="table")
    header = [cell.text for cell in section.all("thead")[0].all("th")]
    bold: dict[str, set[str]] = {}
    for row in section.all("tbody")[0].all("tr"):
        for name, cell in zip(header, row.all("th", "td"), strict=True):
            if cell.all("strong"):
                bold.setdefault(name, set()).add(cell.text)
    assert bold == {
        "heldout": {"92.50"},
        "test": {"93.00"},
        "mean of shifts": {"37.50", "37.50 (0.00)"},
        "sketch": {"50.00", "50.00 (0.00)"},
        "noise": {"25.00", "25.00 (0.00)"},
    }


def test_a_path_has_every_step_with_its_verdict_and_the_bound_of_early_refusals(page: Element) -> None:
    (section,) = page.having(id="paths")
    rows = [[cell.text for cell in row.all("th", "td")] for row in section.all("tbody")[0].all("tr")]
    assert [row[6] for row in rows] == ["kept", "kept", "refused early"]
    assert rows[2][3] == "\u2264 91.00"
    assert rows[2][5] == "25%"
    kinds = [mark.attributes["class"] for mark in section.all("svg")[0].having(class_="step")]
    assert kinds == ["mark step kept", "mark step kept", "mark step early"]


def test_a_learned_soup_shows_weights_by_granule_beta_and_loss(page: Element) -> None:
    (section,) = page.having(id="learned")
    assert "beta" in section.text
    assert "1.25" in section.text
    cells = section.having(class_="cell")
    assert len(cells) == len(NAMES) ** 2
    assert len(section.having(class_="negative")) == len(NAMES)
    (curve,) = section.having(class_="so-far")
    assert len(curve.attributes["points"].split()) == 3


def test_a_path_between_two_models_has_a_point_for_each_alpha(tmp_path: Path) -> None:
    alphas = (0.0, 0.5, 1.0)
    points = [
        {"alpha": alpha, "score": 0.5 + alpha / 8, "tests": {"test": 0.5 + alpha / 4, "a": 0.25, "b": alpha / 2}}
        for alpha in reversed(alphas)
    ]
    tests = {"test": 0.75, "a": 0.25, "b": 0.5}
    changes = {"points": points, "alpha": 1.0, "barrier": 0.015, "tests": tests}
    write_recipe(tmp_path / "run", "interpolated", ["zero", "one"], **changes)
    write_report(tmp_path / "run", tmp_path / "report.html")
    (section,) = read_page((tmp_path / "report.html").read_text()).having(id="interpolated")
    assert "Alpha 1 was chosen" in section.text
    assert "1.50%" in section.text
    tips = [dict(json.loads(mark.attributes["data-tip"])) for mark in section.having(class_="mark")]
    found = {(next(iter(tip)), tip["alpha"]): tip["accuracy"] for tip in tips}
    assert len(found) == 9
    assert found["heldout", "0.5"] == "56.25"
    assert found["test", "0.5"] == "62.50"
    assert found["mean of shifts", "1"] == "37.50"
    for line in section.all("polyline"):
        xs = [float(point.split(",")[0]) for point in line.attributes["points"].split()]
        assert xs == sorted(xs)
        assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)


def test_calibration_and_cost_have_table_and_figure(page: Element) -> None:
    for key, words in (("calibration", ("ECE", "NLL")), ("cost", ("passes saved", "1.5"))):
        (section,) = page.having(id=key)
        assert all(word in section.text for word in words)
        assert section.all("table")
        assert section.all("svg")


def test_commands_and_hashes_to_make_it_again_are_there(page: Element) -> None:
    (section,) = page.having(id="again")
    commands = [code.text for code in section.all("pre")]
    assert any(
        c.startswith("pysoup greedy --task task.py:Task --passes 1 sweep/model_00.safetensors") for c in commands
    )
    assert any("--order random --seed 1" in c for c in commands)
    assert any(c.startswith("pysoup ensemble --all ") for c in commands)
    assert f"hash of {NAMES[0]}" in section.text
    assert "torch 2.9.0" in section.text


def test_missing_parts_are_left_out_with_the_command_that_makes_them(tmp_path: Path) -> None:
    write_recipe(tmp_path / "run", "uniform", ["a"])
    write_report(tmp_path / "run", tmp_path / "report.html")
    page = read_page((tmp_path / "report.html").read_text())
    ids = {section.attributes["id"] for section in page.all("section")}
    assert not ids & {"calibration", "learned", "paths", "figure"}
    (missing,) = page.having(id="missing")
    assert "pysoup evaluate --task task.py:Task" in missing.text


def test_figures_of_analyses_are_pictures_that_can_do_nothing(tmp_path: Path) -> None:
    write_recipe(tmp_path / "run", "uniform", ["a"])
    drawing = "<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><script>alert(1)</script></svg>"
    content = {"analysis": "plane", "models": ["a", "b"], "best": 0.5, "name": "<b>"}
    (tmp_path / "run" / "plane.json").write_text(json.dumps(content))
    for name in ("plane.svg", "planes.svg", "other.svg"):
        (tmp_path / "run" / name).write_text(drawing)
    write_report(tmp_path / "run", tmp_path / "report.html")
    page = read_page((tmp_path / "report.html").read_text())
    (image,) = page.all("img")
    assert image.attributes["alt"] == "plane.svg"
    kind, _, data = image.attributes["src"].partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data).decode() == drawing
    assert len(page.all("script")) == 1
    (section,) = page.having(id="analyses")
    cells = [[cell.text for cell in row.all("th", "td")] for row in section.all("tbody")[0].all("tr")]
    assert cells == [["best", "0.5"], ["name", "<b>"]]


def test_numbers_of_analyses_below_the_first_level_and_pngs_are_shown(tmp_path: Path) -> None:
    write_recipe(tmp_path / "run", "uniform", ["a"])
    angles = {"analysis": "angles", "pysoup": "0.1.0", "correlations": {"all": {"rho": 0.25, "p_value": None}}}
    tests = {"accuracy_test": {"difference": 0.125, "p_value": 0.0625}, "nll_test": None}
    pair = {"first": 0, "second": 1, "sets": {"test": tests}}
    compare = {"analysis": "compare", "models": ["a", "b"], "comparisons": [pair, {"first": 7, "sets": {}}, None]}
    for content in (angles, compare):
        (tmp_path / "run" / f"{content['analysis']}.json").write_text(json.dumps(content))
    (tmp_path / "run" / "angles.png").write_bytes(b"\x89PNG\r\n\xff")
    (tmp_path / "run" / "count.json").write_text(json.dumps({"analysis": "count"}))
    write_report(tmp_path / "run", tmp_path / "report.html")
    page = read_page((tmp_path / "report.html").read_text())
    (section,) = page.having(id="analyses")
    cells = [[cell.text for cell in row.all("th", "td")] for body in section.all("tbody") for row in body.all("tr")]
    assert cells == [
        ["correlations: all: rho", "0.25"],
        ["a against b, test: accuracy: difference", "0.125"],
        ["a against b, test: accuracy: p value", "0.0625"],
    ]
    (image,) = page.all("img")
    kind, _, data = image.attributes["src"].partition(",")
    assert (kind, base64.b64decode(data)) == ("data:image/png;base64", b"\x89PNG\r\n\xff")
    (missing,) = page.having(id="missing")
    assert "--figure count.svg" in missing.text
    assert "compare.json" not in missing.text


def test_learned_soups_of_different_granules_have_marks_of_their_own(tmp_path: Path) -> None:
    for granularity in ("model", "layer"):
        options = {"granularity": granularity}
        write_recipe(tmp_path / "run" / granularity, "learned", ["a", "b"], options=options)
    write_report(tmp_path / "run", tmp_path / "report.html")
    page = read_page((tmp_path / "report.html").read_text())
    (section,) = page.having(id="figure")
    (legend,) = section.having(class_="legend")
    shapes = {item.text: item.all("path")[0].attributes["d"] for item in legend.all("li")}
    assert set(shapes) == {"Learned soup", "Learned soup (by layer)"}
    assert len(set(shapes.values())) == 2


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    text = made(tmp_path, HOSTILE)
    page = read_page(text)
    tags = {element.tag for element in page.all()}
    assert "h1" in tags
    assert not tags & {"b", "i", "x"}
    assert len(page.all("script")) == len(page.all("title")[:1]) == 1
    assert len(page.all("h1")) == 1
    assert not page.all("img")
    assert not [e for e in page.all() if any(name.startswith("on") for name in e.attributes)]
    for name in HOSTILE:
        label = name.split("/")[-1] or name
        assert clean(label) in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e\u200b\ud800-\udfff]", text)


def test_hostile_names_of_directories_sets_and_metrics_stay_text(tmp_path: Path) -> None:
    run = tmp_path / "<img src=x onerror=alert(1)>&amp;"
    bad = '<svg/onload="alert(1)">'
    model = evaluation(bad, 0.5, 0.5, hyperparameters={bad: bad})
    model["scores"] = {name: dict(model["scores"]["test"]) for name in ("heldout", bad, "second " + bad)}
    write_evaluations(
        run,
        [model, model | {"name": "other", "content": "b"}],
        sets={name: {} for name in model["scores"]},
        metric={"name": bad, "direction": "max", "function": bad},
        task=bad,
        torch=bad,
    )
    steps = [step(0, bad, note=bad), step(1, "other", note=bad)]
    write_recipe(run / bad.replace("/", "_"), bad, [bad], metric=bad, notes=[bad], options={bad: bad}, trace=steps)
    write_report(run, tmp_path / "report.html")
    page = read_page((tmp_path / "report.html").read_text())
    assert not page.all("img")
    assert not [e for e in page.all() if any(name.startswith("on") for name in e.attributes)]
    assert bad in page.text


def test_numbers_that_are_none_do_no_harm(tmp_path: Path) -> None:
    odd = [None, "nan", "inf", True, [], {}, "text", 10**400, 1e300, -1.5]
    models = []
    for number, value in enumerate(odd):
        model = evaluation(f"m{number}", 0.5, 0.5)
        model["scores"] = {
            name: {"score": value, "nll": value, "ece": value, "bins": value} for name in model["scores"]
        }
        models.append(model)
    write_evaluations(tmp_path / "r", [*models, evaluation("fine", 0.5, 0.5)])
    steps = [step(i, "m", candidate_score=v, bound=v, single_score=v, samples=v, of=v) for i, v in enumerate(odd)]
    numbers = {"used": "x", "saved": None}
    write_recipe(
        tmp_path / "r" / "s", "greedy", ["m"], trace=steps, weights=["x"], passes=numbers, timing=[], score="nan"
    )
    for name in ("r.html", "r.md", "r.csv", "r.json"):
        write_report(tmp_path / "r", tmp_path / name)
    read_page((tmp_path / "r.html").read_text())
