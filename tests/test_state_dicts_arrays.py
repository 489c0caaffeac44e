"""numpy arrays in place of tensors: in, out, read-only, strided."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from pysoup import IncompatibleError, SoupError, average_state_dicts


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.complex64])
def test_arrays_in_arrays_out(dtype: type) -> None:
    rng = np.random.default_rng(0)
    states = [{"w": rng.standard_normal((3, 5)).astype(dtype), "n": np.arange(3)} for _ in range(2)]
    result = average_state_dicts(states)
    assert isinstance(result["w"], np.ndarray)
    assert result["w"].dtype == dtype
    wide = np.complex128 if dtype is np.complex64 else np.float64
    np.testing.assert_array_equal(result["w"], ((states[0]["w"].astype(wide) + states[1]["w"]) / 2).astype(dtype))
    np.testing.assert_array_equal(result["n"], np.arange(3))


def test_first_input_decides_between_arrays_and_tensors() -> None:
    array, tensor = {"w": np.ones(3, np.float32)}, {"w": torch.full((3,), 3.0)}
    assert isinstance(average_state_dicts([array, tensor])["w"], np.ndarray)
    assert isinstance(average_state_dicts([tensor, array])["w"], torch.Tensor)
    assert average_state_dicts([tensor, array])["w"].tolist() == [2.0] * 3


def test_dtype_of_arrays_is_converted() -> None:
    result = average_state_dicts([{"w": np.array([1.5, 2.5], np.float32)}] * 2, dtype="f16")["w"]
    assert result.dtype == np.float16
    assert result.tolist() == [1.5, 2.5]


def test_strided_reversed_and_read_only_arrays_are_read() -> None:
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    frozen = base.copy()
    frozen.flags.writeable = False
    for view in (base[::-1], base[:, ::-2], base.T, np.broadcast_to(base[0], (4, 6)), frozen):
        result = average_state_dicts([{"w": view}, {"w": view + 2}])["w"]
        np.testing.assert_array_equal(result, view + 1)
    np.testing.assert_array_equal(frozen, base)


def test_scalar_and_empty_arrays_keep_their_shape() -> None:
    result = average_state_dicts(
        [{"s": np.float32(1), "e": np.empty((0, 2))}, {"s": np.array(2, np.float32), "e": np.empty((0, 2))}]
    )
    assert result["s"].shape == ()
    assert result["s"] == 1.5
    assert result["e"].shape == (0, 2)


def test_array_is_written_in_place() -> None:
    out = {"w": np.zeros(4, np.float32)}
    assert average_state_dicts([{"w": np.ones(4, np.float32)}, {"w": torch.full((4,), 2.0)}], out=out)["w"] is out["w"]
    assert out["w"].tolist() == [1.5] * 4


def test_bfloat16_arrays_are_averaged_as_such() -> None:
    import ml_dtypes

    states = [{"w": np.arange(5).astype(ml_dtypes.bfloat16) + k} for k in (0, 1)]
    result = average_state_dicts(states)["w"]
    assert result.dtype == ml_dtypes.bfloat16
    assert result.astype(np.float32).tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]


@pytest.mark.parametrize("dtype", ["bf16", "f8_e4m3", "f8_e5m2"])
def test_a_type_that_numpy_lacks_is_refused_for_arrays(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(SoupError, match=r"numpy has no such dtype: found .*float"):
        average_state_dicts([{"n": np.arange(2), "a": np.ones(4, np.float32)}] * 2, dtype=dtype)


def test_a_type_that_numpy_lacks_comes_from_ml_dtypes() -> None:
    import ml_dtypes

    for dtype in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        result = average_state_dicts([{"a": np.ones(4, np.float32)}] * 2, dtype=dtype)["a"]
        assert result.dtype == getattr(ml_dtypes, dtype)
        assert result.astype(np.float32).tolist() == [1.0] * 4


@pytest.mark.parametrize("array", [np.ones(3, ">f4"), np.array(["a"]), np.array([None]), np.array(["2020"], "M8[Y]")])
def test_arrays_of_other_types_are_refused_by_name(array: np.ndarray) -> None:
    with pytest.raises(IncompatibleError, match=r"state_dicts\[0\]: tensor 'odd'"):
        average_state_dicts([{"odd": array}] * 2)
