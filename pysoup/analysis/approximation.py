"""When is a soup as good as an ensemble? The paper's Equation (1) against what is true (section 4, Figure 6)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from .._version import __version__
from ..errors import SoupError
from ..evaluate import as_metric, temperature
from ..progress import StepProgress
from ..record import read_record
from ..soups.candidates import Candidate, Checkpoints, is_file
from ..soups.identity import identity_of
from ..soups.journal import Journal
from ..soups.soup import finite
from ..task import Task
from .agreement import Agreement, agreement
from .equation_one import (
    STENCIL,
    check_logits,
    difference,
    mean_error,
    mean_loss,
    predicted_difference,
    second_derivative,
    variance,
)
from .line_derivative import line_tensors, second_derivative_along
from .mixtures import ScoredMixtures
from .pairing import Pair, choose_pairs, learning_rate
from .sets import Sets
from .views import chosen, full_precision

ALPHAS = tuple(number / 10 for number in range(11))
STEP = 0.05
"""Half the paper's grid of alphas, so that two steps are a point of it."""
DERIVATIVES = ("central", "autodiff")


@dataclass(frozen=True)
class Point:
    """One pair of models at one alpha on one set. Losses are at ``beta``, in nats per sample; errors are shares."""

    first: int
    second: int
    set: str
    alpha: float
    beta: float
    """Calibrates the soup on this set."""
    curvature: float
    """The second derivative of the soup's loss in alpha."""
    doubt: float | None
    """By how much the three-point difference quotient differs: see :func:`second_derivative`."""
    variance: float
    """``E_x Var_Y[Df_Y]``, without the factor beta squared."""
    predicted: float
    """The right-hand side of Equation (1)."""
    soup_loss: float
    ensemble_loss: float
    soup_error: float
    ensemble_error: float

    @property
    def true(self) -> float:
        """The difference of losses; positive where the ensemble is better."""
        return self.soup_loss - self.ensemble_loss

    @property
    def true_error(self) -> float:
        """The difference of errors."""
        return self.soup_error - self.ensemble_error


@dataclass(frozen=True)
class Approximation:
    """Predicted and true differences of soup and ensemble; the endpoints of each line, where both are 0, are left out.

    ``rates`` are the recorded learning rates by checkpoint. Pairs with a model above ``highest`` are what the paper
    leaves out: there the logits are not near enough to linear. ``options`` has what was asked for.
    """

    names: list[str]
    rates: list[float | None]
    highest: float | None
    pairs: list[Pair]
    points: list[Point]
    options: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def is_high(self, point: Point) -> bool:
        """Whether one of its models has a learning rate above :attr:`highest`."""
        rates = [self.rates[index] for index in (point.first, point.second)]
        return self.highest is not None and any(rate is not None and rate > self.highest for rate in rates)

    def panels(self, name: str | None = None) -> dict[str, tuple[list[Point], bool]]:
        """Figure 6: a title, the points on the set ``name`` (default: all sets), and whether errors are compared."""
        points = [point for point in self.points if name is None or point.set == name]
        if all(rate is None for rate in self.rates) or self.highest is None:
            return {"loss": (points, False), "error": (points, True)}
        low = [point for point in points if not self.is_high(point)]
        return {
            "loss": (points, False),
            "loss, without the highest learning rates": (low, False),
            "error, without the highest learning rates": (low, True),
        }

    def agreements(self, name: str | None = None) -> dict[str, Agreement]:
        """How well the prediction does in each panel."""
        return {
            title: agreement([p.predicted for p in points], [p.true_error if errors else p.true for p in points])
            for title, (points, errors) in self.panels(name).items()
        }

    @property
    def sets(self) -> list[str]:
        """The names of the sets."""
        return list(dict.fromkeys(point.set for point in self.points))

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        names = [None, *self.sets]
        return {
            "pysoup": __version__,
            "analysis": "approximation",
            "options": self.options,
            "checkpoints": self.names,
            "learning_rates": self.rates,
            "highest": self.highest,
            "pairs": [list(pair) for pair in self.pairs],
            "agreement": {
                "all sets" if name is None else name: {t: a.to_json() for t, a in self.agreements(name).items()}
                for name in names
            },
            "points": [_point_json(point) for point in self.points],
            "notes": self.notes,
        }


def soup_approximation(
    task: Sets | str | Task,
    checkpoints: Checkpoints,
    *,
    pairs: int | Sequence[Pair] | None = None,
    alphas: Sequence[float] = ALPHAS,
    seed: int = 0,
    derivative: str = "central",
    step: float = STEP,
    highest: float | None = None,
    precise: bool = True,
    run: str | os.PathLike[str] | None = None,
    entry: str | None = None,
    integers: str = "auto",
    memory: str | int = "64MiB",
    threads: int | None = None,
    progress: StepProgress | None = None,
) -> Approximation:
    """Both sides of Equation (1) for pairs of ``checkpoints`` and ``alphas`` in [0, 1], on every set of ``task``.

    ``pairs`` are positions, or so many of all pairs, drawn with ``seed``. At each alpha, beta calibrates the soup on
    the set itself, as in the paper: it has no part in any selection. ``derivative`` is ``"central"``: five points a
    ``step`` apart (0.05: half the default grid, a pass for each alpha and one between; beyond 0 and 1 the line is
    followed), or ``"autodiff"``: exact, but blind to the kinks of ReLU (:func:`second_derivative_along`). Rounding: a
    mean loss that is off by u puts the central derivative off by at most 5.4 u / step^2. u is about 1e-8 in f32, so a
    step below 0.01 wants weights in f64; with 16-bit weights or autocast u is about 1e-4 and no step will do, which is
    why the sets' autocast is switched off unless ``precise`` is False. ``highest`` is the learning rate above which a
    model is set apart (default: the upper third of the recorded ones).

    Weights are mixed by one fused pass each, as they are; logits of at most seven points are held. ``run`` is a
    directory for what was computed: a run that was killed goes on with the next pair. The other options are those of
    :func:`pair_scores`. Raises :class:`SoupError`.
    """
    sets = chosen(task if isinstance(task, Sets) else Sets(task))
    sets = full_precision(sets) if precise else sets
    options = _checked(alphas, derivative, step)
    mixtures = ScoredMixtures(
        sets, checkpoints, entry=entry, integers=integers, memory=memory, threads=threads, progress=progress
    )
    with mixtures:
        picked = _pairs(pairs, len(mixtures.candidates), seed)
        mixtures.expect(len(picked))
        lines = _Lines(mixtures, options["alphas"], derivative, step)
        points: list[Point] = []
        journal = _journal(run, mixtures, options, integers)
        try:
            for pair in picked:
                points += _recorded(journal, pair, lines)
                mixtures.step(" and ".join(mixtures.names[index] for index in pair))
        finally:
            if journal is not None:
                journal.close()
        rates = [_rate(candidate) for candidate in mixtures.candidates]
        above = _upper_third(rates) if highest is None else highest
        options |= {"seed": seed, "precise": precise}
        return Approximation(mixtures.names, rates, above, picked, points, options, notes=mixtures.notes)


class _Lines:
    """Points between two models, each evaluated once and forgotten when it is passed."""

    def __init__(self, mixtures: ScoredMixtures, alphas: Sequence[float], derivative: str, step: float) -> None:
        self._mixtures = mixtures
        self._alphas = sorted(alpha for alpha in set(alphas) if 0.0 < alpha < 1.0)
        self._central = derivative == "central"
        self._step = step
        self._seen: dict[float, dict[str, tuple[Tensor, Tensor]]] = {}

    def points(self, pair: Pair) -> list[Point]:
        self._seen = {}
        ends = [self._logits(pair, alpha) for alpha in (0.0, 1.0)]
        for name, (logits, labels) in ends[0].items():
            check_logits(logits, labels, name)
        along = {} if self._central else self._direction(pair)
        found = []
        for alpha in self._alphas:
            offsets = STENCIL if self._central else (0,)
            around = {offset: self._logits(pair, alpha + offset * self._step) for offset in offsets}
            for name in ends[0]:
                line = {offset: logits[name][0] for offset, logits in around.items()}
                found.append(self._point(pair, name, alpha, [end[name] for end in ends], line, along))
            for passed in [at for at in self._seen if at not in (0.0, 1.0) and at <= alpha - 2 * self._step]:
                del self._seen[passed]
        return found

    def _point(
        self,
        pair: Pair,
        name: str,
        alpha: float,
        ends: Sequence[tuple[Tensor, Tensor]],
        line: dict[int, Tensor],
        along: dict[str, Tensor],
    ) -> Point:
        (first, labels), (second, _) = ends
        soup = line[0]
        ensemble = (1 - alpha) * first.double() + alpha * second.double()
        beta = _beta(soup, labels)
        doubt: float | None = None
        if self._central:
            losses = {offset: mean_loss(logits, labels, beta) for offset, logits in line.items()}
            curvature, doubt = second_derivative(losses, self._step)
        else:
            self._write(pair, alpha)
            data = self._mixtures.sets.all[name]
            curvature = second_derivative_along(self._mixtures.sets.model, along, data, beta)
        spread = variance(soup, difference(first, second), beta)
        return Point(
            *pair,
            set=name,
            alpha=alpha,
            beta=beta,
            curvature=curvature,
            doubt=doubt,
            variance=spread,
            predicted=predicted_difference(alpha, beta, curvature, spread),
            soup_loss=mean_loss(soup, labels, beta),
            ensemble_loss=mean_loss(ensemble, labels, beta),
            soup_error=mean_error(soup, labels),
            ensemble_error=mean_error(ensemble, labels),
        )

    def _logits(self, pair: Pair, alpha: float) -> dict[str, tuple[Tensor, Tensor]]:
        alpha = round(alpha, 12)  # 0.1 + 0.2 is 0.3
        if alpha not in self._seen:
            self._write(pair, alpha)
            self._seen[alpha] = self._mixtures.sets.logits()
        return self._seen[alpha]

    def _write(self, pair: Pair, alpha: float) -> None:
        first, second = pair
        self._mixtures.write({first: 1.0 - alpha, second: alpha})

    def _direction(self, pair: Pair) -> dict[str, Tensor]:
        """theta_1 - theta_0, rounded once."""
        self._mixtures.write({pair[0]: -1.0, pair[1]: 1.0})
        return {name: tensor.clone() for name, tensor in line_tensors(self._mixtures.sets.model).items()}


def _recorded(journal: Journal | None, pair: Pair, lines: _Lines) -> list[Point]:
    key = f"pair {pair[0]} {pair[1]}"
    known = None if journal is None else journal.recall(key)
    if known is not None:
        return [Point(**point) for point in known]
    points = lines.points(pair)
    if journal is not None:
        journal.record(key, [asdict(point) for point in points])
    return points


def _journal(
    run: str | os.PathLike[str] | None, mixtures: ScoredMixtures, options: dict[str, Any], integers: str
) -> Journal | None:
    if run is None:
        return None
    sets = mixtures.sets
    decides = {"recipe": "approximation", "sets": sets.fingerprints, "integers": integers, **options}
    identity = identity_of(mixtures.candidates, sets.heldout, as_metric("nll"), decides, model=sets.model)
    return Journal.open(run, identity)


def _beta(logits: Tensor, labels: Tensor) -> float:
    """1 where no temperature is better than another, or logits are not finite: the rest says so."""
    try:
        return temperature(logits, labels)
    except SoupError:
        return 1.0


def _checked(alphas: Sequence[float], derivative: str, step: float) -> dict[str, Any]:
    found = sorted({float(alpha) for alpha in alphas})
    if not found or not all(0.0 <= alpha <= 1.0 for alpha in found):
        raise SoupError("alphas are shares of the second model", found=found, expected="numbers from 0 to 1")
    if derivative not in DERIVATIVES:
        raise SoupError("unknown derivative", found=repr(derivative), expected=" or ".join(DERIVATIVES))
    if not 0.0 < step <= 0.5:
        raise SoupError("the step of the derivative", found=step, expected="above 0, up to 0.5")
    return {"alphas": found, "derivative": derivative, "step": step if derivative == "central" else None}


def _pairs(pairs: int | Sequence[Pair] | None, count: int, seed: int) -> list[Pair]:
    if pairs is None or isinstance(pairs, int):
        return choose_pairs(count, pairs, seed)
    for first, second in pairs:
        if not (0 <= first < count and 0 <= second < count):
            raise SoupError("a pair of positions", found=(first, second), expected=f"from 0 to {count - 1}")
    return [(first, second) for first, second in pairs]


def _rate(candidate: Candidate) -> float | None:
    """The recorded learning rate; None of a linear probe's, which moved the head alone."""
    record = read_record(candidate.name) if is_file(candidate) else None
    identity = {} if record is None else record.details.get("identity")
    is_probe = isinstance(identity, Mapping) and "probe" in identity
    return None if is_probe else learning_rate(record)


def _upper_third(rates: Sequence[float | None]) -> float | None:
    """The largest rate below the upper third of the distinct ones; None where there are fewer than two."""
    known = sorted({rate for rate in rates if rate is not None})
    return known[max(0, 2 * len(known) // 3 - 1)] if len(known) > 1 else None


def _point_json(point: Point) -> dict[str, Any]:
    return {
        **{name: finite(value) for name, value in asdict(point).items()},
        "true": finite(point.true),
        "true_error": finite(point.true_error),
    }
