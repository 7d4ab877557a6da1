#!/usr/bin/env bash
# AP around four base criteria, ResNet-20: the form of the tables of arXiv 2212.06145 (methods x remaining
# weights, with differences to the base method on the same seeds), dead neurons over the cycles, and the
# control that gives the base method as many epochs as AP's mode pro.
set -euo pipefail
source "$(dirname "$0")/scale.sh"

criteria=magnitude,gradient,lamp,synflow
case $scale in
  smoke)
    data=(dataset=digits trainer.threads=1)
    setting=(model.depth=8 protocol.dense=2ep sparsity.rounds=3 sparsity.rate=0.4 seed=0,1)
    criteria=magnitude,synflow columns=100,60,36,21.6
    ;;
  small)
    data=(${DATA:-dataset=cifar10} dataset.size=16 dataset.subset=6250 dataset.validation=0.2 dataset.pad=2)
    setting=(model.option=A protocol.dense=10ep seed=0,1,2)
    columns=100,32.8,26.2,13.4,5.5
    ;;
  paper)
    data=(${DATA:-dataset=cifar10})
    setting=(seed=0,1,2)
    columns=100,32.8,26.2,13.4,5.5
    ;;
esac
common=(experiment=ap_resnet20 "metrics=[dead_neurons]" "criterion=$criteria" "${setting[@]}")

run "${common[@]}" companion=[]
run "${common[@]}" companion.ap.mode=lite,pro,matched
for criterion in ${criteria//,/ }; do
  report --remaining "$columns" --where "criterion=$criterion" --baseline lth --out "$out/$criterion"
done
report --remaining "$columns"
