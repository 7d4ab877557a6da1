"""What a protocol's options ask of every round: sparsities, lengths and peaks, checked before training."""

import math
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

from prunebench.core.allocation import sparsity_after_rounds
from prunebench.core.phase import Phase
from prunebench.lengths import check_length, difference, parts, split
from prunebench.ramps import geometric, linear

Control = Literal["none", "reinit", "random_layerwise", "random_global", "random_even"]
ControlAt = Literal["last", "every"]
OptimizerState = Literal["reset", "keep"]
SHUFFLES = {"reinit": None, "random_layerwise": "layerwise", "random_global": "global", "random_even": "even"}


def peak_of_phases(peaks: list[float] | None, rounds: int) -> list[float | None]:
    """The peak of every phase of a plan with so many rounds."""
    if peaks is None:
        return [None] * (rounds + 1)
    if len(peaks) != rounds + 1:
        raise ValueError(
            f"protocol.peaks={peaks}: must be {rounds + 1} learning rates, of dense training and {rounds} "
            f"rounds; there are {len(peaks)}"
        )
    for peak in peaks:
        if not 0.0 < peak < math.inf:
            raise ValueError(f"protocol.peaks={peaks}: must be finite learning rates above 0")
    return list(peaks)


def asked_sparsities(
    rounds: int,
    target: float | None,
    rate: float | None,
    layer_rates: dict[str, float] | None,
    spacing: str,
) -> list[Any]:
    """Sparsity after every round, of the original weights; a function of the run with `layer_rates`."""
    if rounds < 1:
        raise ValueError(f"sparsity.rounds={rounds}: must be at least 1; or choose protocol=dense")
    if target is None and rate is None and layer_rates:
        return [partial(sparsity_after_rounds, rates=layer_rates, rounds=j) for j in range(1, rounds + 1)]
    if (target is None) == (rate is None):
        both = f"sparsity.target={_yaml(target)} sparsity.rate={_yaml(rate)}"
        raise ValueError(f"{both}: exactly one must be given; set the other to null")
    if rate is not None:
        if not 0.0 < rate < 1.0:
            raise ValueError(f"sparsity.rate={rate}: must lie in (0, 1)")
        if spacing != "geometric":
            raise ValueError(f"sparsity.spacing={spacing}: must be geometric with sparsity.rate")
        return [1.0 - (1.0 - rate) ** j for j in range(1, rounds + 1)]
    if not 0.0 <= target < 1.0:
        raise ValueError(f"sparsity.target={target}: must lie in [0, 1)")
    ramp = geometric if spacing == "geometric" else linear
    return [ramp(j / rounds, target=target) for j in range(1, rounds + 1)]


def round_lengths(
    rounds: int,
    dense: str,
    retrain: str | None,
    retrain_total: str | None,
    budget: str | None,
    weights: str,
    rewind_to: str,
) -> list[str]:
    """Length of every round."""
    options = {"retrain": retrain, "retrain_total": retrain_total, "budget": budget}
    given = {f"protocol.{key}": value for key, value in options.items() if value is not None}
    if len(given) > 1:
        listed = " ".join(f"{key}={value}" for key, value in given.items())
        raise ValueError(f"{listed}: at most one must be given; set the others to null")
    for key, value in given.items():
        check_length(key, value)
    if not given and weights == "keep":
        keys = "protocol.retrain, protocol.retrain_total and protocol.budget"
        raise ValueError(
            f"protocol.retrain=null: exactly one of {keys} must be given with protocol.weights=keep"
        )
    if not given:
        return [difference("protocol.dense", dense, "protocol.rewind_to", rewind_to)] * rounds
    if retrain is not None:
        return [retrain] * rounds
    if retrain_total is not None:
        return split("protocol.retrain_total", retrain_total, rounds, retrain_total)
    return split(
        "protocol.budget", budget, rounds, difference("protocol.budget", budget, "protocol.dense", dense)
    )


def check_control(control: str, control_at: str, weights: str) -> None:
    """The control must be one, and be another training than that of the rounds."""
    check_choice("protocol.control", control, Control)
    check_choice("protocol.control_at", control_at, ControlAt)
    if control == "reinit" and weights == "random":
        raise ValueError("protocol.control=reinit: must be none with protocol.weights=random, which reinits")
    if control == "none" and control_at != "last":
        raise ValueError(
            f"protocol.control_at={control_at}: has no effect with protocol.control=none; choose a control"
        )


def controlled(phase: Phase, control: str) -> Phase:
    """A control in the place of a round: new weights under its masks, as they are or shuffled."""
    return replace(phase, weights="random", uncontrolled=phase.weights, shuffle=SHUFFLES[control])


def first_phases(plan: list[Phase], count: int | None) -> list[Phase]:
    """The beginning of a plan with `count` phases that are results; all of it for None."""
    ends = [place for place, phase in enumerate(plan, start=1) if phase.is_round]
    return plan if count is None else plan[: ends[count - 1]]


def with_controls(plan: list[Phase]) -> list[Phase]:
    """The plan with the controls that its phases want beside them, each after its phase."""
    result = []
    for phase in plan:
        result.append(phase)
        if phase.beside is not None:
            new = controlled(phase, phase.beside)
            name = f"{phase.name}-{phase.beside}"
            result.append(replace(new, name=name, sparsity=None, snapshot=(), beside=None, aside=True))
    return result


def check_rewind(weights: str, rewind_to: str, dense: str) -> None:
    """The rewinding point must have a use, and lie in dense training where both have the same unit."""
    check_length("protocol.rewind_to", rewind_to)
    (number, unit), (dense_number, dense_unit) = parts(rewind_to), parts(dense)
    if weights != "rewind":
        if number != 0.0:
            raise ValueError(f"protocol.rewind_to={rewind_to}: must be 0it unless protocol.weights=rewind")
    elif dense_number == 0.0 or (unit == dense_unit and number >= dense_number):
        rule = (
            f"must be shorter than protocol.dense={dense}; to go on from its end choose protocol.weights=keep"
        )
        raise ValueError(f"protocol.rewind_to={rewind_to}: {rule}")


def check_common(dense: str, keep: str, patience: str | None, monitor: str) -> None:
    """Options of every protocol."""
    check_length("protocol.dense", dense)
    check_choice("protocol.keep", keep, Literal["last", "best"])
    check_choice("protocol.monitor", monitor, Literal["top1", "loss"])
    if monitor == "loss" and keep == "last" and patience is None:
        raise ValueError(
            "protocol.monitor=loss: has no effect without protocol.patience or protocol.keep=best; set one"
        )
    if patience is not None:
        check_length("protocol.patience", patience)
        if parts(patience)[0] == 0.0:
            raise ValueError(f"protocol.patience={patience}: must be longer than 0; null for no early end")


def keeps_state(optimizer_state: str, weights: str, control: str, keep: str) -> bool:
    """Whether rounds begin with the last one's optimizer state; refuses it where that is of other weights."""
    check_choice("protocol.optimizer_state", optimizer_state, OptimizerState)
    if optimizer_state == "keep" and (weights != "keep" or control != "none" or keep == "best"):
        raise ValueError(
            "protocol.optimizer_state=keep: is the state of the last weights; needs protocol.weights=keep, "
            "protocol.control=none and protocol.keep=last"
        )
    return optimizer_state == "keep"


def check_choice(key: str, value: str, choices: Any) -> None:
    """`choices` is a Literal type."""
    if value not in get_args(choices):
        raise ValueError(f"{key}={value}: must be one of {', '.join(get_args(choices))}")


def _yaml(value: float | None) -> str:
    return "null" if value is None else str(value)
