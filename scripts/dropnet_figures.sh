#!/usr/bin/env bash
# DropNet's metrics on model C: minimum, maximum, random and APoZ, layer by layer (layer/) and over all layers
# (global/), at twelve levels, the form of figure 9 of arXiv 2207.06646; and beside the rounds of the layer-wise
# minimum new initial weights under its masks (section 6 of the paper). The columns are shares of filters. Runs
# that never begin to learn are in the means, as in the paper; report.csv has every run.
set -euo pipefail
source "$(dirname "$0")/scale.sh"

case $scale in
  smoke)
    data=(dataset=digits "dataset.mean=[0.0]" "dataset.std=[1.0]" trainer.threads=1)
    setting=(protocol.dense=4ep sparsity.rounds=2 sparsity.rate=0.5 "model.widths={fc1: 32}" seed=0)
    ;;
  small)
    data=(${DATA:-dataset=cifar10} dataset.size=16 dataset.subset=6250 dataset.validation=0.2)
    setting=(protocol.dense=15ep trainer.threads=1 seed=0,1,2)
    setting+=("model.widths={conv1: 16, conv2: 16, conv3: 32, conv4: 32, fc1: 64}") # a quarter as wide
    ;;
  paper)
    data=(${DATA:-dataset=cifar10})
    setting=(seed=0,1,2,3,4,5,6,7,8,9,10,11,12,13,14)
    ;;
esac
common=(experiment=dropnet_c "${setting[@]}" "trainer.store=$out/.shared")

layer=("${common[@]}" sparsity.allocation=uniform) global=("${common[@]}" sparsity.allocation=global)
out="$out/layer" run "${layer[@]}" protocol.control=reinit protocol.control_at=every
out="$out/layer" run "${layer[@]}" criterion.drop=maximum
out="$out/layer" run "${layer[@]}" criterion=random_channels,apoz
out="$out/global" run "${global[@]}" criterion.drop=minimum,maximum
out="$out/global" run "${global[@]}" criterion=random_channels,apoz
prune-report "$out/layer" --remaining all --channels
prune-report "$out/global" --remaining all --channels
