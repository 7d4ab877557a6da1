# Read by the scripts beside it: the scale, where results go, and how jobs run.
#   scale, out: "smoke", "small" or "paper", and the folder of the results
#   data:       overrides that choose the images of this scale
#   run ...:    prune-run -m with the jobs side by side, into $out
#   report ...: prune-report on $out

usage() {
  cat >&2 <<EOF
usage: scripts/$(basename "$0") smoke|small|paper [OVERRIDE ...]
  smoke  digits, a minute or two: shows that everything works, its numbers mean nothing
  small  what two cores do in one or two hours; the numbers in results/
  paper  the setting of the paper; needs a GPU, or patience
further overrides go to every prune-run, such as trainer.threads=1
environment: DATA="dataset=image_folder dataset.root=cifar10.tar.xz"  images for small and paper
             JOBS=2                                                   jobs side by side
             OUT=runs/elsewhere                                       where results go
Typed again, the script goes on where it was stopped.
EOF
  exit 2
}

case ${1:-} in
  smoke | small | paper) scale=$1 && shift ;;
  *) usage ;;
esac
out=${OUT:-runs/$(basename "$0" .sh)/$scale}
more=("$@")
jobs=()
if [ "${JOBS:-1}" -gt 1 ]; then
  jobs=(hydra/launcher=joblib "hydra.launcher.n_jobs=$JOBS")
fi

run() {
  prune-run -m "out=$out" "${jobs[@]}" "${data[@]}" "$@" "${more[@]}"
}

report() {
  prune-report "$out" "$@"
}
