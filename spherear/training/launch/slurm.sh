#!/usr/bin/env bash
# One training run on two nodes with eight GPUs each, put back into the queue until it is finished:
#
#   sbatch spherear/training/launch/slurm.sh ar --preset imagenet256-H --data tar:ILSVRC2012_img_train.tar \
#       --vae runs/imagenet256/vae --workers 8
#
# Slurm sends USR1 to this script five minutes before the time limit. The processes then save a checkpoint and end, and
# the job is requeued; started again, the same command resumes the run.
#SBATCH --job-name=spherear
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

stopped=0
stop() {
    stopped=1
    scancel --signal=TERM "$SLURM_JOB_ID" # to the job's steps, not to this script
}
trap stop USR1

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d --rdzv-endpoint "${nodes[0]}:${RENDEZVOUS_PORT:-29500}" -m spherear.train "$@" &
run=$!

status=0
wait "$run" || status=$?
while kill -0 "$run" 2>/dev/null; do # the signal ended `wait`, and the run is still saving
    status=0
    wait "$run" || status=$?
done
if [ "$stopped" = 1 ] && [ "$status" != 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
