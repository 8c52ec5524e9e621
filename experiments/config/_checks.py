"""What every config is checked for."""

from typing import Any


def check_counts(config: Any) -> None:
    for name in ("seeds", "epochs", "batch_size"):
        count = getattr(config, name, 1)
        if count < 1:
            raise ValueError(f"{name} is {count}; it is at least 1.")


def check_fractions(name: str, fractions: tuple[float, ...]) -> None:
    for fraction in fractions:
        if not 0 <= fraction < 1:
            raise ValueError(
                f"{name} holds {fraction}; it is a fraction that is removed, in [0, 1)."
            )
