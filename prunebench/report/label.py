"""Name runs by what distinguishes them: one configuration, one name, whatever the seed."""

from collections.abc import Iterable, Mapping, Sequence

from prunebench.report.configuration import canonical, matters
from prunebench.report.read import Run

# Settings that are named beside the method where runs of the same method differ in them.
SETTINGS = (
    "criterion",
    "protocol",
    "optimizer",
    "schedule",
    "retrain",
    "sparsity.allocation",
    "sparsity.granularity",
)
BARE = ("criterion", "protocol", "schedule")  # of these the value says enough: "lth silo"
USUAL = ("protocol", "iterative")  # goes without saying beside other protocols

# Overrides that a table shows otherwise, or that are averaged over.
TARGETS = ("sparsity.target", "sparsity.compression", "protocol.target", "recipe.target", "method.target")
SHOWN = {"method", "companion", "model", "dataset", *TARGETS}
ROUNDS = ("sparsity.rounds", "protocol.rounds", "recipe.rounds")  # where a rate is given, they say the target
TELLS_NOTHING = {"name"}  # last words of keys that need the one before
LONG = 16  # characters of a value that is left out where others tell as much


def labelled(runs: Sequence[Run]) -> list[str]:
    """For every run a name, see `group.labels`.

    What differs between runs on one model and data set is named on all of them, so that a name means the same
    in every table; what differs only from one model or data set to another is not named.
    """
    names = ["+".join(filter(None, (run.identity["method"], run.identity.get("companion")))) for run in runs]
    return _with_options(runs, _with_settings(runs, names))


def _with_settings(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """Names with the settings added in which runs of one method differ, with companions and without."""
    differ: dict[str, set[str]] = {}
    for members in _panels(runs, [run.identity["method"] for run in runs]):
        known = {key: {str(run.identity.get(key)) for run in members} - {"None"} for key in SETTINGS}
        method = members[0].identity["method"]
        differ.setdefault(method, set()).update(key for key in SETTINGS if len(known[key]) > 1)
    out = []
    for run, name in zip(runs, names):
        keys = [key for key in SETTINGS if key in differ[run.identity["method"]]]
        given = [(key, run.identity[key]) for key in keys if run.identity.get(key) is not None]
        out.append(" ".join(filter(None, [name, *(_setting(key, value) for key, value in given)])))
    return out


def _panels(runs: Sequence[Run], names: Sequence[str]) -> list[list[Run]]:
    """The runs that have a name, a model and a data set in common."""
    out: dict[tuple, list[Run]] = {}
    for run, name in zip(runs, names):
        out.setdefault((name, run.identity["model"], run.identity["dataset"]), []).append(run)
    return list(out.values())


def _setting(key: str, value: object) -> str:
    if (key, value) == USUAL:
        return ""
    return str(value) if key in BARE and value != "none" else f"{key.rpartition('.')[2]}={value}"


def _with_options(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """Names with the options added in which runs of one name differ."""
    out = list(names)
    for name in dict.fromkeys(names):
        places = [i for i, other in enumerate(names) if other == name]
        panels = _panels([runs[i] for i in places], [name] * len(places))
        of_panels = [_without_long(members, differing(members)) for members in panels]
        keys = list(dict.fromkeys(key for of_panel in of_panels for key in of_panel))
        words = dict(zip(keys, short(keys)))
        for i in places:
            out[i] = " ".join([name, *(f"{words[key]}={value_of(runs[i], key)}" for key in keys)])
    return out


def differing(members: Sequence[Run]) -> list[str]:
    """Options whose values tell the runs apart as their configurations do.

    Options that somebody typed come first: these words are known. Where config.yaml is there it decides: what
    was typed in one run and is the default of another is no difference, and a difference that nobody typed
    (of an experiment, or of another version of the defaults) is one. Options that follow the seed
    (`dataset.noise_seed=${seed}`) make no difference.
    """
    by_rate = all(_by_rate(run.configuration or run.overrides) for run in members)
    left_out = ROUNDS if by_rate else ()
    typed = dict.fromkeys(key for run in members for key in run.overrides if _tells(key, run))
    typed = {key: None for key in typed if key not in left_out}
    keys = [key for key in typed if differs(members, key)]
    if any(run.configuration is None for run in members):
        return keys
    distinct = {id(run.configuration): run for run in members}
    comparable = dict.fromkeys([*filter(_decides, keys), *_comparable(list(distinct.values()))])
    comparable = [key for key in comparable if key not in left_out]
    decisive = [key for key in comparable if differs(distinct.values(), key) and differs(members, key)]
    kinds = {mark: tuple(value_of(run, key) for key in decisive) for mark, run in distinct.items()}
    kind = [kinds[id(run.configuration)] for run in members]
    # Of what was typed, that which is the same within a kind; then whatever still tells kinds apart.
    keys = [
        k for k in keys if len({(a, value_of(run, k)) for a, run in zip(kind, members)}) == len(set(kind))
    ]
    told = {a: tuple(value_of(run, key) for key in keys) for a, run in zip(kind, members)}
    for place, key in enumerate(decisive):
        finer = {a: (*words, a[place]) for a, words in told.items()}
        if len(set(finer.values())) > len(set(told.values())):
            keys, told = [*keys, key], finer
    return keys


def _by_rate(options: Mapping[str, str]) -> bool:
    """Whether the sparsity asked at the end is that of a rate, and so of the rounds."""
    return options.get("sparsity.target") == "null" and options.get("sparsity.compression", "null") == "null"


def _without_long(members: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """The options less those with long values, such as a grid, without which the others tell as much."""
    out = list(keys)
    for key in keys:
        rest = [other for other in out if other != key]
        told = [{tuple(value_of(run, k) for k in some) for run in members} for some in (out, rest)]
        if len(told[0]) == len(told[1]) and any(len(value_of(run, key)) > LONG for run in members):
            out = rest
    return out


def _comparable(runs: Sequence[Run]) -> list[str]:
    """Options that the configurations of all runs have; those that came with a later version stay out.

    Where an option holds different keys in different runs (`model.kwargs`), it is one text as a whole.
    """
    content: list[dict[str, list[str]]] = []
    for run in runs:
        content.append({})
        for key in run.configuration or ():
            option = ".".join(key.split(".")[: 3 if key.startswith("companion.") else 2])
            content[-1].setdefault(option, []).append(key)
    shared = [option for option in content[0] if all(option in of_run for of_run in content)]
    same = {option for option in shared if all(of_run[option] == content[0][option] for of_run in content)}
    keys = [key for option in shared for key in (content[0][option] if option in same else [option])]
    return [key for key in keys if _decides(key)]


def differs(members: Iterable[Run], key: str) -> bool:
    """Whether the runs have several values of an option, other than each its own seed."""
    pairs = {(value_of(run, key), canonical(run.identity["seed"])) for run in members}
    return len({value for value, _ in pairs}) > 1 and any(value != seed for value, seed in pairs)


def _tells(key: str, run: Run) -> bool:
    """Whether a typed override can tell runs of one name apart."""
    return matters(key) and key not in SHOWN and not (key in SETTINGS and key in run.identity)


def _decides(key: str) -> bool:
    """Whether an option makes a run another one: `recipe` and experiments only serve the others."""
    return "." in key and key not in TARGETS and not key.startswith("recipe.")


def value_of(run: Run, key: str) -> str:
    """The value of an option: of config.yaml if it is there, else as typed; "default" if it was not."""
    known: Mapping[str, str] = run.configuration or {}
    if key in known:
        return known[key]
    parts = [f"{k.removeprefix(key + '.')}:{text}" for k, text in known.items() if k.startswith(f"{key}.")]
    if parts and "." in key:
        return f"{{{','.join(parts)}}}"
    return canonical(run.overrides[key]) if key in run.overrides else "default"


def short(keys: Sequence[str]) -> list[str]:
    """Every key by its last word, or by more where that is another's, a setting's, or says nothing."""
    taken = {key.rpartition(".")[2] for key in SETTINGS} | TELLS_NOTHING
    out = []
    for key in keys:
        words = key.split(".")
        count = 1
        while count < len(words):
            short = ".".join(words[-count:])
            if short not in taken and not any(k != key and f".{k}".endswith(f".{short}") for k in keys):
                break
            count += 1
        out.append(".".join(words[-count:]))
    return out
