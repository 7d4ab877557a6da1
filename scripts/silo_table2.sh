#!/usr/bin/env bash
# SILO against other learning-rate schedules over pruning cycles, ResNet-20: the form of table 2 of
# arXiv 2212.06144 (methods x remaining weights). Every schedule has the rate that was best for the dense
# network in validation (small scale: seed 10, of 0.01, 0.03, 0.1, 0.3), LR-warm-up also SILO's highest one.
set -euo pipefail
source "$(dirname "$0")/scale.sh"

case $scale in
  smoke)
    data=(dataset=digits trainer.threads=1)
    setting=(model.depth=8 protocol.dense=2ep sparsity.rounds=4 sparsity.rate=0.3 seed=0,1)
    columns=100,49,34.3,24
    ;;
  small)
    data=(${DATA:-dataset=cifar10} dataset.size=16 dataset.subset=5000 dataset.pad=2)
    setting=(model.option=A protocol.dense=10ep seed=0,1,2)
    columns=100,32.8,26.2,13.4,5.5
    ;;
  paper)
    data=(${DATA:-dataset=cifar10})
    setting=(seed=1,2,3,4,5)
    columns=100,32.8,26.2,13.4,5.5
    ;;
esac

# schedule and learning rate
for choice in $choices; do
  run experiment=silo_resnet20 "schedule=${choice%:*}" "optimizer.lr=${choice#*:}" "${setting[@]}"
done
run experiment=silo_resnet20 schedule=warmup_step protocol.weights=keep retrain=lrw \
  "protocol.retrain=$length" "optimizer.lr=$rewinding" "${setting[@]}"
report --remaining "$columns" --lr
