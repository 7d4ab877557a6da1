"""Any image classifier of the timm library."""

import pickle
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from prunebench.core.compact import survivors
from prunebench.core.units import Junction, PrunableModel, Unit
from prunebench.models.dependency import find_units
from prunebench.models.layers import resolve_widths
from prunebench.models.narrow import check_units, narrow_, narrowed_units

RESERVED = {
    "model_name": "model.name",
    "pretrained": "model.pretrained",
    "checkpoint_path": "model.checkpoint",
    "in_chans": "dataset",
    "num_classes": "dataset",
    "img_size": "dataset.size",
}
# What timm's constructors and forward passes raise when sizes or options do not fit.
MISFIT = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, ZeroDivisionError)


class TimmModel(PrunableModel):
    """A timm network under the contract of our own families; built by `timm_model`.

    The network is the submodule `net`, so its parameter names are timm's behind the prefix "net.". It cannot
    be the model itself: many timm networks have a submodule called `head`, the name of the contract's
    attribute.

    Args:
      net: the timm network.
      name: its name in timm.
      kwargs: further arguments it was built with.
      in_channels, num_classes, image_size: of the data.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        kwargs: Mapping[str, Any],
        in_channels: int,
        num_classes: int,
        image_size: int,
    ):
        super().__init__()
        self.net, self.name, self.kwargs = net, name, dict(kwargs)
        self.in_channels, self.num_classes, self.image_size = in_channels, num_classes, image_size
        self.widths: dict[str, int] = {}  # known when the units are, which takes a while to find out
        self._whole: list[Unit] | None = None  # units of the network before it was narrowed
        self._units: list[Unit] | None = None
        self.head = f"net.{_classifier_names(net)[0]}"

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, image_size, image_size] -> logits [N, num_classes]."""
        return self.net(x)

    def units(self) -> list[Unit]:
        """Filters, neurons and attention heads, see `prunebench.models.dependency.find_units`.

        Found and checked by numbers at the first call.

        Raises:
          ValueError: if the network has none, or is one whose channels are not understood.
        """
        if self._units is None:
            x = torch.randn(2, self.in_channels, self.image_size, self.image_size, generator=_generator())
            found = find_units(self.net, x[:1], classifiers=_classifier_names(self.net))
            self._units = self._whole = [_prefixed(unit) for unit in found]
            self.widths = {unit.name: unit.size for unit in self._units}
            way_out = "use sparsity.granularity=weight, or another model"
            subject = f"model.name={self.name}: filters and neurons cannot be pruned"
            try:
                if not self._units:
                    raise ValueError("it has no channels that can be cut out")
                check_units(self, x)
            except ValueError as error:
                self._units, self.widths = None, {}
                raise ValueError(f"{subject}, {error}; {way_out}") from None
        return self._units

    def junctions(self) -> list[Junction]:
        """Not available.

        Raises:
          ValueError: always.
        """
        raise ValueError(f"timm models (model.name={self.name}) do not say which layers are neighbours")

    def with_widths(self, widths: Mapping[str, int]) -> "TimmModel":
        """A freshly initialised network of the same name and options with other widths.

        Units left out keep theirs; of the others the first channels stay.

        Raises:
          ValueError: if `widths` names no unit or holds a width below 1 or above the network's own.
        """
        fresh = timm_model(
            self.name,
            kwargs=self.kwargs,
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            image_size=self.image_size,
        )
        if not widths and self._units is self._whole:
            return fresh
        self.units()
        sizes = {unit.name: unit.size for unit in self._whole}
        wanted = resolve_widths(self.widths, widths)
        for name, width in wanted.items():
            if width > sizes[name]:
                raise ValueError(f"widths={{{name!r}: {width}}}: must be at most {sizes[name]}")
        fresh._units = fresh._whole = self._whole
        alive = {name: torch.arange(size) < wanted[name] for name, size in sizes.items()}
        kept = survivors(fresh, alive)
        narrow_(fresh.net, {name.removeprefix("net."): dims for name, dims in kept.items()})
        fresh._units, fresh.widths = narrowed_units(self._whole, wanted, kept), wanted
        return fresh


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _prefixed(unit: Unit) -> Unit:
    """A unit of the network as one of the model that has it as the submodule `net`."""
    made, used = (tuple((f"net.{n}", d) for n, d in entries) for entries in (unit.made_by, unit.used_by))
    layout = {(f"net.{n}", d): row for (n, d), row in unit.layout.items()}
    return Unit(f"net.{unit.name}", unit.size, made, used, layout)


def timm_model(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | None = None,
    kwargs: dict[str, Any] | None = None,
    in_channels: int,
    num_classes: int,
    image_size: int,
) -> TimmModel:
    """Classifier `name` of timm for the data at hand, with timm's own initialisation or given weights.

    The image size is passed as `img_size` to networks that take it. One image is sent through the network in
    eval mode, so that a size that does not fit is found here and not in training. Weights for other classes,
    channels or positions are adapted by timm: a classifier of another size is drawn anew.

    Args:
      name: as in `timm.list_models()`, a pretrained tag allowed: "vit_tiny_patch16_224", "resnet18.a1_in1k".
      pretrained: load timm's weights, from its cache or the network.
      checkpoint: file (.safetensors, .pth) with weights of this network, saved by timm or by prunebench.
      kwargs: further arguments of the network's constructor, such as {patch_size: 4}.
      in_channels: of the images.
      num_classes: logits.
      image_size: side of the square images in pixels.

    Raises:
      ValueError: if timm knows no such network or option, the images do not fit, or weights cannot be had.
    """
    kwargs = _plain(kwargs or {})
    for key in kwargs:
        if key in RESERVED:
            raise ValueError(f"model.kwargs.{key}: must not be given here; it comes from {RESERVED[key]}")
    if pretrained and checkpoint is not None:
        raise ValueError(
            f"model.checkpoint={checkpoint}: has no effect with model.pretrained=true; choose one"
        )
    _check_name(name)
    kwargs |= {"in_chans": in_channels, "num_classes": num_classes}
    net, kwargs = _build(name, kwargs, image_size)
    if pretrained:
        net = _pretrained(name, kwargs)
    elif checkpoint is not None:
        net = _loaded(net, name, checkpoint, kwargs)
    options = {k: v for k, v in kwargs.items() if k not in RESERVED}
    return TimmModel(
        net,
        name=name,
        kwargs=options,
        in_channels=in_channels,
        num_classes=num_classes,
        image_size=image_size,
    )


def _plain(value: Any) -> Any:
    """Nested configuration containers as dicts and lists."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if hasattr(value, "__iter__") and not isinstance(value, str | Tensor):
        return [_plain(v) for v in value]
    return value


def _check_name(name: str) -> None:
    import timm

    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        close = get_close_matches(base, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
        raise ValueError(f"model.name={name}: timm {timm.__version__} has no such model; {hint}")
    if tag and not timm.models.is_model_pretrained(name):
        tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{base}.*")]
        raise ValueError(
            f"model.name={name}: timm has no weights {tag!r} for it; choose from {', '.join(tags)}"
        )


def _build(name: str, kwargs: dict[str, Any], image_size: int) -> tuple[nn.Module, dict[str, Any]]:
    """A network that takes such images, and the arguments that made it."""
    import timm

    wanted = f"model.name={name}: cannot be used with dataset.size={image_size}"
    options = {k: v for k, v in kwargs.items() if k not in RESERVED}
    if options:
        wanted += f" and model.kwargs={options}"
    try:
        try:
            sized = kwargs | {"img_size": image_size}
            net = timm.create_model(name, **sized)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            sized = kwargs
            net = timm.create_model(name, **sized)
        was_training = net.training
        with torch.no_grad():
            logits = net.eval()(torch.zeros(1, kwargs["in_chans"], image_size, image_size))
        net.train(was_training)
    except MISFIT as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{wanted} ({reason}); choose another dataset.size, model.name or model.kwargs "
            "(patch_size, for example)"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (1, kwargs["num_classes"]):
        raise ValueError(f"model.name={name}: must be a classifier that returns one logit per class")
    return net, sized


def _pretrained(name: str, kwargs: dict[str, Any]) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, pretrained=True, **kwargs)
    except (OSError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"model.pretrained=true: no weights for model.name={name} ({reason}); "
            "set model.pretrained=false, or model.checkpoint=<file> with weights of this model, "
            "or run once with a network connection to fill the cache"
        ) from error


def _loaded(net: nn.Module, name: str, checkpoint: str, kwargs: dict[str, Any]) -> nn.Module:
    """The network with the weights of a file; classifier, first convolution and positions may be adapted."""
    import timm
    from safetensors import SafetensorError

    try:
        state = timm.models.load_state_dict(checkpoint)
    except FileNotFoundError:
        raise ValueError(f"model.checkpoint={checkpoint}: must be a file; there is none") from None
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise ValueError(f"model.checkpoint={checkpoint}: must hold a state dict ({error})") from error
    if all(k.startswith("net.") for k in state):
        state = {k.removeprefix("net."): v for k, v in state.items()}
    own = net.state_dict()
    heads = _classifier_names(net)
    missing = [n for n in own if n not in state and n.rpartition(".")[0] not in heads]
    if missing:
        raise ValueError(
            f"model.checkpoint={checkpoint}: must hold all weights of model.name={name}; it lacks "
            f"{len(missing)} of {len(own)}, such as {missing[0]}"
        )
    if {n: v.shape for n, v in state.items()} == {n: v.shape for n, v in own.items()}:
        net.load_state_dict(state)
        return net
    weight = state.get(f"{heads[0]}.weight")
    source = {"state_dict": state, "num_classes": 0 if weight is None else len(weight), "label_offset": 0}
    try:
        net = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, **kwargs)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"model.checkpoint={checkpoint}: does not fit model.name={name} ({reason})"
        ) from error
    net.pretrained_cfg = {
        **net.pretrained_cfg,
        "state_dict": None,
    }  # timm would keep a second copy of the weights
    return net


def _classifier_names(net: nn.Module) -> list[str]:
    """Module names of the classifier; distilled networks have two."""
    classifier = net.get_classifier()
    wanted = classifier if isinstance(classifier, tuple | list) else (classifier,)
    return [name for name, module in net.named_modules() if any(module is w for w in wanted)]
