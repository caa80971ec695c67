#!/usr/bin/env bash
# shellcheck disable=SC2329  # the verbs are called by name
# What runs on a host of the slice, in the image of a container and in the tests alike:
#   install  the packages, once        data   the token windows, once
#   start    the job, which outlives this connection; nothing if it runs
#   train    the job in the foreground, with the arguments given
#   status   running | exited STATUS | not started
#   stop     SIGTERM, on which train saves; waits until it has ended
# Beside this file lie job.env (NAME=value lines) and job.args (one argument a line). Both are read
# as they stand. The processes find each other as ellama_jax/core/distributed.py says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export PATH="$PWD/venv/bin:$HOME/.local/bin:$PATH"

read_job() {
  local line
  ARGUMENTS=()
  [[ -f job.env ]] || return 0
  while IFS= read -r line; do export "${line?}"; done <job.env
  mapfile -t ARGUMENTS <job.args
}

# Ubuntu's own Python is older than this project takes: uv brings one.
install_packages() {
  local wanted
  shopt -s nullglob # no wheel where a repository is installed
  wanted=$(cat job.install requirements.lock ./*.whl | sha256sum)
  [[ -f installed && $(<installed) == "$wanted" ]] && return
  rm -f installed
  command -v uv >/dev/null || python3 -m pip install --quiet --user uv
  [[ -x venv/bin/python ]] || uv venv --quiet --python 3.12 venv
  uv pip install --quiet --python venv/bin/python --no-deps --requirement requirements.lock
  # With its extras, held at the locked versions: libtpu belongs to jax, gcsfs reads gs://.
  uv pip install --quiet --python venv/bin/python --constraint requirements.lock 'jax[tpu]' gcsfs
  uv pip install --quiet --python venv/bin/python --no-deps --reinstall-package ellama_jax "$(<job.install)"
  printf '%s' "$wanted" >installed
}

# Copies the windows beside their place and moves them there: half a set is never seen.
fetch_windows() {
  [[ -n ${WINDOWS:-} ]] || return 0
  [[ -f windows.from && $(<windows.from) == "$WINDOWS" ]] && return
  rm -rf windows windows.part windows.from
  python - "$WINDOWS" <<'PYTHON'
import sys
from fsspec.core import url_to_fs

files, path = url_to_fs(sys.argv[1])
files.get(path.rstrip("/") + "/", "windows.part/", recursive=True)
PYTHON
  mv windows.part windows
  printf '%s' "$WINDOWS" >windows.from
}

# CONFIG is named as in the repository; on a host the files came with the package.
link_configs() {
  local place
  place=$(python -c 'from ellama_jax.config import configs_dir; print(configs_dir())')
  ln -sfn "$place" configs
}

train() {
  fetch_windows
  link_configs
  exec ellama train "$@"
}

running() {
  [[ -f train.pid ]] && grep -qa ellama "/proc/$(<train.pid)/cmdline" 2>/dev/null
}

start() {
  running && { echo 'already running'; return; }
  link_configs
  rm -f train.pid train.status
  setsid nohup bash on_host.sh keep >>train.log 2>&1 </dev/null &
  for _ in {1..100}; do
    [[ -f train.pid ]] && break
    sleep 0.1
  done
  echo started
}

# The job's parent: notes its process, and at the end how it ended. A SIGTERM that the machine sends
# to all at shutdown must not end it before the job, which is saving.
keep() {
  local status=0 job
  trap '' TERM
  (
    trap - TERM
    exec ellama train "${ARGUMENTS[@]}"
  ) &
  job=$!
  printf '%s' "$job" >train.pid.new && mv train.pid.new train.pid
  wait "$job" || status=$?
  printf '%s' "$status" >train.status.new && mv train.status.new train.status
}

status() {
  # Between the job's end and its parent's note lies a moment.
  for _ in {1..50}; do
    if running || [[ -f train.status || ! -f train.pid ]]; then break; fi
    sleep 0.1
  done
  if running; then
    echo running
  elif [[ -f train.status ]]; then
    echo "exited $(<train.status)"
  elif [[ -f train.pid ]]; then
    echo 'exited unknown'
  else
    echo 'not started'
  fi
}

stop() {
  if running; then
    kill -TERM "$(<train.pid)"
    for ((waited = 0; waited < 5 * ${STOP_SECS:-600}; waited++)); do
      running || break
      sleep 0.2
    done
  fi
  ! running || { echo "still running after ${STOP_SECS:-600} s" >&2; return 1; }
  status
}

main() {
  read_job
  case ${1:-} in
    install) install_packages ;;
    data) fetch_windows ;;
    train) shift && train "$@" ;;
    start | keep | status | stop) "$1" ;;
    *)
      echo 'on_host.sh: error: verb: must be install, data, start, train, status or stop.' >&2
      exit 2
      ;;
  esac
}

# One line: a newer copy may be written over this file while it waits for the job.
main "$@"; exit
