"""The win rate that a model would have if its answers were as long as the other's (AlpacaEval 2; RECIPE I.4).

A judge prefers longer texts. The method of Dubois et al. (2024, arXiv 2404.04475) fits the judge's preferences by a logistic
model of the difference in length, the difficulty of the instruction and a constant, and asks it again at no difference. The
difficulties, and preferences for two models that play with length, which the fit is held to, are in AlpacaEval's `df_gamed.csv`.
Deviations: no penalty, where the published fit chooses the weight of an L1 penalty by cross-validation; and without that file
the difference in length and the constant alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

HELD_TO = 0.2
"""Weight of all rows of the models that play with length, each of the two half."""
_RIDGE = 1e-6
"""Keeps the fit finite where preferences follow the length without exception."""
_MOST_STEPS = 100

Vector = Float[np.ndarray, " n"]
Matrix = Float[np.ndarray, "n k"]


@dataclass(frozen=True)
class PlayedRows:
    """Preferences for models whose instructions were to be long or short."""

    difficulty: dict[int, float]
    """Place of an instruction in the set -> its difficulty."""
    features: Matrix
    """Of each preference: tanh of the standardised difference in length, difficulty, and 0 for the constant."""
    preferences: Vector


def length_controlled(
    preferences: Sequence[float],
    places: Sequence[int],
    characters: Sequence[int],
    reference_characters: Sequence[int],
    played: PlayedRows | None = None,
) -> list[float]:
    """A value per instruction. Their mean is the preference (0 to 1) for the model, were both answers equally long; their
    standard error is that of the mean, since each holds what its instruction did to the fit. One value may lie outside [0, 1].

    Raises ValueError for an instruction whose difficulty is not known.
    """
    difference = np.asarray(reference_characters, float) - np.asarray(characters, float)
    # The sample's deviation, as the published method has it; equal lengths have none.
    deviation = difference.std(ddof=1) if len(difference) > 1 else 0.0
    columns = [np.tanh(difference / deviation) if deviation else np.zeros_like(difference)]
    if played is not None:
        unknown = [place for place in places if place not in played.difficulty]
        if unknown:
            raise ValueError(
                f"instructions {', '.join(map(str, unknown[:5]))} have no difficulty in the file of played rows; it belongs "
                "to AlpacaEval's 805 instructions in their order"
            )
        columns.append(np.array([played.difficulty[place] for place in places]))
    columns.append(np.ones_like(difference))
    features, targets, weights = np.stack(columns, 1), np.asarray(preferences, float), np.ones(len(difference))
    rows, wanted = features, targets
    if played is not None:
        rows, wanted = np.concatenate([features, played.features]), np.concatenate([targets, played.preferences])
        weights = np.concatenate([weights, np.full(len(played.preferences), HELD_TO / 2)])
    coefficients = fit_logistic(rows, wanted, weights)
    # The first column is the length: no difference leaves the rest.
    equal = features * np.array([0.0] + [1.0] * (features.shape[1] - 1))
    controlled = _logistic(equal @ coefficients)
    return (
        controlled + _influence(features, equal, targets, coefficients, _curvature(rows, coefficients, weights))
    ).tolist()


def _influence(
    features: Matrix,
    equal: Matrix,
    targets: Vector,
    coefficients: Float[np.ndarray, " k"],
    curvature: Float[np.ndarray, "k k"],
) -> Vector:
    """What each instruction did to the mean of the controlled preferences through the coefficients, to first order, times their
    number; the mean is 0. `equal` are the features at equal lengths.

    Without it all values would be one number where nothing but the constant is left, and their error 0. The method is the
    infinitesimal jackknife (Jaeckel 1972); what an instruction does to the deviation of the lengths is left out.
    """
    controlled = _logistic(equal @ coefficients)
    gradient = (controlled * (1 - controlled)) @ equal
    left_over = targets - _logistic(features @ coefficients)
    moved = left_over * (features @ np.linalg.solve(curvature, gradient))
    # The rows of the played models and the ridge take part in the fit, so the sum over the others is not quite 0.
    return moved - moved.mean()


def _curvature(features: Matrix, coefficients: Float[np.ndarray, " k"], weights: Vector) -> Float[np.ndarray, "k k"]:
    """Second derivative of the weighted cross-entropy, with the ridge."""
    expected = _logistic(features @ coefficients)
    return (features * (weights * expected * (1 - expected))[:, None]).T @ features + _RIDGE * np.eye(features.shape[1])


def fit_logistic(features: Matrix, targets: Vector, weights: Vector) -> Float[np.ndarray, " k"]:
    """Coefficients without an intercept that minimise the weighted cross-entropy with targets in [0, 1], by Newton's method."""
    coefficients = np.zeros(features.shape[1])
    for _ in range(_MOST_STEPS):
        expected = _logistic(features @ coefficients)
        slope = features.T @ (weights * (expected - targets)) + _RIDGE * coefficients
        step = np.linalg.solve(_curvature(features, coefficients, weights), slope)
        # A step that leaves the region where the curvature holds is shortened.
        coefficients -= step / max(1.0, np.abs(step).max())
        if np.abs(step).max() < 1e-10:
            break
    return coefficients


def _logistic(values: Vector) -> Vector:
    # Of the absolute value, so that nothing overflows.
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, 1.0, small) / (1 + small)
