"""Checkpoints: atomic on disk, bit exact in content, and clear about what is wrong with a file."""

import errno
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from prunebench.core import checkpoint
from prunebench.core.checkpoint import CheckpointError, write_atomically
from prunebench.core.masks import Masks
from prunebench.core.method import Companion, Method
from prunebench.core.run import Run, seeded

torch.set_num_threads(1)
NAMES = ["0.weight", "4.weight"]


def build(*, channels=3):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )


class Learned(Method):
    """A method with trainable thresholds, a counter and a history."""

    state = ("thresholds", "count", "history")

    def attach(self, run):
        self.thresholds = nn.ParameterList([torch.zeros(3)])
        self.count, self.history = 0, {}

    def loss(self, run, logits, targets):
        return super().loss(run, logits, targets) + (self.thresholds[0] - 1).square().sum()

    def param_groups(self):
        return [{"params": list(self.thresholds.parameters()), "lr_scale": 0.5, "weight_decay": 0.0}]


class Counting(Companion):
    state = ("seen",)

    def attach(self, run):
        super().attach(run)
        self.seen = [0, torch.zeros(2)]


def make_run(*, channels_last=False, channels=3):
    with seeded("init"):
        model = build(channels=channels)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    return Run(
        model=model,
        data=SimpleNamespace(steps_per_epoch=3),
        loss_fn=nn.CrossEntropyLoss(),
        prunable=NAMES,
        seed=0,
    )


def make_optimizer(run, method, factory=torch.optim.SGD, **options):
    options = options or {"lr": 0.1, "momentum": 0.9}
    return factory([{"params": list(run.model.parameters())}, *method.param_groups()], **options)


def train(run, method, steps=3):
    rng = torch.Generator().manual_seed(0)
    for _ in range(steps):
        run.optimizer.zero_grad()
        x = torch.randn(8, run.model[0].in_channels, 4, 4, generator=rng)
        method.loss(run, run.model(x), torch.randint(3, (8,), generator=rng)).backward()
        method.step(run)
        run.clock.tick()


def trained(*, method=None, sparsity=0.6, **keywords):
    """A run after some steps with masks, momentum and snapshots."""
    options = keywords.pop("optimizer", {})
    run, method = make_run(**keywords), method or Method()
    method.attach(run)
    rng = torch.Generator().manual_seed(1)
    params = dict(run.model.named_parameters())
    masks = {
        n: torch.empty_like(params[n], dtype=torch.bool).copy_(
            torch.rand(params[n].shape, generator=rng) > sparsity
        )
        for n in NAMES
    }
    run.set_masks(Masks(masks, {"1.bias": torch.tensor([True, False, True, True])}))
    run.optimizer = make_optimizer(run, method, **options)
    train(run, method)
    run.snapshot("rewind")
    run.clock.cycle, run.clock.norm_drop = 2, 0.3
    return run, method


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride()
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def round_trip(run, method, path, *, other=None, **keywords):
    """Save, and load into a fresh run and method."""
    options = keywords.pop("optimizer", {})
    checkpoint.save(path, run=run, method=method, extra={"rows": 7})
    fresh, other = make_run(**keywords), other or Method()
    other.attach(fresh)
    content = checkpoint.load(path)
    checkpoint.restore(
        content,
        path=path,
        run=fresh,
        method=other,
        make_optimizer=lambda r, m: make_optimizer(r, m, **options),
    )
    return fresh, other, content


# Content

ADAM = {"factory": torch.optim.Adam, "lr": 0.01, "amsgrad": True}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("optimizer", [{}, ADAM], ids=["sgd", "adam"])
def test_a_restored_run_is_the_saved_one_bit_for_bit(tmp_path, channels_last, optimizer):
    run, method = trained(channels_last=channels_last, optimizer=optimizer)
    fresh, _, content = round_trip(
        run, method, tmp_path / "c.pt", channels_last=channels_last, optimizer=optimizer
    )
    assert same(run.state_dict(), fresh.state_dict())
    assert content["extra"] == {"rows": 7}
    train(run, method), train(fresh, method)
    assert same(run.state_dict(), fresh.state_dict())


@pytest.mark.parametrize("sparsity", [-1.0, 2.0], ids=["nothing pruned", "everything pruned"])
def test_masks_without_pruned_or_without_kept_weights_are_restored(tmp_path, sparsity):
    run, method = trained(sparsity=sparsity)
    fresh, _, _ = round_trip(run, method, tmp_path / "c.pt")
    assert same(run.state_dict(), fresh.state_dict())


def test_pruned_entries_take_no_room(tmp_path):
    run, method = trained(sparsity=0.9)
    checkpoint.save(tmp_path / "c.pt", run=run, method=method, extra={})
    raw = torch.load(tmp_path / "c.pt", weights_only=True)
    assert raw["run"]["model"]["0.weight"]["kept"].numel() == run.masks.kept_per_layer["0.weight"]
    moments = raw["run"]["optimizer"]["state"][0]["momentum_buffer"]
    assert moments["kept"].numel() == run.masks.kept_per_layer["0.weight"]
    assert raw["run"]["masks"]["masks"]["0.weight"]["bits"].numel() == -(-4 * 3 * 9 // 8)


def test_what_is_not_0_under_the_mask_is_written_dense(tmp_path):
    """Methods whose masks act in the forward pass only: dense weights and unmasked momentum."""
    run, method = trained()
    with torch.no_grad():
        run.model[0].weight.fill_(1.5)
        run.optimizer.state[run.model[4].weight]["momentum_buffer"].add_(1.0)
    fresh, _, _ = round_trip(run, method, tmp_path / "c.pt")
    assert bool((fresh.model[0].weight == 1.5).all())
    assert same(run.state_dict(), fresh.state_dict())


def test_nan_and_infinity_under_the_mask_are_kept(tmp_path):
    run, method = trained()
    with torch.no_grad():
        run.model[0].weight[~run.masks["0.weight"]] = torch.inf
    fresh, _, _ = round_trip(run, method, tmp_path / "c.pt")
    assert same(run.state_dict(), fresh.state_dict())


def test_parameters_of_the_method_and_their_momentum_are_restored(tmp_path):
    run, method = trained(method=Counting(Learned()))
    method.base.count, method.base.history = 5, {"a": [1.0, torch.ones(2)], "b": "text"}
    method.seen = [3, torch.full((2,), 0.25)]
    fresh, other, _ = round_trip(run, method, tmp_path / "c.pt", other=Counting(Learned()))
    assert same(method.state_dict(), other.state_dict())
    assert bool((method.base.thresholds[0] != 0).all())
    assert same(run.optimizer.state_dict(), fresh.optimizer.state_dict())
    assert fresh.optimizer.param_groups[1]["params"][0] is other.base.thresholds[0]
    assert fresh.optimizer.param_groups[1]["lr_scale"] == 0.5
    train(run, method), train(fresh, other)
    assert same(run.state_dict(), fresh.state_dict())
    assert same(method.state_dict(), other.state_dict())


def test_between_phases_no_optimizer_is_built(tmp_path):
    run, method = trained()
    run.clock.next_phase()
    fresh, _, _ = round_trip(run, method, tmp_path / "c.pt")
    assert fresh.optimizer is None
    assert fresh.clock == run.clock


def test_saving_changes_nothing_in_the_run(tmp_path):
    run, method = trained()
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    optimizer = run.optimizer.state_dict()
    checkpoint.save(tmp_path / "c.pt", run=run, method=method, extra={})
    assert same(before, run.model.state_dict())
    assert same(optimizer, run.optimizer.state_dict())
    assert run.optimizer.state[run.model[0].weight]["momentum_buffer"].shape == (4, 3, 3, 3)


# The file


def test_a_written_file_replaces_the_old_one_and_leaves_no_other(tmp_path):
    path = tmp_path / "f"
    for text in (b"old", b"new"):
        write_atomically(path, lambda file, text=text: file.write(text))
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_writer_that_fails_leaves_the_old_file_and_no_temporary_one(tmp_path, error):
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half of the n")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_the_content_is_on_the_disk_before_the_name_points_to_it(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(checkpoint.os, "fsync", lambda handle: events.append("sync"))
    replace = checkpoint.os.replace
    monkeypatch.setattr(checkpoint.os, "replace", lambda *names: (events.append("replace"), replace(*names)))
    write_atomically(tmp_path / "f", lambda file: file.write(b"x"))
    assert events[:2] == ["sync", "replace"]


def test_a_disk_that_is_full_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    run, method = trained()
    path = tmp_path / "c.pt"
    checkpoint.save(path, run=run, method=method, extra={})
    good = path.read_bytes()

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(path, run=run, method=method, extra={})
    assert path.read_bytes() == good
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_checkpoint_is_named(tmp_path, share):
    run, method = trained()
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, run=run, method=method, extra={})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=f"checkpoint.pt.*delete {tmp_path}"):
        checkpoint.load(path)


def test_a_file_that_is_something_else_is_named(tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"not a checkpoint, but long enough to be read as one" * 10)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
        checkpoint.load(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
        checkpoint.load(path)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("version", [0, 99, None])
def test_another_version_of_the_format_is_named(tmp_path, version):
    path = tmp_path / "checkpoint.pt"
    torch.save({"version": version, "run": {}}, path)
    with pytest.raises(CheckpointError, match=f"checkpoint.pt.*format {version}"):
        checkpoint.load(path)


@pytest.mark.parametrize("part", ["names", "run", "masks"])
def test_a_checkpoint_without_one_of_its_parts_is_named(tmp_path, part):
    run, method = trained()
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, run=run, method=method, extra={})
    content = torch.load(path, weights_only=True)
    del (content["run"] if part == "masks" else content)[part]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: damaged"):
        checkpoint.load(path)


def test_a_checkpoint_of_a_network_of_another_size_is_named(tmp_path):
    run, method = trained()
    with pytest.raises(CheckpointError, match=r"c\.pt: does not fit"):
        round_trip(run, method, tmp_path / "c.pt", channels=2)


def test_a_checkpoint_of_another_method_is_named(tmp_path):
    run, method = trained()
    with pytest.raises(CheckpointError, match=r"c\.pt: does not fit"):
        round_trip(run, method, tmp_path / "c.pt", other=Learned())


def test_a_checkpoint_executes_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    path = tmp_path / "checkpoint.pt"
    torch.save({"version": 1, "run": Evil()}, path)
    with pytest.raises(CheckpointError):
        checkpoint.load(path)
    assert not (tmp_path / "touched").exists()
