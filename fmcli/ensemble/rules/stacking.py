"""Stacking: a logistic regression combines the members."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, Field
from scipy.special import softmax

from fmcli.ensemble.rules.base import VotingRule
from fmcli.ensemble.rules.vote import Floats, Labels, Logits, Vote, log_probabilities_of
from fmcli.errors import Remedy, UsageError

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline  # takes 0.7 s to import; only fitting needs it

_MIN_LOG_PROBABILITY = -30.0
_N_FOLDS = 5
_MIN_IMAGES_PER_CLASS = _N_FOLDS - 1  # of 5 images in a class, cross-fitting uses 4 to fit each fold's rule
_INVERSE_PENALTIES = np.logspace(-4, 0, 5)  # values of scikit-learn's C to try
_ABSENT_CLASS_LOGIT = -100.0  # intercept of a class without validation images, so that it never wins

_Coefficient = Annotated[float, Field(ge=-1e9, le=1e9)]  # larger values could overflow the scores


class _Parameters(BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    coefficients: list[list[_Coefficient]]
    intercepts: list[_Coefficient]


def stacking_features(logits: Logits) -> Floats:
    """Return one member's inputs to stacking: log-probabilities, at least -30, float64 (n_samples, n_classes)."""
    return np.maximum(log_probabilities_of(logits), _MIN_LOG_PROBABILITY)


@dataclass(frozen=True, eq=False)
class Stacking(VotingRule):
    """Apply a multinomial logistic regression to all members' log-probabilities.

    Args:
        tie: See `VotingRule`.
        weights: Not used.
        groups: Not used.
        coefficients: float64 (n_classes, n_members · n_classes), fitted to other images; None before fitting.
        intercepts: float64 (n_classes,); None before fitting.

    References:
        Wolpert, "Stacked generalization", Neural Networks 1992; Ting and Witten, "Issues in stacked generalization",
        JAIR 1999.
    """

    coefficients: Floats | None = None
    intercepts: Floats | None = None

    probability_decides = True
    probability_meaning = "the output of the fitted stacking model"

    @property
    def needs_fit(self) -> bool:
        """Whether the coefficients are unknown."""
        return self.coefficients is None

    def fit(self, logits: Logits, y_true: Labels) -> Self:
        """Fit a multinomial logistic regression to the log-probabilities of all members; see `VotingRule.fit`.

        The regression has an L2 penalty. Five strengths are tried, and cross-validation selects the one with the
        highest likelihood. There are five folds, or fewer if the rarest class has fewer images.

        Raises:
            UsageError: There are too few images or classes.
        """
        n_classes = logits.shape[2]
        counts = np.bincount(y_true, minlength=n_classes)
        present = counts[counts > 0]
        rarest = int(present.min(initial=len(y_true)))
        if len(present) < 2 or rarest < _MIN_IMAGES_PER_CLASS:
            raise UsageError(
                f"stacking needs at least two classes, each with at least {_MIN_IMAGES_PER_CLASS} validation images; "
                f"number of classes: {len(present)}, images of the rarest class: {rarest}",
                hint="choose a rule that needs no fitting",
                remedies=[Remedy("vote", "soft"), Remedy("vote", "majority")],
            )
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, StratifiedKFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        features = np.concatenate([stacking_features(member) for member in logits], axis=1)
        # Scaling makes the penalty the same for all features and helps the solver converge.
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        folds = StratifiedKFold(min(_N_FOLDS, rarest), shuffle=True, random_state=0)
        grid = {"logisticregression__C": _INVERSE_PENALTIES}
        # LogisticRegressionCV would be shorter, but its arguments change between versions of scikit-learn.
        search = GridSearchCV(pipeline, grid, scoring="neg_log_loss", cv=folds, error_score="raise")
        coefficients, intercepts = _coefficients_of_all_classes(search.fit(features, y_true).best_estimator_, n_classes)
        return replace(self, coefficients=coefficients, intercepts=intercepts)

    def combine(self, logits: Logits) -> Vote:
        """Apply the fitted regression; see `VotingRule.combine`.

        Raises:
            UsageError: The rule is not fitted, or was fitted to other members.
        """
        if self.coefficients is None or self.intercepts is None:
            raise UsageError("stacking must be fitted before it can vote")
        n_members, n_samples, n_classes = logits.shape
        expected = (n_classes, n_members * n_classes)
        if self.coefficients.shape != expected or self.intercepts.shape != (n_classes,):
            raise UsageError(
                f"stacking was fitted to other members: its coefficients have shape {self.coefficients.shape}, "
                f"but {n_members} members with {n_classes} classes need {expected}"
            )
        scores = np.tile(self.intercepts.astype(np.float64), (n_samples, 1))
        for member, part in zip(logits, np.split(self.coefficients, n_members, axis=1), strict=True):
            scores += stacking_features(member) @ part.T
        return self.decide(logits, scores, np.asarray(softmax(scores, axis=1)))

    def without(self, member: int) -> None:
        """Return None: the coefficients depend on all members."""

    def parameters(self) -> dict[str, Any]:
        """Return the coefficients, one row per class, and the intercepts."""
        if self.coefficients is None or self.intercepts is None:
            return {}
        return {"coefficients": self.coefficients.tolist(), "intercepts": self.intercepts.tolist()}

    def with_parameters(self, values: Any, n_members: int) -> Self:
        """Return the rule with coefficients from a file; see `VotingRule.with_parameters`."""
        fitted = _Parameters.model_validate(values)
        n_classes, lengths = len(fitted.intercepts), [len(row) for row in fitted.coefficients]
        n_columns = n_classes * n_members
        if lengths != [n_columns] * n_classes:
            raise ValueError(
                f"stacking.coefficients must have a row of {n_columns} values for each of {n_classes} intercepts; "
                f"got {len(lengths)} rows with {sorted({*lengths})} values"
            )
        return replace(self, coefficients=np.array(fitted.coefficients), intercepts=np.array(fitted.intercepts))


def _coefficients_of_all_classes(pipeline: "Pipeline", n_classes: int) -> tuple[Floats, Floats]:
    """Return one row of coefficients and one intercept per class, for features that are not scaled.

    scikit-learn has a single row for two classes, and no row for a class without images.
    """
    scaler, regression = pipeline[0], pipeline[1]
    rows = regression.coef_ / scaler.scale_
    constants = regression.intercept_ - rows @ scaler.mean_
    if len(rows) == 1:
        rows, constants = np.concatenate([-rows, rows]) / 2, np.concatenate([-constants, constants]) / 2
    coefficients = np.zeros((n_classes, rows.shape[1]))
    intercepts = np.full(n_classes, _ABSENT_CLASS_LOGIT)
    coefficients[regression.classes_], intercepts[regression.classes_] = rows, constants
    return coefficients, intercepts
