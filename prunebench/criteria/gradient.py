"""Scores made of gradients of the loss, and the one place where criteria take gradients.

The loss is plain cross-entropy, also where `trainer.label_smoothing` is set: that is what the papers score
by. The network is `run.model` in full precision with its weights as they are, those that are pruned being 0.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunebench.core.run import Run
from prunebench.core.units import Unit, model_units, spread_over_weights, unit_scores

Mode = Literal["train", "eval"]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
Weights = Mapping[str, Tensor]
Forward = Callable[[Weights, Tensor], Tensor]


@contextmanager
def network(run: Run, mode: Mode) -> Iterator[Forward]:
    """The run's network as a function (weights by name, images) -> logits, which leaves no trace in the run.

    In train mode BatchNorm takes the statistics of the batch and writes its running ones to copies; dropout
    draws from a generator of its own. No TF32 on CUDA. Attention is computed without fused kernels, which
    have no second derivative.

    Args:
      mode: of every module inside the block; afterwards each has its own again.

    Raises:
      ValueError: if `mode` is neither train nor eval.
    """
    if mode not in ("train", "eval"):
        raise ValueError(f"criterion.bn_mode={mode}: must be train or eval")
    modes = {module: module.training for module in run.model.modules()}
    buffers = {name: buffer.clone() for name, buffer in run.model.named_buffers()}
    cuda, seed = run.device.type == "cuda", run.rng("criterion dropout").initial_seed()
    tf32 = torch.backends.cudnn.allow_tf32

    def forward(weights: Weights, images: Tensor) -> Tensor:
        return functional_call(run.model, {**buffers, **weights}, (images,))

    with torch.random.fork_rng([run.device] if cuda else []), sdpa_kernel(SDPBackend.MATH):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.default_generators[run.device.index or 0].manual_seed(seed)
        try:
            torch.backends.cudnn.allow_tf32 = False
            run.model.train(mode == "train")
            with torch.enable_grad():
                yield forward
        finally:
            for module, training in modes.items():
                module.training = training
            torch.backends.cudnn.allow_tf32 = tf32


def prunable_weights(run: Run) -> dict[str, Tensor]:
    """Name -> the parameter's values as a leaf of its own that wants a gradient, frozen or not; no copies."""
    params = dict(run.model.named_parameters())
    return {n: params[n].detach().requires_grad_() for n in run.masks}


def gradients(loss: Tensor, weights: Weights, *, create_graph: bool = False) -> dict[str, Tensor]:
    """Name -> gradient; 0 for a weight that the loss does not depend on."""
    grads = torch.autograd.grad(
        loss, list(weights.values()), create_graph=create_graph, materialize_grads=True
    )
    return dict(zip(weights, grads))


def hessian_times(
    grads: Weights, vector: Weights, weights: Weights, *, keep_graph: bool = False
) -> dict[str, Tensor]:
    """Name -> Hessian times a constant vector, the derivative of <grads, vector>.

    Args:
      grads: taken with `create_graph`.
      keep_graph: whether `grads` will be differentiated again.

    Raises:
      ValueError: if PyTorch has no second derivative of a layer.
    """
    inner = sum((g * vector[n]).sum() for n, g in grads.items() if g.requires_grad)
    try:
        products = torch.autograd.grad(
            inner, list(weights.values()), retain_graph=keep_graph, materialize_grads=True
        )
    except RuntimeError as error:
        if "not implemented" not in str(error):
            raise
        raise ValueError(
            f"criterion: needs second derivatives, which this network does not have ({error}); use "
            "criterion=snip, taylor or obd_fisher"
        ) from None
    return dict(zip(weights, products))


def check_images(run: Run, *, batches: int = 1, per_class: int | None = None) -> None:
    """Refuse numbers of scoring images that cannot be had.

    Raises:
      ValueError: if a number is below 1, both are set, or `batches` is more than the training split.
    """
    for key, value in (("batches", batches), ("per_class", 1 if per_class is None else per_class)):
        if value < 1:
            raise ValueError(f"criterion.{key}={value}: must be 1 or more")
    if per_class is not None and batches != 1:
        raise ValueError(
            f"criterion.batches={batches}: has no effect with criterion.per_class={per_class}; leave it at 1"
        )
    if per_class is not None:
        counts = run.data.class_counts()
        fewest = min(range(len(counts)), key=counts.__getitem__)
        if per_class > counts[fewest]:
            raise ValueError(
                f"criterion.per_class={per_class}: class {run.data.class_names[fewest]} has only "
                f"{counts[fewest]} training images; lower it"
            )
    size, images = run.data.batch_size, run.data.sizes["train"]
    if per_class is None and batches * size > images:
        raise ValueError(
            f"criterion.batches={batches}: {batches} x {size} images are more than the {images} of the "
            "training split; lower it or trainer.batch_size"
        )


def scoring_images(
    run: Run, *, batches: int = 1, per_class: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Batches of distinct training images without augmentation, the same for every criterion at this step."""
    check_images(run, batches=batches, per_class=per_class)
    try:
        return run.data.scoring(run.rng("criterion"), batches=batches, per_class=per_class)
    except ValueError as error:  # the data know how many there are of a class, not whose option it is
        if str(error).startswith(("batches=", "per_class=")):
            raise ValueError(f"criterion.{error}") from None
        raise


def _sensitivity(run: Run, images: Sequence[tuple[Tensor, Tensor]], mode: Mode) -> dict[str, Tensor]:
    """|w * g| with g the gradient of the mean loss over all images."""
    weights, total = prunable_weights(run), sum(len(y) for _, y in images)
    mean = {n: torch.zeros_like(w) for n, w in weights.items()}
    with network(run, mode) as forward:
        for x, y in images:
            grads = gradients(F.cross_entropy(forward(weights, x), y), weights)
            for n, g in grads.items():
                mean[n].add_(g, alpha=len(y) / total)
    return {n: (w.detach() * mean[n]).abs() for n, w in weights.items()}


def gradient(run: Run) -> dict[str, Tensor]:
    """|w * g|, g the gradient of one minibatch: ShrinkBench's GlobalMagGrad and LayerMagGrad.

    Blalock et al. 2020 (arXiv 2003.03033; strategies/magnitude.py of JJGO/shrinkbench). The network is in
    train mode, as there, so that BatchNorm takes the batch's statistics. GlobalMagGrad is
    sparsity.allocation=global, LayerMagGrad uniform. Differs: the minibatch is not augmented; ShrinkBench
    prunes the biases of its layers too and leaves the classifier (here: sparsity.exclude=[head]). Biases and
    normalisation are not pruned.

    Returns:
      parameter name -> score of the parameter's shape, at least 0; 0 for pruned weights.
    """
    return _sensitivity(run, scoring_images(run), "train")


def snip(
    run: Run, *, batches: int = 1, per_class: int | None = None, bn_mode: Mode = "train"
) -> dict[str, Tensor]:
    """Connection sensitivity |dL/dc| at c = 1, which is |w * g|, c multiplying the weights.

    Lee, Ajanthan, Torr 2019 (arXiv 1810.02340, eq. 5, less its division by the sum over all weights, which
    changes no ranking). The paper takes one batch of 100 (MNIST) or 128 (CIFAR) images; several
    batches count as one: g is the gradient of their mean loss. Differs from the authors' code
    (namhoonlee/snip-public): there biases are scored and pruned too, the scored weights are variance-scaled
    whatever the model's own initialisation, BatchNorm is as in evaluation, and training starts from a second,
    independent initialisation (here: protocol.control=reinit). Here the scored weights are those that are
    trained; biases and normalisation are not pruned.

    Args:
      batches: batches of the training batch size, at least 1.
      per_class: so many images of every class instead of whole batches (10 in the code of arXiv 2006.05467).
      bn_mode: mode of the network, "train" (statistics of the batch) or "eval" (running ones).

    Returns:
      parameter name -> score of the parameter's shape, at least 0; 0 for pruned weights.

    Raises:
      ValueError: if an option is out of range or there are too few images.
    """
    return _sensitivity(run, scoring_images(run, batches=batches, per_class=per_class), bn_mode)


def taylor(
    run: Run, *, batches: int = 4, form: Literal["weight", "unit"] = "weight", bn_mode: Mode = "eval"
) -> dict[str, Tensor]:
    """First-order Taylor importance, squared and averaged over minibatches.

    Molchanov et al. 2019 (arXiv 1906.10771, sec. 3): (w * g)^2 for every weight, or for a group the square of
    the sum, (sum of w * g over the group)^2. `form` says which sum is squared:

    - "weight": no sum. With filters or neurons, channels get the sum of squares over their weights, as
      method 0 of the authors' code (NVlabs/Taylor_pruning, pruning_engine.py).
    - "unit": the paper's group form, the group being the weights that make a channel, over all layers of its
      unit. The score is spread evenly over them, so that their sum is that of the channel; meant for
      sparsity=filter. Output channels of layers that are in no unit (the classifier) are groups of their own.

    Differs: the gates behind BatchNorm are not offered (Taylor-FO-BN of the paper); scores are taken at the
    pruning event, not while training; BatchNorm takes its running statistics, as the network is used. With
    those of the batch, the sum over a filter in front of a BatchNorm is 0 whatever the filter does, as
    scaling the filter changes nothing. Biases and normalisation are not pruned.

    Args:
      batches: minibatches of the training batch size, at least 1.
      form: what is squared.
      bn_mode: mode of the network, "eval" (running statistics) or "train" (those of the batch).

    Returns:
      parameter name -> score of the parameter's shape, at least 0; 0 for pruned weights with "weight".

    Raises:
      ValueError: if an option is out of range, there are too few images, or "unit" meets a model without
        units or bn_mode=train in a model with BatchNorm.
    """
    check_taylor(run, batches=batches, form=form, bn_mode=bn_mode)
    weights, units = prunable_weights(run), []
    if form == "unit":
        units = [*_units(run), *_rows_in_no_unit(weights, _units(run))]
    total: dict[str, Tensor] = {}
    with network(run, bn_mode) as forward:
        for x, y in scoring_images(run, batches=batches):
            grads = gradients(F.cross_entropy(forward(weights, x), y), weights)
            products = {n: w.detach() * grads[n] for n, w in weights.items()}
            for n, t in (unit_scores(products, units) if units else products).items():
                total[n] = total.get(n, 0) + t.square() / batches
    return spread_over_weights(total, weights, units) if units else total


def check_taylor(run: Run, *, batches: int, form: str, bn_mode: str) -> None:
    """Refuse what `taylor` cannot do with this network, before training."""
    check_images(run, batches=batches)
    if form not in ("weight", "unit"):
        raise ValueError(f"criterion.form={form}: must be weight or unit")
    if form == "unit":
        _units(run)
        if bn_mode == "train" and any(isinstance(m, NORMS) for m in run.model.modules()):
            raise ValueError(
                "criterion.bn_mode=train: with criterion.form=unit the score of a filter in front of a "
                "BatchNorm would be 0, which undoes its scale; use criterion.bn_mode=eval"
            )


def _units(run: Run) -> list[Unit]:
    """The model's units, less those with an excluded weight."""
    try:
        return model_units(run.model, "neuron", run.masks)
    except ValueError:
        name = type(run.model).__name__
        raise ValueError(
            f"criterion.form=unit: {name} declares no channels that can be removed; use criterion.form=weight"
        ) from None


def _rows_in_no_unit(weights: Weights, units: Iterable[Unit]) -> list[Unit]:
    covered = {n for unit in units for n, _ in unit.made_by}
    return [Unit(f"{n} rows", len(w), ((n, 0),), ()) for n, w in weights.items() if n not in covered]


def check_snip(run: Run, *, batches: int, per_class: int | None, bn_mode: str) -> None:
    """Refuse options of `snip` before training."""
    check_images(run, batches=batches, per_class=per_class)


snip.check, taylor.check = check_snip, check_taylor
