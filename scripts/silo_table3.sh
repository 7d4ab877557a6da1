#!/usr/bin/env bash
# SILO against other learning-rate schedules over pruning cycles, VGG-19: the form of table 3 of
# arXiv 2212.06144 (methods x remaining weights).
set -euo pipefail
source "$(dirname "$0")/scale.sh"

case $scale in
  smoke)
    data=(dataset=digits dataset.size=32 dataset.subset=200 dataset.test_subset=100 trainer.threads=1)
    setting=(model=vgg11_bn protocol.dense=1ep sparsity.rounds=3 sparsity.rate=0.4 seed=0)
    choices="constant:0.04 warmup_step:0.04 silo_vgg19:0.04"
    columns=100,60,36,21.6
    ;;
  small)
    data=(${DATA:-dataset=cifar10} dataset.size=32 dataset.subset=1000 dataset.test_subset=2000)
    setting=(model=vgg11_bn protocol.dense=6ep seed=0,1,2)
    choices="step:0.04 cosine:0.04 warmup_step:0.04 warmup_step:0.1 s_cyc:0.04 silo_vgg19:0.04"
    columns=100,32.8,26.2,13.4,5.5
    ;;
  paper)
    data=(${DATA:-dataset=cifar10})
    setting=(seed=1,2,3,4,5)
    choices="constant:0.04 step:0.04 cosine:0.04 cyclical:0.04 one_cycle:0.04 warmup_step:0.04"
    choices="$choices warmup_step:0.1 s_cyc:0.04 silo_vgg19:0.04"
    columns=100,32.8,26.2,13.4,5.5
    ;;
esac

# schedule and learning rate
for choice in $choices; do
  run experiment=silo_vgg19 "schedule=${choice%:*}" "optimizer.lr=${choice#*:}" "${setting[@]}"
done
report --remaining "$columns" --lr
