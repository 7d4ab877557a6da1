#!/usr/bin/env bash
# Sparse training against pruning, by sparsity, with what training cost (the form of the main table of RigL,
# arXiv 1911.11134): RigL, SET, SNFS, a static random mask, a small dense network, gradual and iterative
# pruning, at equal epochs of training; RigL and the static mask also five times as long. Iterative pruning
# trains the dense network first and retrains in rounds, so its cost stands beside its accuracy.
# The first table has the cost of training in multiply-adds over the whole run ("train"; FLOPs are twice that).
set -euo pipefail
source "$(dirname "$0")/scale.sh"

masked=() ramp=()
case $scale in
  smoke)
    data=(dataset=digits trainer.threads=1)
    setting=(model=resnet20 model.depth=8 recipe.dense=4ep recipe.retrain=1ep seed=0,1)
    sparsities=0.8,0.95 interval=4 longer=2.0 columns=100,20,5
    ;;
  small)
    data=(${DATA:-dataset=cifar10} dataset.size=16 dataset.subset=6250 dataset.validation=0.2 dataset.pad=2)
    setting=(model=resnet20 recipe.dense=20ep recipe.retrain=2ep trainer.batch_size=64 schedule=step seed=0,1,2)
    sparsities=0.8,0.9,0.95,0.98 interval=50 longer=5.0 columns=100,20,10,5,2
    ;;
  paper)
    data=(${DATA:-dataset=cifar10})
    setting=(model=wrn model.depth=22 model.width=2 recipe.dense=250ep recipe.retrain=25ep
      optimizer.nesterov=true schedule=step "schedule.milestones=[0.307,0.614,0.922]" schedule.gamma=0.2
      seed=0,1,2)
    sparsities=0.8,0.9,0.95,0.98 interval=100 longer=5.0 columns=100,20,10,5,2
    # as in the authors' code: the first convolution stays dense, GMP prunes from step 20,000 to 75,000 of 97,656
    masked=("sparsity.exclude=[conv1]") ramp=(method.begin=0.205 method.until=0.768 method.interval=1000)
    ;;
esac
[ ${#ramp[@]} -gt 0 ] || ramp=("method.interval=$interval")
sparse=("${setting[@]}" "${masked[@]}" "sparsity.target=$sparsities")

run method=dense "${setting[@]}"
run method=static "${sparse[@]}"
run method=small_dense "${sparse[@]}"
for method in set rigl snfs_rigl; do
  run "method=$method" "method.interval=$interval" "${sparse[@]}"
done
run method=gmp "${ramp[@]}" "${sparse[@]}"
run method=rigl "method.interval=$interval" "protocol.multiplier=$longer" "${sparse[@]}"
run method=static "protocol.multiplier=$longer" "${sparse[@]}"
run method=snfs "${sparse[@]}"
run method=imp "${sparse[@]}"
report
report --remaining "$columns"
