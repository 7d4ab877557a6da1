#!/usr/bin/env bash
# DropNet's metrics on model C: minimum, maximum, random and APoZ, layer by layer (layer/) and over all layers
# (global/), at twelve levels, the form of figure 9 of arXiv 2207.06646; and new initial weights in the place
# of the old ones at one level. The columns are shares of filters. Runs that never begin to learn are in the
# means, as in the paper; report.csv has every run.
set -euo pipefail
source "$(dirname "$0")/scale.sh"

case $scale in
  smoke)
    data=(dataset=digits "dataset.mean=[0.0]" "dataset.std=[1.0]" trainer.threads=1)
    setting=(protocol.dense=4ep sparsity.rounds=2 sparsity.rate=0.5 "model.widths={fc1: 32}" seed=0)
    level=2
    ;;
  small)
    data=(${DATA:-dataset=cifar10} dataset.size=16 dataset.subset=6250 dataset.validation=0.2)
    setting=(protocol.dense=15ep trainer.threads=1 seed=0,1,2)
    setting+=("model.widths={conv1: 16, conv2: 16, conv3: 32, conv4: 32, fc1: 64}") # a quarter as wide
    level=6
    ;;
  paper)
    data=(${DATA:-dataset=cifar10})
    setting=(seed=0,1,2,3,4,5,6,7,8,9,10,11,12,13,14)
    level=6
    ;;
esac
common=(experiment=dropnet_c "${setting[@]}" "trainer.store=$out/.shared")

for allocation in uniform global; do
  folder=$([ $allocation = uniform ] && echo layer || echo global)
  metrics=("${common[@]}" "sparsity.allocation=$allocation")
  out="$out/$folder" run "${metrics[@]}" criterion.drop=minimum,maximum
  out="$out/$folder" run "${metrics[@]}" criterion=random_channels,apoz
done
out="$out/layer" run "${common[@]}" protocol.control=reinit "sparsity.rounds=$level"
prune-report "$out/layer" --remaining all --channels
prune-report "$out/global" --remaining all --channels
