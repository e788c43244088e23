#!/bin/bash
# sbatch recipes/configs/slurm.sh RUN_FOLDER [options of diffvit train]
#
# One process per GPU, on any number of machines. The job gets SIGUSR1 two minutes before its time is over, or when it
# is preempted. It then saves a checkpoint and ends with the exit code 138 (128 + SIGUSR1). It is queued again, and the
# same command continues from the checkpoint.
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
run=${1:?give the run folder; all machines must share its disk}
shift

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) WORLD_SIZE=$SLURM_NTASKS

# srun starts python without a launcher, because a launcher would end at the signal instead of passing it on.
srun bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' _ \
    python recipes/finetune_pets.py --output "$run" --resume auto --checkpoint-every 0.1 --precision bf16 "$@"
status=$?
[ "$status" -eq 138 ] && scontrol requeue "$SLURM_JOB_ID"
exit "$status"
