#!/usr/bin/env bash
# Ten minutes on one GPU: correctness first, then one table of speeds. `benchmarks/gpu.sh --device cpu --toy` goes through it anywhere.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
exec timeout 600 "${PYTHON:-.venv/bin/python}" benchmarks/gpu.py "$@"
