"""The learning rate by step: warm-up, then constant, then a linear cool-down."""

WARM_UP = 0.05
COOL_DOWN = 0.5
LOWEST = 0.05


def learning_rate_factor(step: int, steps: int) -> float:
    """Return the factor on the learning rate at `step` of `steps`."""
    warm_up, left = min(1.0, (step + 1) / max(WARM_UP * steps, 1)), (steps - step) / max(COOL_DOWN * steps, 1)
    return warm_up * max(LOWEST, min(1.0, left))
