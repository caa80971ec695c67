#!/usr/bin/env bash
# shellcheck disable=SC2329  # the verbs are called by name
# What runs on a host of the slice, in the image of a container and in the tests alike:
#   install  the packages, once
#   start    the job, which outlives this connection; nothing if it runs
#   train    the job in the foreground, with the arguments given: the command of a pod
#   status   a line: HOST: running | exited STATUS: what the job said | stopped | not started
#   stop     SIGTERM, on which train saves; what has not ended in the given seconds (600) is killed
# Beside this file lie job.env (NAME=value lines), job.args (one argument a line), job.packages, and
# job.secrets (NAME, its name in Secret Manager, the project). They are read as they stand. The processes find each other as ellama_jax/core/distributed.py says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export PATH="$PWD/venv/bin:$HOME/.local/bin:$PATH"
MOST_LOG_BYTES=$((64 << 20))

read_job() {
  local line
  ARGUMENTS=()
  [[ -f job.env ]] || return 0
  while IFS= read -r line; do export "${line?}"; done <job.env
  mapfile -t ARGUMENTS <job.args
}

# Of the wheel too, if it is one that is installed and no repository.
wanted() { (shopt -s nullglob && cat job.install job.packages requirements.lock ./*.whl) | sha256sum; }
is_installed() { [[ -f installed && $(<installed) == "$(wanted)" ]]; }

# Ubuntu's own Python is older than this project takes: uv brings one.
install_packages() {
  local packages
  ! is_installed || return 0
  ! running || refuse 'must have ended before other packages are installed; run stop first.'
  rm -f installed
  command -v uv >/dev/null || python3 -m pip install --quiet --user uv
  [[ -x venv/bin/python ]] || uv venv --quiet --python "${UV_PYTHON:-3.12}" venv
  uv pip install --quiet --python venv/bin/python --no-deps --requirement requirements.lock
  # With its extras, held at the locked versions: libtpu belongs to jax, gcsfs reads gs://.
  mapfile -t packages <job.packages
  ((${#packages[@]} == 0)) ||
    uv pip install --quiet --python venv/bin/python --constraint requirements.lock "${packages[@]}"
  uv pip install --quiet --python venv/bin/python --no-deps --reinstall-package ellama_jax "$(<job.install)"
  wanted >installed.new && mv installed.new installed
}

refuse() {
  printf '%s: error: the job %s\n' "$(hostname)" "$1" >&2
  exit 3
}

# A job and its parent hold this lock as long as they live. A number in a file says less: after a
# reboot another process has it.
running() { ! flock --nonblock --shared train.lock true; }

# Into the environment of the job alone: no file, log or command line has the values.
read_secrets() {
  local name secret project value
  [[ -f job.secrets ]] || return 0
  while read -r name secret project; do
    value=$(gcloud secrets versions access latest "--secret=$secret" "--project=$project" 2>secrets.error) || {
      say "the secret $secret could not be read: $(tail -n 1 secrets.error)" >&2
      exit 1
    }
    export "$name=$value"
  done <job.secrets
}

start() {
  is_installed || refuse 'must be set up first; run setup.'
  exec 9>>train.lock
  if running || ! flock --timeout 5 9; then
    say 'already running'
    return
  fi
  if [[ -f train.log && $(stat --format=%s train.log) -gt $MOST_LOG_BYTES ]]; then mv train.log train.log.1; fi
  read_secrets
  rm -f train.pid train.status stopped
  printf '=== start %s\n' "$(date --utc +%FT%TZ)" >>train.log
  setsid nohup bash on_host.sh keep >>train.log 2>&1 </dev/null &
  for _ in {1..100}; do
    [[ -f train.pid ]] && break
    sleep 0.1
  done
  [[ -f train.pid ]] || refuse 'did not start; see train.log.'
  say started
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
  printf '%s %s\n' "$job" "$$" >train.pid.new && mv train.pid.new train.pid
  wait "$job" || status=$?
  printf '%s' "$status" >train.status.new && mv train.status.new train.status
}

say() { printf '%s: %s\n' "$(hostname)" "$1"; }

# The error that the job ended with, or the last that it said, since its last start.
last_words() {
  [[ -f train.log ]] || return 0
  tail --lines=50 train.log | LC_ALL=C tr -d '\000-\010\013-\037' | LC_ALL=C awk '
    /^=== start / { error = last = ""; next }
    /error: |^process [0-9]+|^[A-Za-z_.]+(Error|Exception)(:|$)/ { error = $0 }
    NF { last = $0 }
    END { print substr(error != "" ? error : last, 1, 600) }'
}

status() {
  local end words=''
  if running; then
    say running
  elif [[ ! -f train.pid ]]; then
    say 'not started'
  else
    # Without a note of its end: killed with its parent, or the machine went down.
    end="exited $(cat train.status 2>/dev/null || echo unknown)"
    [[ ! -f stopped ]] || end="stopped: $end"
    [[ $end == 'exited 0' ]] || words=$(last_words)
    say "$end${words:+: $words}"
  fi
}

stop() {
  local secs=$1 job group waited
  if running; then
    read -r job group <train.pid
    kill -TERM "$job" || true
    for ((waited = 0; waited < 5 * secs; waited++)); do
      running || break
      sleep 0.2
    done
    # What does not answer would keep the chips from the next job.
    if running; then
      kill -KILL -- "-$group"
      sleep 1
      running || say "did not end in $secs s and was killed"
    fi
  fi
  ! running || refuse 'still runs, although it was killed; the host must be restarted.'
  status
}

# On Kubernetes it is the cluster that starts a job again. The pod of process 0 counts the starts of
# LAUNCH in the work directory: the one after MOST_RESTARTS restarts without a newer checkpoint ends
# with a status that the cluster takes as final.
count_start() {
  [[ -n ${LAUNCH:-} && ${TPU_WORKER_ID:-0}${MEGASCALE_SLICE_ID:-0} == 00 ]] || return 0
  python - "$LAUNCH" "${MOST_RESTARTS:-3}" "$@" <<'PYTHON'
import json, sys, time
from ellama_jax.core.paths import as_path, write_whole
from ellama_jax.weights.layout import latest_step

launch, most = sys.argv[1], int(sys.argv[2])
workdir = next(word.partition("=")[2] for word in sys.argv[3:] if word.startswith("--workdir="))
note = as_path(workdir) / "starts.json"
for wait in (1, 5, 25, None):
    try:
        step = latest_step(as_path(workdir) / "checkpoints")
        last = json.loads(note.read_text()) if note.exists() else {}
        same = last.get("launch") == launch and last["step"] == step
        restarts = last["restarts"] + 1 if same else int(last.get("launch") == launch)
        write_whole(note, json.dumps({"launch": launch, "step": step, "restarts": restarts}))
        break
    except Exception as error:  # a bucket's own
        print(f"{note}: could not count this start: {error}", file=sys.stderr)
        if wait is None:
            sys.exit(0)  # train says better what is wrong with the work directory
        time.sleep(wait)
if restarts > most:
    newest = "no checkpoint" if step is None else f"no checkpoint newer than step {step}"
    sys.exit(f"on_host.sh: error: {workdir}: {newest} after {most} restarts in a row; this is the end.")
PYTHON
}

train() {
  count_start "$@"
  exec ellama train "$@"
}

main() {
  read_job
  case ${1:-} in
    install) install_packages ;;
    train) shift && train "$@" ;;
    stop) stop "${2:-600}" ;;
    start | keep | status) "$1" ;;
    *)
      echo 'on_host.sh: error: verb: must be install, start, train, status or stop.' >&2
      exit 2
      ;;
  esac
}

# One line: a newer copy may be written over this file while it waits for the job.
main "$@"; exit
