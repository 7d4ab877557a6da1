#!/usr/bin/env bash
# SILO against other learning-rate schedules over pruning cycles, ResNet-20: the form of table 2 of
# arXiv 2212.06144 (methods x remaining weights).
# Learning rates of the small scale: each schedule has the one that was best for the dense network in
# validation (0.02, 0.05, 0.1; seeds 10 and 11). SILO and S-Cyc start there and grow by 0.1, which the Oracle
# of seed 10 suggests (silo_oracle.sh); LR-warm-up also runs at SILO's highest rate.
set -euo pipefail
source "$(dirname "$0")/scale.sh"

# schedule:learning rate:growth of the peak
case $scale in
  smoke)
    data=(dataset=digits trainer.threads=1)
    setting=(model.depth=8 protocol.dense=2ep sparsity.rounds=4 sparsity.rate=0.3 seed=0,1)
    choices="constant:0.02 step:0.05 cosine:0.05 cyclical:0.1 one_cycle:0.1 warmup_step:0.1"
    choices="$choices s_cyc:0.1:0.1 silo:0.1:0.1"
    length=2ep rewinding=0.1 columns=100,49,34.3,24
    ;;
  small)
    data=(${DATA:-dataset=cifar10} dataset.size=16 dataset.subset=6250 dataset.validation=0.2 dataset.pad=2)
    setting=(model.option=A protocol.dense=10ep sparsity.rounds=13 trainer.share=all seed=0,1,2)
    choices="constant:0.02 step:0.05 cosine:0.05 cyclical:0.1 one_cycle:0.1 warmup_step:0.1 warmup_step:0.2"
    choices="$choices s_cyc:0.1:0.1 silo:0.1:0.1"
    length=10ep rewinding=0.1 columns=100,32.8,26.2,13.4,5.5
    ;;
  paper)
    data=(${DATA:-dataset=cifar10})
    setting=(seed=1,2,3,4,5)
    choices="constant:0.03 step:0.03 cosine:0.03 cyclical:0.03 one_cycle:0.03 warmup_step:0.03"
    choices="$choices warmup_step:0.07 s_cyc:0.03:0.04 silo_resnet20:0.03"
    length=50ep rewinding=0.03 columns=100,32.8,26.2,13.4,5.5
    ;;
esac

for choice in $choices; do
  IFS=: read -r schedule lr growth <<<"$choice"
  run experiment=silo_resnet20 "schedule=$schedule" "optimizer.lr=$lr" ${growth:+"schedule.delta=$growth"} \
    "${setting[@]}"
done
run experiment=silo_resnet20 schedule=warmup_step protocol.weights=keep retrain=lrw \
  "protocol.retrain=$length" "optimizer.lr=$rewinding" "${setting[@]}"
report --remaining "$columns" --lr
