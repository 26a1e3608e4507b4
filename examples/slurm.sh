#!/bin/bash
# One run on a cluster: sbatch examples/slurm.sh
#
# Compute nodes often have no network. Fetch everything once on a login node, into a folder that the
# compute nodes see as well; --dry-run loads the data and the tokenizer, and writes no run:
#   export UNFORGET_CACHE=$SCRATCH/unforget HF_HOME=$SCRATCH/huggingface
#   hf download meta-llama/Llama-3.2-1B-Instruct
#   hf download Qwen/Qwen3Guard-Gen-4B
#   python train.py --dry-run --shots 3
#   python generate.py --dry-run --no-adapter --task gsm8k,ailuminate,xstest --shots 3
#
# A job that is cut off by the time limit goes on where it stopped: submit it again.
#SBATCH --job-name=unforget
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus=4
#SBATCH --cpus-per-task=16
#SBATCH --time=08:00:00
#SBATCH --output=unforget-%j.log

set -euo pipefail
export UNFORGET_CACHE=$SCRATCH/unforget HF_HOME=$SCRATCH/huggingface HF_HUB_OFFLINE=1

BASE=runs/base
TUNED=runs/tuned
PROCESSES=${SLURM_GPUS_ON_NODE:-1}

torchrun --standalone --nproc-per-node "$PROCESSES" -- generate.py --run "$BASE" --no-adapter --task gsm8k,ailuminate,xstest --shots 3
torchrun --standalone --nproc-per-node "$PROCESSES" -- judge.py --run "$BASE"
torchrun --standalone --nproc-per-node "$PROCESSES" -- train.py --run "$TUNED" --shots 3
torchrun --standalone --nproc-per-node "$PROCESSES" -- generate.py --run "$TUNED" --task gsm8k,ailuminate,xstest --shots 3
torchrun --standalone --nproc-per-node "$PROCESSES" -- judge.py --run "$TUNED"
python report.py "$BASE" "$TUNED" --output runs/report
