"""What the running average refuses, and the average that is bound once to live tensors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pysoup import Averager, CheckpointError, IncompatibleError, SoupError, WeightsError, _native, average_state_dicts


def state(**values: float) -> dict[str, Tensor]:
    return {name: torch.full((4,), float(value)) for name, value in values.items()}


class TestErrors:
    def test_result_before_add_is_refused(self) -> None:
        with pytest.raises(SoupError, match="nothing was added"):
            Averager(state(x=1)).result()

    @pytest.mark.parametrize("wrong", [3, None, [1]])
    def test_what_is_no_model_is_refused(self, wrong: object) -> None:
        with pytest.raises(SoupError, match="not a model: found"):
            Averager(wrong)  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match="not a checkpoint: found"):
            Averager(state(x=1)).add(wrong)  # type: ignore[arg-type]

    def test_names_must_be_the_models(self) -> None:
        averager = Averager(state(x=1, y=1))
        with pytest.raises(IncompatibleError, match=r"lacks 'y'; has in addition 'z'"):
            averager.add(state(x=1, z=1))

    def test_shapes_must_be_the_models(self, tmp_path: Path) -> None:
        averager = Averager(state(x=1))
        with pytest.raises(IncompatibleError, match=r"tensor 'x'.*found \[2, 2\], expected \[4\]"):
            averager.add({"x": torch.ones(2, 2)})
        save_file({"x": torch.ones(5)}, tmp_path / "a.safetensors")
        with pytest.raises(IncompatibleError, match=r"a.safetensors: tensor 'x'.*found \[5\], expected \[4\]"):
            averager.add(tmp_path / "a.safetensors")

    def test_a_wider_dtype_than_the_first_is_refused(self) -> None:
        averager = Averager({"x": torch.ones(4, dtype=torch.bfloat16)})
        averager.add({"x": torch.ones(4, dtype=torch.float16)})
        with pytest.raises(IncompatibleError, match=r"tensor 'x'.*found F32.*F16"):
            averager.add({"x": torch.ones(4)})
        averager.add({"x": torch.ones(4, dtype=torch.bfloat16) * 3})
        assert averager.result()["x"].tolist() == [2.0] * 4

    def test_a_wider_out_than_the_sum_is_refused(self) -> None:
        averager = Averager({"x": torch.ones(4, dtype=torch.bfloat16)})
        averager.add({"x": torch.ones(4, dtype=torch.bfloat16)})
        with pytest.raises(IncompatibleError, match=r"tensor 'x'.*found F32"):
            averager.result(out={"x": torch.zeros(4)})

    def test_out_must_have_the_names_and_sizes(self) -> None:
        averager = Averager(state(x=1))
        averager.add(state(x=1))
        with pytest.raises(IncompatibleError, match="out"):
            averager.result(out=state(y=1))
        with pytest.raises(IncompatibleError, match=r"out: tensor 'x'"):
            averager.result(out={"x": torch.zeros(5)})

    def test_kinds_must_be_the_models(self) -> None:
        averager = Averager(state(x=1))
        with pytest.raises(IncompatibleError, match=r"tensor 'x'.*I64.*F32"):
            averager.add({"x": torch.ones(4, dtype=torch.int64)})
        with pytest.raises(IncompatibleError, match=r"tensor 'x'.*meta"):
            averager.add({"x": torch.ones(4, device="meta")})

    @pytest.mark.parametrize("weight", [float("nan"), float("inf")])
    def test_weights_must_be_finite(self, weight: float) -> None:
        averager = Averager(state(x=1))
        with pytest.raises(WeightsError, match="not finite"):
            averager.add(state(x=1), weight)

    def test_weights_that_cancel_have_no_mean(self) -> None:
        averager = Averager(state(x=1))
        averager.add(state(x=1), 1)
        averager.add(state(x=3), -1)
        with pytest.raises(WeightsError, match="sum 0"):
            averager.result()

    def test_integers_that_differ_are_refused_and_leave_the_sum(self) -> None:
        averager = Averager({"x": torch.ones(2), "ids": torch.tensor([1, 2])})
        averager.add({"x": torch.ones(2), "ids": torch.tensor([1, 2])})
        with pytest.raises(IncompatibleError, match="'ids'"):
            averager.add({"x": torch.ones(2) * 9, "ids": torch.tensor([1, 3])})
        assert averager.count == 1
        assert averager.result()["x"].tolist() == [1.0, 1.0]

    def test_untied_values_for_tied_parameters_are_refused(self) -> None:
        shared = torch.ones(3)
        averager = Averager({"a": shared, "b": shared})
        with pytest.raises(IncompatibleError, match="tied in the model"):
            averager.add({"a": torch.ones(3), "b": torch.zeros(3)})

    def test_a_file_that_is_none_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "x.safetensors").write_bytes(b"short")
        with pytest.raises(CheckpointError, match=r"x\.safetensors"):
            Averager(state(x=1)).add(tmp_path / "x.safetensors")

    def test_a_file_cut_off_while_it_is_read_is_named_and_the_sum_is_reset(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "a.safetensors"
        save_file({"x": torch.ones(4)}, path)
        averager = Averager(state(x=1))
        averager.add(path)
        run = _native.run

        def cut_then_run(*arguments: object, **options: object) -> None:
            os.truncate(path, path.stat().st_size - 4)
            run(*arguments, **options)

        monkeypatch.setattr(_native, "run", cut_then_run)
        with pytest.raises(CheckpointError, match=r"a\.safetensors: tensor 'x': cannot be read"):
            averager.add(path)
        monkeypatch.undo()
        assert averager.count == 0
        averager.add(state(x=5))
        assert averager.result()["x"].tolist() == [5.0] * 4

    def test_check_raises_what_add_would_and_adds_nothing(self) -> None:
        averager = Averager(state(x=1))
        averager.check({"a": state(x=1), "b": state(x=2)})
        for wrong in (state(y=1), {"x": torch.ones(5)}, {"x": torch.ones(4, dtype=torch.int32)}):
            with pytest.raises(IncompatibleError, match=r"^b: "):
                averager.check({"a": state(x=1), "b": wrong})
        assert averager.count == 0

    def test_check_finds_what_any_order_of_adding_would(self) -> None:
        averager = Averager({"x": torch.ones(4, dtype=torch.bfloat16)})
        half, single = {"x": torch.ones(4, dtype=torch.float16)}, state(x=1)
        with pytest.raises(IncompatibleError, match="b: tensor 'x': wider than the first"):
            averager.check({"a": half, "b": single})
        with pytest.raises(IncompatibleError, match="b: tensor 'x': narrower than the first"):
            averager.check({"a": single, "b": half})
        flags = Averager({"flags": torch.zeros(2, dtype=torch.bool)})
        with pytest.raises(IncompatibleError, match=r"b: tensor 'flags': .* differ from those in a"):
            flags.check({"a": {"flags": torch.tensor([True, False])}, "b": {"flags": torch.tensor([True, True])}})

    def test_tied_weights_with_nan_are_equal(self) -> None:
        weight = torch.tensor([1.0, float("nan")])
        averager = Averager({"x": weight, "y": weight})
        averager.add({"x": weight.clone(), "y": weight.clone()})
        assert averager.count == 1
        with pytest.raises(IncompatibleError, match="tied in the model"):
            averager.add({"x": weight.clone(), "y": weight.double()})

    def test_a_weight_that_is_no_number_is_named(self) -> None:
        with pytest.raises(WeightsError, match="found 'x'"):
            Averager(state(x=1)).add(state(x=1), "x")  # type: ignore[arg-type]

    def test_eight_bit_weights_with_a_scale_are_refused(self, tmp_path: Path) -> None:
        model = {"w": torch.ones(4).to(torch.float8_e4m3fn), "w_scale": torch.ones(1)}
        save_file(model, tmp_path / "a.safetensors")
        with pytest.raises(CheckpointError, match=r"a.safetensors: tensor 'w': 8-bit weights with a scale"):
            Averager(model).add(tmp_path / "a.safetensors")


class TestBind:
    def test_run_follows_the_values_of_live_tensors(self) -> None:
        models = [nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)) for _ in range(3)]
        target = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7))
        bound = Averager(target).bind(models, out=target)
        for step in range(3):
            with torch.no_grad():
                for k, model in enumerate(models):
                    for p in model.parameters():
                        p.add_(0.1 * step + k)
                    model[1].num_batches_tracked += step + k
            bound.run()
            expected = average_state_dicts(models)
            assert all(torch.equal(t, expected[n]) for n, t in target.state_dict().items())

    def test_weights_and_new_outputs(self) -> None:
        a, b = state(x=1), state(x=3)
        bound = Averager(a).bind([a, b], [1, 3])
        assert bound.run()["x"].tolist() == [2.5] * 4
        a["x"].fill_(-1)
        assert bound.run() is bound.out
        assert bound.out["x"].tolist() == [2.0] * 4

    def test_output_may_be_an_input(self) -> None:
        a, b = state(x=0), state(x=8)
        bound = Averager(a).bind([a, b], out=a)
        assert [bound.run()["x"][0].item() for _ in range(3)] == [4.0, 6.0, 7.0]

    def test_moved_tensors_are_refused(self) -> None:
        model = nn.Linear(3, 3)
        bound = Averager(model).bind([model, nn.Linear(3, 3)])
        model.weight.data = torch.zeros(3, 3)
        model.state_dict()
        bound.run()  # the bound tensor itself is alive and where it was
        a = state(x=1)
        bound = Averager(a).bind([a, state(x=2)])
        a["x"].set_(torch.zeros(4))  # type: ignore[call-overload]
        with pytest.raises(IncompatibleError, match="moved"):
            bound.run()

    def test_what_cannot_be_bound_is_refused(self) -> None:
        base = torch.zeros(4, 4)
        with pytest.raises(IncompatibleError, match="cannot be bound"):
            Averager({"x": base}).bind([{"x": base.t()}, {"x": base.t()}])
        with pytest.raises(IncompatibleError, match="overlap"):
            Averager(state(x=1)).bind([{"x": base.view(-1)[:4]}] * 2, out={"x": base.view(-1)[1:5]})

    def test_integers_that_differ_later_are_refused_before_a_write(self) -> None:
        models = [{"x": torch.ones(2), "ids": torch.tensor([1, 2])} for _ in range(2)]
        bound = Averager(models[0]).bind(models)
        models[1]["ids"][0] = 5
        models[1]["x"].fill_(3)
        with pytest.raises(IncompatibleError, match="'ids'"):
            bound.run()
        assert bound.out["x"].tolist() == [1.0, 1.0]
