"""The arguments of a sweep, made so that Hydra can compose before it begins."""

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser

from prunebench.config import GROUPS


def postponed(arguments: Sequence[str]) -> list[str]:
    """The arguments of a sweep over choices of a group, with options that wait for the choice.

    Hydra composes once before a sweep, without what is swept: in `-m method=rigl,set method.interval=50` the
    interval would be taken for an option of the default method, and refused. As a sweep over one value it is
    left to the jobs.

    >>> postponed(["-m", "method=rigl,set", "method.interval=50", "+method.x=[1,2]", "seed=0"])
    ['-m', 'method=rigl,set', 'method.interval=choice(50)', '+method.x=choice([1,2])', 'seed=0']
    >>> postponed(["method=rigl", "method.interval=50"]), postponed(["-m", "seed=0,1", "method.interval=50"])
    (['method=rigl', 'method.interval=50'], ['-m', 'seed=0,1', 'method.interval=50'])
    """
    if not any(a in ("-m", "--multirun") for a in arguments):
        return list(arguments)
    typed = [a for a in arguments if not a.startswith("-")]
    parsed = dict(zip(typed, OverridesParser.create().parse_overrides(typed)))
    if not any(o.is_sweep_override() and o.key_or_group in GROUPS for o in parsed.values()):
        return list(arguments)
    out = []
    for argument in arguments:
        override = parsed.get(argument)
        waits = override is not None and not override.is_sweep_override() and not argument.startswith("~")
        group, dot, _ = override.key_or_group.partition(".") if waits else ("", "", "")
        key, _, value = argument.partition("=")
        out.append(f"{key}=choice({value})" if dot and group in GROUPS else argument)
    return out
