#!/usr/bin/env bash
# Lottery tickets with LeNet-300-100, layer by layer, against reinitialised tickets and random masks: the
# form of figures 3 and 4 of arXiv 1803.03635. A control replaces the last round, so that each share of
# remaining weights is a run of its own; all of them share the rounds of the run without control.
set -euo pipefail
source "$(dirname "$0")/scale.sh"

case $scale in
  smoke)
    data=(dataset=digits trainer.threads=1)
    setting=(protocol.dense=60it seed=0,1)
    depths=2,4 columns=100,64.1,41.1
    ;;
  small)
    data=(${DATA:-dataset=fashion_mnist})
    setting=(protocol.dense=5000it seed=0,1,2)
    depths=3,7,11,15 columns=100,51.3,21.1,8.7,3.6
    ;;
  paper)
    data=(${DATA:-dataset=mnist})
    setting=(seed=0,1,2,3,4)
    depths=3,7,9,11,15 columns=100,51.3,21.1,13.5,8.7,3.6
    ;;
esac
common=(experiment=lth_lenet300 trainer.share=all "${setting[@]}")

run "${common[@]}" "sparsity.rounds=${depths##*,}"
run "${common[@]}" "sparsity.rounds=$depths" protocol.control=reinit,random_layerwise
report --remaining "$columns"
