#!/usr/bin/env bash
# Sparse double descent with LeNet-300-100: accuracy over sparsity with wrong training labels, at two shares
# of them and without any (noise/), and by mode of retraining (modes/), the form of the comparisons of
# arXiv 2206.08684. diagnostics.png shows training accuracy and learning distance over the same axis.
# The small scale has 3,000 images and 100 epochs, so that the dense network learns the wrong labels by heart,
# which is the precondition (seed 10: all of them; of 5,000 images in 60 epochs it learns 88 %). It rewinds to
# epoch 2, as the paper's 1,000 steps are, and has more levels, as fewer labels fit into fewer weights.
set -euo pipefail
source "$(dirname "$0")/scale.sh"

case $scale in
  smoke)
    data=(dataset=digits dataset.subset=500 trainer.threads=1)
    setting=(sparsity.rounds=4 sparsity.rate=0.6 seed=0,1)
    length=60it rewind=8it columns=100,40,16,6.4,2.6
    ;;
  small)
    data=(${DATA:-dataset=fashion_mnist} dataset.subset=3000 trainer.threads=1)
    setting=(sparsity.rounds=32 seed=0,1,2)
    length=2400it rewind=50it columns=100,32.8,10.7,2.8,1.2,0.5,0.2,0.08
    ;;
  paper)
    data=(${DATA:-dataset=mnist})
    setting=(seed=0,1,2)
    length=75040it rewind=1000it columns=100,32.8,10.7,5.5,2.8,1.2,0.5
    ;;
esac
common=(experiment=sparse_double_descent "protocol.dense=$length" "${setting[@]}")
keep=(protocol.weights=keep protocol.rewind_to=0it "protocol.retrain=$length")

# each comparison is a folder with a report; both hold the lottery at the paper's share
lottery=("${common[@]}" "protocol.rewind_to=$rewind")
out="$out/lottery" run "${lottery[@]}"
out="$out/noise" run "${lottery[@]}" dataset.label_noise=0.4,0.0
out="$out/modes" run "${common[@]}" "${keep[@]}" retrain=constant # finetune
out="$out/modes" run "${common[@]}" "${keep[@]}" retrain=same     # rewindLR
out="$out/modes" run "${common[@]}" protocol.weights=random protocol.rewind_to=0it # scratch
prune-report "$out/lottery" "$out/modes" --remaining "$columns" --out "$out/modes"
prune-report "$out/lottery" "$out/noise" --remaining "$columns" --out "$out/noise"
