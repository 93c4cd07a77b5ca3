"""No search of initial scales."""


def none() -> None:
    """Matrices keep the initial scale that they are drawn with.

    Formula: s = 1
    Paper: none.
    Parameters: none.
    Checked against: a run's first state, which is what is drawn (tests/search).
    Certainty: primary.
    """
