#!/usr/bin/env bash
# PLATON on a vision transformer (arXiv 2206.12562): against the same ranking by importance alone
# (method.uncertainty=none), and against gradual and iterative magnitude pruning, at 80 and 90 % sparsity of
# the encoder's linear layers (small: 95 and 98 %, too). All prune a trained network and train it for the same
# number of epochs more, from the same peak learning rate, and none clips gradients (PLATON's authors do,
# method.grad_clip=1).
# At the scale "paper" that network is timm's pretrained DeiT-Ti, fine-tuned while it is pruned; the iterative
# pruning is fine-tuned for half of the epochs before.
set -euo pipefail
source "$(dirname "$0")/scale.sh"

setting=(optimizer=adamw optimizer.weight_decay=0.01 schedule=linear schedule.warmup=0.1
  "sparsity.exclude=[head,*embed*]")
targets=0.8,0.9 columns=100,20,10
case $scale in
  smoke)
    data=(dataset=digits trainer.threads=1)
    setting+=(model=vit_tiny model.dim=32 model.depth=2 model.heads=2 model.patch=2 optimizer.lr=3e-3
      trainer.batch_size=64 seed=0,1)
    dense=6ep pruning=8ep
    ;;
  small)
    data=(${DATA:-dataset=cifar10} dataset.size=16 dataset.subset=6250 dataset.validation=0.2 dataset.pad=2)
    setting+=(model=vit_tiny model.dim=64 model.depth=4 model.heads=4 model.patch=4 optimizer.lr=1e-3
      trainer.batch_size=64 seed=0,1,2)
    dense=40ep pruning=20ep
    targets=0.8,0.9,0.95,0.98 columns=100,20,10,5,2 # such a network loses nothing at 90 %
    ;;
  paper)
    data=(${DATA:-dataset=cifar100} dataset.size=224)
    setting+=(model=timm model.name=deit_tiny_patch16_224 model.pretrained=true optimizer.lr=1e-4
      trainer.batch_size=64 seed=0,1,2)
    dense=10ep pruning=20ep
    ;;
esac

setting+=("sparsity.target=$targets")
if [ "$scale" = paper ]; then
  during=("protocol.dense=$pruning")
  after=("protocol.dense=$dense" protocol.retrain=null "protocol.retrain_total=$dense")
else
  during=("protocol.before=$dense" "protocol.dense=$pruning")
  after=("protocol.dense=$dense" protocol.retrain=null "protocol.retrain_total=$pruning")
fi
magnitude=(sparsity.rounds=4 retrain=llr "${after[@]}")

run method=platon method.uncertainty=abs,none method.grad_clip=null "${setting[@]}" "${during[@]}"
run method=gmp sparsity.allocation=global method.interval=10 method.begin=0.05 method.until=0.7 "${setting[@]}" \
  "${during[@]}"
run method=imp "${setting[@]}" "${magnitude[@]}"
report --remaining "$columns"
