#!/usr/bin/env bash
# Lottery tickets with ResNet-20: rewinding to the start and to an early epoch, learning-rate rewinding,
# fine-tuning, and the controls (arXiv 1803.03635, 1912.05671, 2003.02389; the paper scale is the last one's,
# whose published medians stand beside ours where the settings agree).
set -euo pipefail
source "$(dirname "$0")/scale.sh"

case $scale in
  smoke)
    data=(dataset=digits trainer.threads=1)
    setting=(model.depth=8 protocol.dense=3ep sparsity.rounds=3 sparsity.rate=0.4 seed=0,1)
    length=3ep early=1ep columns=100,60,36,21.6
    ;;
  small)
    data=(${DATA:-dataset=cifar10} dataset.size=16 dataset.subset=6250 dataset.validation=0.2 dataset.pad=2)
    setting=(trainer.batch_size=64 protocol.dense=10ep seed=0,1,2)
    length=10ep early=1ep columns=100,51.2,26.2,13.4,10.7
    ;;
  paper)
    data=(${DATA:-dataset=cifar10})
    setting=(seed=0,1,2)
    length=182ep early=12ep columns=100,51.2,26.2,13.4,10.7
    ;;
esac
common=(experiment=renda_resnet20 "${setting[@]}")

run "${common[@]}" protocol.weights=init retrain=same protocol.retrain=null
run "${common[@]}" protocol.weights=rewind "protocol.rewind_to=$early" protocol.retrain=null
run "${common[@]}" protocol.weights=keep retrain=lrw,ft "protocol.retrain=$length"
run "${common[@]}" protocol.weights=init retrain=same protocol.retrain=null \
  protocol.control=reinit,random_layerwise
report --remaining "$columns"
