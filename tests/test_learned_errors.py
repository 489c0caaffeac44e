"""What cannot be learned from is one line, with what was found and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from learned_oracle import made
from soup_models import mlp
from torch import Tensor

from pysoup import HeldOut, SoupError, learned_soup


def nan_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.full_like(value, float("nan")) for name, value in state.items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "papers"}, "unknown preset: found 'papers'"),
        ({"granularity": "layers"}, "unknown granularity: found 'layers'"),
        ({"parametrization": "simplex"}, "unknown parametrization: found 'simplex'"),
        ({"keep": "best"}, "unknown keep: found 'best'"),
        ({"lr": 0}, "lr must be a number: found 0, expected above 0, and finite"),
        ({"lr": float("nan")}, "lr must be a number: found nan"),
        ({"weight_decay": -1}, "weight_decay must be a number: found -1"),
        ({"epochs": 0}, "epochs is too small: found 0"),
        ({"batch": 1.5}, "batch must be a whole number: found 1.5"),
        ({"blocks": 0}, "blocks is too small: found 0"),
        ({"seed": "a"}, "seed must be a whole number: found 'a'"),
        ({"loss": 3}, "not a loss: found int"),
        ({"place": "disk"}, "not a place for ingredients: found disk"),
        ({"loss": lambda logits, labels: 1.0}, "learning, step 1: the loss must be one number that depends on"),
        ({"loss": lambda logits, labels: logits}, "learning, step 1: the loss must be one number that depends on"),
        (
            {"lr": 1e306},
            "the loss or its gradient is not finite at step 2: lower the learning rate",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_what_cannot_be_is_one_line(options: dict[str, Any], message: str) -> None:
    model, states, x, y = made()
    with pytest.raises(SoupError) as caught:
        learned_soup(states, model, (x, y), **{"parametrization": "hyperplane", **options})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not any(
        p.requires_grad != q.requires_grad for p, q in zip(model.parameters(), mlp().parameters(), strict=True)
    )


def test_one_checkpoint_is_refused() -> None:
    model, states, x, y = made()
    with pytest.raises(SoupError, match="needs two checkpoints or more: found 1"):
        learned_soup(states[:1], model, (x, y))


def test_nan_in_a_checkpoint_is_named_before_anything_is_learned() -> None:
    model, states, x, y = made()
    with pytest.raises(
        SoupError, match=r"loss of the uniform soup.*NaN or infinity in tensor '0.weight' \(and 3 more\)"
    ):
        learned_soup([*states, nan_state(states[0])], model, (x, y))


def test_an_error_of_the_model_names_the_step() -> None:
    model, states, x, y = made()
    with pytest.raises(SoupError, match=r"learning, step 1 failed: RuntimeError: .*the model holds the mix") as caught:
        learned_soup(states, model, (x[:, :3], y))
    assert "\n" not in str(caught.value)


def test_checkpoints_that_share_memory_with_the_model_are_refused() -> None:
    model, states, x, y = made()
    with pytest.raises(SoupError, match="shares memory with the model"):
        learned_soup([model.state_dict(), *states], model, (x, y))


def test_checkpoints_are_checked_before_data_is_read() -> None:
    model, states, _, _ = made()

    def unread() -> Any:
        raise AssertionError("read")
        yield

    odd = {**states[0], "0.bias": torch.zeros(3)}
    with pytest.raises(SoupError, match="shape differs"):
        learned_soup([*states, odd], model, HeldOut(unread()))
