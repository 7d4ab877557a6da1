import re

import pytest
import torch

MISTAKES = {  # typed -> what the one line must say, in this order
    "model=lenet30": ("model=lenet30", "did you mean 'lenet300'"),
    "experiment=nowhere": ("experiment=nowhere", "no such experiment"),
    "companion=nowhere": ("companion=nowhere", "no such companion"),
    "companion=[nowhere]": ("companion=nowhere", "no such companion"),
    "recipe=synthetic_lenet30": (
        "recipe=synthetic_lenet30",
        "no such recipe",
        "did you mean 'mnist_lenet300'",
    ),
    "hydra/launcher=loky": ("hydra/launcher=loky", "joblib"),
    "model=null": ("model=null", "lenet300"),
    "~model": ("model", "write model=OPTION"),
    "~seed": ("~seed", "leave it in"),
    "sed=1": ("sed", "did you mean 'seed'"),
    "quiet=true": ("quiet", "did you mean 'trainer.quiet'"),
    "trainer.bach_size=3": ("trainer.bach_size", "did you mean 'trainer.batch_size'"),
    "optimizer=adam optimizer.beta=1": ("optimizer.beta", "did you mean 'optimizer.betas'"),
    "model.widths.fc1=3": ("model.widths.fc1", "model.widths has none"),
    "+model.depth=3": ("model.depth", "it has widths"),
    "+speed=1": ("+speed=1", "nothing in this run reads 'speed'"),
    "sparsity.layer_rates={fc1:0.5}": ("sparsity.layer_rates", "sparsity.allocation=rates"),
    "schedule=silo sparsity.rounds=1": ("schedule.delay=1:", "1 pruning event;", "more rounds"),
    "schedule=silo schedule.delta=-0.1": ("schedule.delta=-0.1: must be a finite number of at least 0",),
    "schedule=silo protocol.peaks=[0.1,0.1,0.1]": ("schedule.eps=0.1: SILO sets the peak", "warmup_step"),
    "schedule=cyclical schedule.period=0": ("schedule.period=0", "a share of the phase in (0, 1]"),
    "protocol.peaks=[0.1,0.2]": ("protocol.peaks=[0.1, 0.2]: must be 3 learning rates", "there are 2"),
    "protocol.peaks=[0.1,-0.2,0.1]": ("protocol.peaks=[0.1, -0.2, 0.1]:", "above 0"),
    "protocol=oracle protocol.grid=[0.1,-0.2]": ("protocol.grid=[0.1, -0.2]:", "above 0", "-0.2"),
    "protocol=oracle protocol.grid=[0.1]": ("protocol.grid=[0.1]:", "at least two"),
    "protocol=oracle protocol.tolerance=2": ("protocol.tolerance=2", "[0, 1)"),
    "protocol=oracle dataset.validation=0": ("protocol=oracle", "dataset.validation=0.1"),
    "protocol=oracle trainer.share=none": ("trainer.share=none", "protocol=oracle"),
    "protocol=oracle schedule=silo": ("schedule.eps=0.1: SILO sets the peak", "protocol=oracle"),
    "companion=[ap] companion.ap.share=2": ("companion.ap.share=2", "[0, 1]"),
    "companion=[ap] companion.ap.start_cycle=3": ("companion.ap.start_cycle=3", "at most 2"),
    "companion=[ap] companion.ap.mode=solo companion.ap.share=0.5": ("companion.ap.share=0.5", "no effect"),
    "companion=[ap] sparsity=filter sparsity.granularity=neuron": ("companion=[ap]", "granularity=neuron"),
    "metrics=[mask_overlap] metrics.mask_overlap.every=end": ("metrics.mask_overlap.every=end", "needs two"),
    "metrics=[learning_distance] metrics.learning_distance.every=5": (
        "metrics.learning_distance.every=5: must be",
    ),
    "protocol.peaks=[0.1,0.2,0.1] optimizer.lr=0.3": ("optimizer.lr=0.3: has no effect", "protocol.peaks"),
    "protocol=oracle optimizer.lr=0.3": ("optimizer.lr=0.3: has no effect", "protocol.grid"),
    "protocol=oracle dataset.validation=0.0005": ("protocol=oracle", "dataset.validation=0.1"),
    "protocol=oracle schedule=warmup_step metrics=[mask_overlap] metrics.mask_overlap.every=end": (
        "metrics.mask_overlap.every=end",
    ),
    "companion=[ap] companion.ap.mode=matched companion.ap.scope=layer": (
        "companion.ap.mode=matched",
        "scope",
    ),
    "companion=[ap] sparsity.allocation={fc1.weight:0.5,fc2.weight:0.5,fc3.weight:0.5}": (
        "sparsity.allocation",
        "a sparsity of 0.5",
    ),
    "sparsity.allocation={fc1.weight:0.5,fc2.weight:0.5,fc3.weight:0.5}": ("a sparsity of 0.5", "one_shot"),
    "sparsity.granularity=neuron sparsity.allocation=erk": ("sparsity.allocation=erk", "with neurons"),
    "sparsity.granularity=neuron sparsity.round_to=512": ("sparsity.round_to=512", "widest layer has 300"),
    "sparsity.granularity=neuron sparsity.exclude=[fc1,fc2]": ("sparsity.exclude", "no neuron to prune"),
    "sparsity.allocation={*:0.5,fc1.weight:-0.5}": ("sparsity.allocation: -0.5 for layer fc1", "[0, 1]"),
    "method.allocation=uniform": ("method.allocation=uniform", "set that"),
    "protocol.optimizer_state=keep protocol.weights=init": ("protocol.optimizer_state=keep", "weights=keep"),
    "sparsity.granularity=kernel sparsity.allocation=erk": ("sparsity.allocation=erk", "with kernels"),
    "criterion=weight_change protocol.keep=best": ("protocol.keep=best", "weight_change"),
    "criterion=none": ("criterion=none", "criterion=magnitude"),
    "protocol.rewind_to=2it": ("protocol.rewind_to=2it", "protocol.weights=rewind"),
    "seed": ("seed", "write KEY=VALUE"),
    "sparsity.exclude=[fc1": ("sparsity.exclude=[fc1", "write KEY=VALUE"),
    "seed=1,2": ("seed=1,2", "add -m"),
    "+seed=1": ("+seed", "write seed=VALUE"),
    "--sweep": ("--sweep", "prune-run --help"),
    "seed=one": ("seed=one", "a whole number"),
    "seed=null": ("seed=null", "not null"),
    "optimizer.lr=fast": ("optimizer.lr=fast", "a number"),
    "optimizer.lr=nan": ("optimizer.lr=nan", "a number"),
    "optimizer.lr=-1": ("optimizer", "-1"),
    "optimizer=adam optimizer.betas=[0.9]": ("optimizer.betas=[0.9]", "[a number, a number]"),
    "trainer.quiet=maybe": ("trainer.quiet=maybe", "true or false"),
    "sparsity.exclude=fc1": ("sparsity.exclude=fc1", "a list"),
    "sparsity.exclude=[conv9]": ("sparsity.exclude=conv9", "matches no", "fc1.weight"),
    "protocol.dense=10": ("protocol.dense=10", "10ep", "10it"),
    "protocol.dense=10days": ("protocol.dense=10days", "2000it"),
    "protocol.dense=0it": ("protocol.dense=0it", "longer than 0 steps"),
    "trainer.eval_every=5": ("trainer.eval_every=5", "2000it"),
    "trainer.checkpoint_every=0it": ("trainer.checkpoint_every=0it", "at least one step"),
    "trainer.batch_size=0": ("trainer.batch_size=0", "1 or more"),
    "trainer.threads=0": ("trainer.threads=0", "1 or more"),
    "trainer.label_smoothing=2": ("trainer.label_smoothing=2", "[0, 1]"),
    "trainer.device=gpu": ("trainer.device=gpu", "auto, cpu, cuda"),
    "sparsity.target=1.0": ("sparsity.target=1.0", "[0, 1)"),
    "sparsity.target=nan": ("sparsity.target=nan",),
    "sparsity.target=0.99999": ("round 2 with sparsity 0.99999 keeps 1 of 50200", "lower the sparsity"),
    "sparsity.target=0.9999999": ("sparsity.min_kept=1:", "sparsity 0.9999999 keeps 0"),
    "sparsity.min_kept=10000": ("sparsity.min_kept=10000:", "needs 21000 entries", "lower the sparsity"),
    "sparsity.allocation=uniform sparsity.min_kept=300": ("sparsity.min_kept=300:", "fc3.weight", "lower"),
    "model.widths={fc1:0}": ("prune-run: model.widths={'fc1': 0}: must be at least 1",),
    "schedule=cosine schedule.warmup=2.0": ("prune-run: schedule.warmup=2.0: must be a share",),
    "retrain=llr retrain.warmup=2": ("prune-run: retrain.warmup=2", "must be a share"),
    "sparsity.rate=0.2": ("sparsity.rate=0.2", "set the other to null"),
    "sparsity.compression=0.5": ("sparsity.compression=0.5: must be 1",),
    "sparsity.compression=many": ("sparsity.compression=many", "a number"),
    "sparsity.compression=1000": ("sparsity.compression=1000: must be at most ", "410 of whose"),
    "sparsity.compression=4 sparsity.target=0.5": (
        "sparsity.target=0.5 sparsity.compression=4: exactly one",
        "set the other to null",
    ),
    "sparsity.compression=4 sparsity.rate=0.2": ("sparsity.rate=0.2 sparsity.compression=4: exactly one",),
    "sparsity.compression=4 sparsity.granularity=neuron": ("sparsity.compression=4", "give sparsity.target"),
    "protocol=oracle sparsity.compression=4 sparsity.rate=0.2": (
        "sparsity.rate=0.2 sparsity.compression=4: exactly one",
    ),
    "protocol=oracle sparsity.compression=1000": ("sparsity.compression=1000: must be at most",),
    "sparsity.granularity=filter": ("sparsity.granularity=filter", "weight or neuron"),
    "protocol.keep=best dataset.validation=0": ("protocol.keep=best", "dataset.validation=0.1"),
    "model=lenet5": ("model=lenet5", "28x28", "8x8", "dataset.size=28"),
    "dataset.channels=0": ("dataset.channels=0", "at least 1"),
    "dataset.subset=5": ("dataset.subset=5", "10"),
    "dataset=mnist": ("dataset.root=data", "dataset.download=true", "put the files there", "dataset=digits"),
    "dataset=image_folder dataset.root=nowhere": ("nowhere", "dataset.root", "dataset=digits"),
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(typed, prune, tmp_path):
    outcome = prune(*typed.split())
    assert outcome.code == 2
    assert re.search(".*".join(map(re.escape, MISTAKES[typed])), outcome.line), outcome.line
    assert outcome.out == ""
    assert list(tmp_path.iterdir()) == []


def test_every_problem_of_a_configuration_has_its_line(prune):
    outcome = prune("optimizer.lr=fast", "protocol.dense=3")
    assert outcome.code == 2
    first, *others = outcome.err.splitlines()
    assert first == "prune-run: the configuration has 2 problems"
    assert [line.split("=")[0].strip() for line in others] == ["optimizer.lr", "protocol.dense"]


def test_an_override_that_the_method_does_not_read_is_refused(prune, tmp_path):
    plain = ["model=lenet300", "dataset=synthetic", "method=one_shot", "sparsity.rounds=5"]
    outcome = prune(*plain, tiny=False)
    assert outcome.code == 2
    assert "sparsity.rounds=5: nothing in this run reads 'sparsity.rounds'" in outcome.line
    assert list(tmp_path.iterdir()) == []


def test_a_compression_without_a_pruning_event_is_refused(prune):
    outcome = prune("method=dense", "dataset=synthetic", "sparsity.compression=2", tiny=False)
    assert outcome.code == 2
    assert "sparsity.compression=2: nothing in this run reads 'sparsity.compression'" in outcome.line


def test_an_option_of_another_protocol_is_answered_with_those_of_this_one(prune):
    outcome = prune("method=dense", "dataset=synthetic", "protocol.retrain=3it", tiny=False)
    assert outcome.code == 2
    assert "protocol.retrain: no such option; there are protocol.dense" in outcome.line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused(prune, tmp_path):
    outcome = prune("trainer.device=cuda")
    assert outcome.code == 2
    assert re.search(r"trainer\.device=cuda: .*trainer\.device=cpu", outcome.line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["out", "trainer.store"])
@pytest.mark.parametrize("sweep", [(), ("-m",)], ids=["alone", "sweep"])
def test_a_directory_that_cannot_be_written_is_named(key, sweep, prune, tmp_path):
    (tmp_path / "file").write_text("")  # a folder under a file: nobody can make it, not even root
    outcome = prune(*sweep, f"{key}=file/below")
    assert outcome.code == 2
    assert "file/below" in outcome.err and f"choose another {key}=..." in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(tmp_path.glob("runs/*/checkpoint.pt"))


def test_the_entry_point_exits_with_2_for_a_wrong_configuration(prune_process, tmp_path):
    outcome = prune_process("sparsity.target=1.5")
    assert outcome.code == 2
    assert outcome.line == "prune-run: sparsity.target=1.5: must lie in [0, 1)"
    assert list(tmp_path.iterdir()) == []
