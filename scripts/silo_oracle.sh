#!/usr/bin/env bash
# The Oracle's interval of near-best peaks against SILO's, cycle by cycle (arXiv 2212.06144), ResNet-20.
# oracle.png in the results' folder shows both.
set -euo pipefail
source "$(dirname "$0")/scale.sh"

case $scale in
  smoke)
    data=(dataset=digits trainer.threads=1)
    setting=(model.depth=8 protocol.dense=2ep sparsity.rounds=3 sparsity.rate=0.4 seed=0)
    lr=0.05 grid=[0.02,0.05,0.1,0.2] delta=0.1 tolerance=0.02
    ;;
  small)
    data=(${DATA:-dataset=cifar10} dataset.size=16 dataset.subset=6250 dataset.validation=0.2 dataset.pad=2)
    setting=(model.option=A protocol.dense=10ep seed=10)
    lr=0.1 grid=[0.02,0.05,0.1,0.15,0.2,0.3,0.4] delta=0.1 tolerance=0.02
    ;;
  paper)
    data=(${DATA:-dataset=cifar10})
    setting=(seed=1)
    lr=0.03 grid=[0.01,0.02,0.03,0.04,0.05,0.06,0.07,0.08,0.09,0.1,0.12,0.15] delta=0.04 tolerance=0.005
    ;;
esac
common=(experiment=silo_resnet20 "${setting[@]}")

run "${common[@]}" protocol=oracle schedule=warmup_step "protocol.grid=$grid" "protocol.tolerance=$tolerance"
run "${common[@]}" schedule=silo "optimizer.lr=$lr" "schedule.delta=$delta"
report --remaining all
