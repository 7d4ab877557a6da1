#!/usr/bin/env bash
# ShrinkBench's five baselines over compression of the whole model: the form of figures 6 to 8 of
# arXiv 2003.03033 (accuracy over compression, and over theoretical speed-up in speedup/; top-5 in top5/).
# Magnitude and gradient magnitude, each globally and layer by layer, and random layer by layer. Compression 1
# prunes nothing, so that it is the same for all five and is trained once.
# The paper's other networks: model=resnet20, model=resnet110, and for its CIFAR-VGG, less the dropout between
# convolutions, model=vgg16_bn model.head_layers=2 model.head_norm=true model.dropout=0.5.
set -euo pipefail
source "$(dirname "$0")/scale.sh"

case $scale in
  smoke)
    data=(dataset=digits trainer.threads=1)
    setting=(model=resnet20 model.depth=8 protocol.dense=2ep protocol.retrain=1ep seed=0,1)
    points=4,16
    ;;
  small)
    data=(${DATA:-dataset=cifar10} dataset.size=16 dataset.subset=5000 dataset.test_subset=5000 dataset.pad=2)
    setting=(model=resnet20 protocol.dense=15ep protocol.retrain=3ep seed=0,1,2)
    points=2,4,8,16,32
    ;;
  paper)
    data=(${DATA:-dataset=cifar10})
    setting=(seed=0,1,2)
    points=2,4,8,16,32
    ;;
esac
common=(experiment=shrinkbench "${setting[@]}")

run "${common[@]}" sparsity.compression=1
run "${common[@]}" "sparsity.compression=$points" criterion=magnitude,gradient sparsity.allocation=global,uniform
run "${common[@]}" "sparsity.compression=$points" criterion=random sparsity.allocation=uniform
report --remaining all
report --metric top5 --out "$out/top5"
report --over speedup --out "$out/speedup"
