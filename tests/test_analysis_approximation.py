"""Equation (1) against plain torch with autograd; where it must hold, and where the paper says that it does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from function_task import Blobs, Net, logits_of, network, pool
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn
from torch.nn import functional

from pysoup.analysis.agreement import agreement
from pysoup.analysis.approximation import Approximation, Point, soup_approximation
from pysoup.analysis.equation_one import mean_loss, second_derivative, variance
from pysoup.analysis.sets import Sets
from pysoup.errors import SoupError

StateDict = dict[str, Tensor]


class Tanh:
    """A random two-layer network in f64 and data whose labels it draws itself."""

    def __init__(self, count: int = 400, dtype: torch.dtype = torch.float64) -> None:
        self.count, self.dtype = count, dtype

    def model(self) -> nn.Module:
        return network(0).to(self.dtype)

    def heldout(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(self.count, 6, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            p = network(0).double()(x).softmax(1)
        return x.to(self.dtype), torch.multinomial(p, 1, generator=generator).squeeze(1)


def near(spread: float, count: int = 2, seed: int = 5) -> list[StateDict]:
    """Weights around the task's model."""
    generator = torch.Generator().manual_seed(seed)
    centre = Tanh().model().state_dict()
    return [
        {k: v + spread * torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in centre.items()}
        for _ in range(count)
    ]


def by_hand(one: StateDict, other: StateDict, alpha: float, beta: float) -> dict[str, float]:
    """Every term from its definition, the derivative by autograd in f64."""
    x, y = Tanh().heldout()
    model = Tanh().model()

    def logits(weights: StateDict) -> Tensor:
        return torch.func.functional_call(model, weights, (x,))

    def loss(a: Tensor) -> Tensor:
        mixed = {name: (1 - a) * one[name] + a * other[name] for name in one}
        return functional.cross_entropy(beta * logits(mixed), y)

    at = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(at), at, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, at)
    with torch.no_grad():
        soup = logits({name: (1 - alpha) * one[name] + alpha * other[name] for name in one})
        f0, f1 = logits(one), logits(other)
        p = (beta * soup).softmax(1)
        spread = sum(
            torch.distributions.Categorical(probs=row).probs @ (d - row @ d) ** 2
            for row, d in zip(p, f1 - f0, strict=True)
        ) / len(x)
        ensemble = functional.cross_entropy(beta * ((1 - alpha) * f0 + alpha * f1), y)
        return {
            "curvature": curvature.item(),
            "variance": float(spread),
            "soup_loss": functional.cross_entropy(beta * soup, y).item(),
            "ensemble_loss": ensemble.item(),
            "soup_error": (soup.argmax(1) != y).double().mean().item(),
            "predicted": alpha * (1 - alpha) / 2 * (-curvature.item() + beta**2 * float(spread)),
        }


@pytest.mark.parametrize("derivative", ["central", "autodiff"])
def test_every_term_is_what_its_definition_gives(derivative: str) -> None:
    one, other = near(0.3)
    found = soup_approximation(Sets(Tanh()), [one, other], alphas=[0.2, 0.5], derivative=derivative, step=0.01)
    assert [point.alpha for point in found.points] == [0.2, 0.5]
    for point in found.points:
        expected = by_hand(one, other, point.alpha, point.beta)
        for name, value in expected.items():
            assert getattr(point, name) == pytest.approx(value, rel=1e-5, abs=1e-9), name


def test_beta_calibrates_the_soup() -> None:
    one, other = near(0.3)
    x, y = Tanh().heldout()
    (point,) = soup_approximation(Sets(Tanh()), [one, other], alphas=[0.3]).points
    model = Tanh().model()
    model.load_state_dict({name: 0.7 * one[name] + 0.3 * other[name] for name in one})
    logits = model(x).detach()
    beta = torch.tensor(point.beta, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(functional.cross_entropy(beta * logits, y), beta)
    assert abs(slope.item()) < 1e-8
    assert abs(point.beta - 1) > 0.01


@pytest.mark.parametrize("seed", range(5, 9))
@pytest.mark.parametrize("spread", [0.0005, 0.005, 0.05])
def test_the_approximation_holds_between_close_models(spread: float, seed: int) -> None:
    """What is left out is of a higher order: it vanishes in proportion to the distance, beside either term."""
    found = soup_approximation(Sets(Tanh()), near(spread, seed=seed), step=0.02)
    assert len(found.points) == 9
    for point in found.points:
        term = point.alpha * (1 - point.alpha) / 2 * point.beta**2 * point.variance
        assert abs(point.predicted - point.true) < 2.5 * spread * term
    middle = found.points[4]
    if spread < 0.05:
        assert middle.predicted == pytest.approx(middle.true, rel=0.07)


def test_the_approximation_fails_between_far_models() -> None:
    far = soup_approximation(Sets(Tanh()), near(2.0), step=0.02)
    off = [abs(point.predicted - point.true) / abs(point.true) for point in far.points]
    assert np.median(off) > 0.5


def test_the_approximation_ranks_close_pairs_and_not_far_ones() -> None:
    close, middle, far = (
        soup_approximation(Sets(Tanh()), near(spread, 6), alphas=[0.3, 0.5, 0.7], step=0.02).agreements()["loss"]
        for spread in (0.02, 0.5, 3.0)
    )
    assert close.count == 45
    assert close.pearson > 0.99
    assert close.same_sign > 0.95
    assert 0.6 < middle.pearson < 0.95
    assert far.pearson < 0.6
    assert far.same_sign < 0.7


def test_five_points_see_more_than_three() -> None:
    one, other = near(0.2)
    exact = soup_approximation(Sets(Tanh()), [one, other], alphas=[0.5], derivative="autodiff").points[0]
    assert exact.doubt is None
    for step, tolerance in ((0.1, 2e-3), (0.05, 2e-4), (0.025, 2e-5)):
        (point,) = soup_approximation(Sets(Tanh()), [one, other], alphas=[0.5], step=step).points
        off = abs(point.curvature - exact.curvature)
        assert off < tolerance * abs(exact.curvature)
        assert off < point.doubt  # what is said about the three-point formula bounds it


def test_the_second_derivative_of_a_quartic_is_exact() -> None:
    # p(t) = 3 t^4 - 2 t^3 + 5 t^2 - 7 at 0: five points are exact, three are off by 2 * 3 * step^2.
    losses = {at: 3 * (at / 4) ** 4 - 2 * (at / 4) ** 3 + 5 * (at / 4) ** 2 - 7 for at in range(-2, 3)}
    curvature, doubt = second_derivative(losses, 0.25)
    assert curvature == pytest.approx(10, rel=1e-12)
    assert doubt == pytest.approx(6 * 0.25**2, rel=1e-12)


def test_in_f32_the_rounding_is_as_stated() -> None:
    one, other = near(0.1)
    single = [{name: tensor.float() for name, tensor in state.items()} for state in (one, other)]
    double = [{name: tensor.double() for name, tensor in state.items()} for state in single]
    exact = soup_approximation(Sets(Tanh()), double, alphas=[0.5], step=0.05).points[0]
    found = soup_approximation(Sets(Tanh(dtype=torch.float32)), single, alphas=[0.5], step=0.05).points[0]
    assert abs(found.curvature - exact.curvature) < 5.4 * 1e-7 / 0.05**2
    assert found.true == pytest.approx(exact.true, rel=0.02)


def test_grid_points_between_steps_are_evaluated_once() -> None:
    class Counted(Tanh):
        passes = 0

        def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            Counted.passes += 1
            return model(batch[0]), batch[1]

    soup_approximation(Sets(Counted(count=100)), near(0.1))
    assert Counted.passes == 21  # 0, 0.05, ..., 1


def test_autocast_is_switched_off_unless_asked_for() -> None:
    from pysoup import HeldOut

    class Low(Tanh):
        def heldout(self) -> HeldOut:  # type: ignore[override]
            return HeldOut(super().heldout(), autocast="bfloat16")

    single = [{name: tensor.float() for name, tensor in state.items()} for state in near(0.05)]
    task, plain = Low(dtype=torch.float32), Tanh(dtype=torch.float32)
    full = soup_approximation(Sets(plain), single, alphas=[0.5])
    assert soup_approximation(Sets(task), single, alphas=[0.5]).points == full.points
    low = soup_approximation(Sets(task), single, alphas=[0.5], precise=False)
    assert low.points != full.points


class Transformer(Tanh):
    """Layer norms and attention, which nested forward-mode derivatives and fused kernels get wrong or refuse."""

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer = nn.TransformerEncoderLayer(6, 2, 12, 0.0, "gelu", batch_first=True, norm_first=True)
            return nn.Sequential(
                nn.Unflatten(1, (2, 3)), nn.Linear(3, 6), layer, nn.Flatten(), nn.Linear(12, 4)
            ).double()


def test_a_transformer_is_differentiated_as_differences_say() -> None:
    generator = torch.Generator().manual_seed(0)
    centre = Transformer().model().state_dict()
    models = [
        {k: v + 0.05 * torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in centre.items()}
        for _ in range(2)
    ]
    task = Transformer(50)
    exact = soup_approximation(Sets(task), models, alphas=[0.5], derivative="autodiff").points[0]
    central = soup_approximation(Sets(task), models, alphas=[0.5], step=0.02).points[0]
    assert exact.curvature == pytest.approx(central.curvature, rel=1e-4)
    assert exact.curvature != central.curvature
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_model_that_cannot_be_differentiated_is_refused_with_the_reason() -> None:
    class Odd(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    class Task(Tanh):
        def model(self) -> nn.Module:
            return Odd().double()

    with pytest.raises(SoupError, match="cannot be differentiated twice"):
        soup_approximation(Sets(Task(50)), near(0.1), alphas=[0.5], derivative="autodiff")


def trained(found: Approximation) -> list[tuple[int, int, str, float]]:
    return [(point.first, point.second, point.set, point.alpha) for point in found.points]


def test_all_sets_and_pairs_are_there_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    class Stopped(Blobs):
        left = -1

        def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            if not Stopped.left:
                raise KeyboardInterrupt
            Stopped.left -= 1
            return model(batch[0]), batch[1]

    models = pool(3)
    whole = soup_approximation(Sets(Stopped()), models, alphas=[0.25, 0.5])
    expected = [
        (i, j, name, alpha)
        for i, j in ((0, 1), (0, 2), (1, 2))
        for alpha in (0.25, 0.5)
        for name in ("heldout", "clean", "noisy", "noisier")
    ]
    assert trained(whole) == expected
    starts = 0
    while True:
        starts += 1
        Stopped.left = 60
        try:
            found = soup_approximation(Sets(Stopped()), models, alphas=[0.25, 0.5], run=tmp_path)
            break
        except KeyboardInterrupt:
            assert starts < 10
    assert starts > 1
    assert found == whole
    with pytest.raises(SoupError, match=r"option step was 0\.05, it is 0\.02 now"):
        soup_approximation(Sets(Stopped()), models, alphas=[0.25, 0.5], step=0.02, run=tmp_path)
    text = json.dumps(found.to_json(), allow_nan=False)
    assert json.loads(text)["agreement"]["clean"]["loss"]["count"] == 6


def test_soup_and_ensemble_are_those_of_the_trained_models() -> None:
    models = pool(2)
    (point,) = (p for p in soup_approximation(Sets(Blobs()), models, alphas=[0.5]).points if p.set == "noisy")
    data = Blobs().tests()["noisy"]
    mean = {name: (models[0][name] + models[1][name]) / 2 for name in models[0]}
    soup, labels = logits_of(mean, data)
    ensemble = torch.stack([logits_of(state, data)[0] for state in models]).mean(0)
    assert point.true_error == pytest.approx(
        ((soup.argmax(1) != labels).double().mean() - (ensemble.argmax(1) != labels).double().mean()).item()
    )
    expected = functional.cross_entropy(point.beta * soup, labels) - functional.cross_entropy(
        point.beta * ensemble, labels
    )
    assert point.true == pytest.approx(expected.item(), abs=1e-6)


def test_the_highest_learning_rates_are_set_apart() -> None:
    def point(first: int, second: int) -> Point:
        return Point(first, second, "s", 0.5, 1, 0, 0, 0, 1, 2, 1, 0.5, 0.25)

    points = [point(0, 1), point(0, 2), point(1, 2), point(0, 3)]
    found = Approximation(["a", "b", "c", "start"], [1e-6, 1e-5, 1e-4, None], 1e-5, [], points, {})
    panels = found.panels()
    assert [len(shown) for shown, _ in panels.values()] == [4, 2, 2]
    assert [errors for _, errors in panels.values()] == [False, False, True]


@pytest.mark.parametrize("ties", [False, True])
def test_agreement_is_that_of_scipy(ties: bool) -> None:
    generator = np.random.default_rng(0)
    one = generator.normal(size=60)
    other = one + generator.normal(size=60)
    if ties:
        one, other = np.round(one), np.round(other)
    found = agreement(list(one), list(other))
    assert found.pearson == pytest.approx(pearsonr(one, other).statistic, rel=1e-9)
    assert found.spearman == pytest.approx(spearmanr(one, other).statistic, rel=1e-9)
    both = (one != 0) & (other != 0)
    assert (found.signed, found.same_sign) == (both.sum(), (np.sign(one) == np.sign(other))[both].mean())


def test_agreement_leaves_out_what_is_not_a_number() -> None:
    found = agreement([1.0, 2.0, float("nan"), 3.0], [1.0, 2.0, 5.0, float("inf")])
    assert (found.count, found.pearson, found.same_sign) == (2, pytest.approx(1.0), 1.0)
    assert np.isnan(agreement([1.0, 1.0], [1.0, 2.0]).pearson)
    assert np.isnan(agreement([], []).same_sign)


def test_long_sets_are_summed_in_parts() -> None:
    logits = torch.randn(9001, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels, p = logits.argmin(1), (0.7 * logits).softmax(1)
    assert mean_loss(logits, labels, 0.7) == pytest.approx(functional.cross_entropy(0.7 * logits, labels).item())
    d = logits.roll(1, 1)
    expected = ((p * d**2).sum(1) - (p * d).sum(1) ** 2).mean().item()
    assert variance(logits, d, 0.7) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alphas": [0.5, 1.5]}, r"alphas are shares of the second model: found \[0.5, 1.5\]"),
        ({"alphas": []}, "alphas are shares"),
        ({"derivative": "backward"}, "unknown derivative: found 'backward', expected central or autodiff"),
        ({"step": 0.0}, "the step of the derivative: found 0.0"),
        ({"pairs": [(0, 2)]}, r"a pair of positions: found \(0, 2\), expected from 0 to 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SoupError, match=message):
        soup_approximation(Sets(Tanh(20)), near(0.1), **options)
