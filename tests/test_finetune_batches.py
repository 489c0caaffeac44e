"""Training data of every kind: the same samples, in the same order, whatever they come in; and what mixup refuses."""

from __future__ import annotations

from collections import UserDict
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pysoup.errors import SoupError
from pysoup.finetune import Hyperparameters, fine_tune, linear_probe
from pysoup.finetune.batches import inputs_of, mix, steps_per_epoch, training_batches, with_inputs

HP = Hyperparameters(learning_rate=1e-2, epochs=2, batch_size=8, seed=3)


class TwoInputs(nn.Module):
    """Tokens and a mask, as language models take them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        mask = attention_mask[:, :, None].float()
        return {"logits": self.head((self.table(input_ids) * mask).sum(1) / mask.sum(1))}


def model() -> TwoInputs:
    torch.manual_seed(1)
    return TwoInputs()


def columns(n: int = 37) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 11, (n, 5), generator=generator)
    mask = (torch.rand(n, 5, generator=generator) < 0.8).long()
    mask[:, 0] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids[:, 0] % 3}


class Rows(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 37

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in columns().items()}


def arrays() -> dict[str, Any]:
    return {name: column.numpy() for name, column in columns().items()}


def trained(data: Any, hp: Hyperparameters = HP) -> list[Tensor]:
    made = model()
    fine_tune(made, data, hp)
    return [tensor.clone() for tensor in made.state_dict().values()]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_dictionary_and_tuple_of_tensors_train_the_same_model() -> None:
    named = trained(columns())
    assert equal(named, trained(tuple(columns().values())))
    assert equal(named, trained(UserDict(columns())))
    assert equal(named, trained(arrays()))
    assert equal(named, trained(tuple(arrays().values())))
    assert not equal(named, [tensor.clone() for tensor in model().state_dict().values()])


def test_dictionary_batches_match_a_plain_loop() -> None:
    """The oracle is the loop a user would write around the model, batches and rate included."""
    oracle = model()
    generator = torch.Generator().manual_seed(HP.seed)
    optimizer = torch.optim.AdamW(oracle.parameters(), lr=HP.learning_rate, weight_decay=0.0)
    data = columns()
    for _ in range(HP.epochs):
        order = torch.randperm(37, generator=generator)
        for first in range(0, 32, 8):
            index = order[first : first + 8]
            logits = oracle(data["input_ids"][index], data["attention_mask"][index])["logits"]
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, data["labels"][index]).backward()
            nn.utils.clip_grad_norm_(oracle.parameters(), 1.0)
            optimizer.step()
    assert equal(trained(columns(), replace(HP, schedule="constant", warmup=0.0)), list(oracle.state_dict().values()))


def test_data_set_is_shuffled_and_loses_its_incomplete_batch() -> None:
    assert steps_per_epoch(Rows(), 8) == 4
    seen = [batch["input_ids"] for batch in training_batches(Rows(), 8, torch.Generator().manual_seed(0))]
    assert [len(ids) for ids in seen] == [8] * 4
    assert not torch.equal(torch.cat(seen), columns()["input_ids"][:32])
    given = [batch["labels"] for batch in training_batches(Rows(), 8, None)]
    assert torch.equal(torch.cat(given), columns()["labels"])
    assert equal(trained(Rows()), trained(Rows()))


def test_small_data_is_one_batch() -> None:
    assert steps_per_epoch(columns(5), 8) == 1
    assert [len(batch["labels"]) for batch in training_batches(columns(5), 8, torch.Generator())] == [5]
    small = TensorDataset(*columns(5).values())
    assert [len(batch[-1]) for batch in training_batches(small, 8, torch.Generator())] == [5]


def test_loader_keeps_its_own_batches() -> None:
    loader = DataLoader(Rows(), batch_size=10)
    assert steps_per_epoch(loader, 8) == 4
    assert [len(batch["labels"]) for batch in training_batches(loader, 8, torch.Generator())] == [10, 10, 10, 7]


def test_probe_learns_from_dictionaries_what_it_learns_from_tuples() -> None:
    hp = Hyperparameters(learning_rate=1e-2, epochs=4, batch_size=8)
    first, second = model(), model()
    linear_probe(first, columns(), hyperparameters=hp)
    linear_probe(second, tuple(columns().values()), hyperparameters=hp)
    assert torch.equal(first.head.weight, second.head.weight)
    assert torch.equal(first.table.weight, model().table.weight)
    assert not torch.equal(first.head.weight, model().head.weight)


def test_augmentation_gets_the_inputs_in_their_own_shape() -> None:
    kinds: list[Any] = []

    def watch(inputs: Any, hp: Hyperparameters, generator: torch.Generator) -> Any:
        kinds.append(sorted(inputs) if isinstance(inputs, dict) else [type(part) for part in inputs])
        return inputs

    for data in (columns(8), tuple(columns(8).values())):
        fine_tune(model(), data, replace(HP, epochs=1), augment=watch)
    assert kinds == [["attention_mask", "input_ids"], [Tensor, Tensor]]


def test_augmentation_changes_what_the_model_sees() -> None:
    def blank(inputs: dict[str, Tensor], hp: Hyperparameters, generator: torch.Generator) -> dict[str, Tensor]:
        return {**inputs, "input_ids": torch.zeros_like(inputs["input_ids"])}

    made = model()
    fine_tune(made, columns(), HP, augment=blank)
    zeros = {**columns(), "input_ids": torch.zeros(37, 5, dtype=torch.int64)}
    assert equal([tensor.clone() for tensor in made.state_dict().values()], trained(zeros))


def test_mixup_of_token_ids_is_refused_by_name() -> None:
    with pytest.raises(SoupError, match=r"mixup needs floating-point inputs.*input_ids: torch\.int64"):
        trained(columns(), replace(HP, mixup=0.2))
    with pytest.raises(SoupError, match=r"mixup needs floating-point inputs.*input 0: torch\.int64"):
        trained(tuple(columns().values()), replace(HP, mixup=0.2))


def test_mixup_mixes_every_float_input_by_its_definition() -> None:
    a, b = torch.randn(4, 3), torch.randn(4, 2)
    partner = torch.tensor([1, 0, 3, 2])
    mixed = mix((a, b), partner, 0.3)
    for own, got in zip((a, b), mixed, strict=True):
        torch.testing.assert_close(got, 0.3 * own + 0.7 * own[partner])
    named = mix({"pixel_values": a}, partner, 0.3)
    assert torch.equal(named["pixel_values"], mixed[0])


def test_batch_gets_its_inputs_back() -> None:
    one, two = torch.ones(2), torch.zeros(2)
    labels = torch.tensor([0, 1])
    for batch in ((one, labels), [one, two, labels], {"x": one, "labels": labels}, UserDict(x=one, labels=labels)):
        again = with_inputs(batch, inputs_of(batch))
        assert list(again) == list(batch)
        assert all(a is b for a, b in zip(again, batch, strict=True) if isinstance(a, Tensor))
        assert not isinstance(batch, UserDict) or (type(again) is UserDict and again is not batch)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ({"input_ids": torch.zeros(4, 2)}, "training tensors need their labels"),
        ((torch.zeros(4, 2), torch.zeros(3)), "one label per input"),
        ((torch.zeros(0, 2), torch.zeros(0)), "one label per input"),
        ((torch.zeros(4, 2), torch.tensor(0)), "one label per input"),
        ({"a": "text"}, "not training data"),
        (TensorDataset(torch.zeros(0, 2)), "not training data"),
    ],
)
def test_data_without_labels_or_samples_is_refused(data: Any, found: str) -> None:
    with pytest.raises(SoupError, match=found):
        fine_tune(model(), data, HP)


def test_stream_without_a_length_is_refused() -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Any:
            return iter([])

    for data in (Stream(), DataLoader(Stream()), (batch for batch in [])):
        with pytest.raises(SoupError, match="not training data"):
            fine_tune(model(), data, HP)


def test_single_samples_are_told_from_batches() -> None:
    samples = [(torch.zeros(5), torch.tensor(0)), (torch.zeros(5), torch.tensor(1))]
    with pytest.raises(SoupError, match="a label for each of its samples"):
        fine_tune(nn.Linear(5, 2), samples, replace(HP, mixup=0.5))
