#!/usr/bin/env bash
# shellcheck disable=SC2153  # settings.sh fills the settings
# TPU VMs as a queued resource, from its request to its end. Every verb may be run again.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

usage() {
  cat <<'TEXT'
usage: queued.sh VERB [ENV_FILE], runs/env if none is given; DRY_RUN=1 prints the commands alone
  create   request the slices          wait     until they are there
  setup    install on every host       launch   start `ellama train` on every host
  status   of slices and jobs          logs     the leading host's log; logs-all: the end of all
  stop     SIGTERM: save and end       delete   slices, requests, everything; the bucket stays
  resume   whatever is missing of create, wait, setup, launch; what was taken away is asked for again
  watch    resume, again and again, until the run has ended
TEXT
}

TPUS=(gcloud compute tpus)
# So many losses of a process in a row, not as long as this apart, are no accident.
MOST_LOST=3 MANY_POLLS=20
# A host that was never set up has nothing to stop.
STOP='test ! -f ellama/on_host.sh || bash ellama/on_host.sh stop'
# Runtimes by docs.cloud.google.com/tpu/docs/runtimes.
declare -A RUNTIMES=([v4]=tpu-ubuntu2204-base [v5litepod]=v2-alpha-tpuv5-lite
  [v5p]=v2-alpha-tpuv5 [v6e]=v2-alpha-tpuv6e)

# Prints one field of a resource, or ABSENT; any other failure is one, not an absence.
describe() {
  local kind=$1 name=$2 field=$3 text
  if text=$("${TPUS[@]}" "$kind" describe "$name" "${PLACE[@]}" "--format=value($field)" 2>"$SCRATCH/said"); then
    printf '%s\n' "$text"
    return
  fi
  text=$(<"$SCRATCH/said")
  if [[ $text == *NOT_FOUND* || $text == *'not found'* ]]; then
    echo ABSENT
  else
    fail "gcloud: could not describe $name: ${text//$'\n'/ }" 1
  fi
}

# The request's state. Without a request nothing is asked: DRY_RUN prints and takes $1 for granted.
state() {
  if [[ $DRY_RUN == 1 ]]; then
    run "${TPUS[@]}" queued-resources describe "$NAME" "${PLACE[@]}" '--format=value(state.state)' >&3
    echo "$1"
  else
    describe queued-resources "$NAME" state.state
  fi
}

# Runs one command line on hosts: on_hosts WORKER COMMAND NODE...
on_hosts() {
  local worker=$1 command=$2 node
  shift 2
  for node in "$@"; do
    run "${TPUS[@]}" tpu-vm ssh "$node" "${PLACE[@]}" "--worker=$worker" "--command=$command"
  done
}

create() {
  local now nodes=("--node-id=$NAME") spot=()
  now=$(state ABSENT)
  if [[ $now != ABSENT ]]; then
    say "$NAME is there already: $now"
    return
  fi
  [[ $SLICES == 1 ]] || nodes=("--node-count=$SLICES" "--node-prefix=$NAME")
  [[ $SPOT == 0 ]] || spot=(--spot)
  run "${TPUS[@]}" queued-resources create "$NAME" "${PLACE[@]}" "${nodes[@]}" \
    "--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME_VERSION" "${spot[@]}"
}

# Waits until every slice can be used; what will never be is an error.
wait_for() {
  local now last=''
  while true; do
    now=$(state ACTIVE)
    [[ $now == "$last" ]] || say "$NAME: $now"
    last=$now
    case $now in
      ACTIVE) return ;;
      ABSENT) fail "$NAME: must be requested first, got nothing; queued.sh create." 1 ;;
      FAILED | SUSPENDED | SUSPENDING | PREEMPTED | DELETING)
        fail "$NAME: must come to ACTIVE, got $now; queued.sh resume asks for it again." 1 ;;
    esac
    sleep "$POLL_SECS"
  done
}

setup() {
  local files=("$ROOT/tpu_scripts/on_host.sh" "$ROOT/requirements.lock") package=$INSTALL node
  if [[ $INSTALL == *.whl ]]; then
    [[ $DRY_RUN == 1 || -f $INSTALL ]] || fail "INSTALL: must exist, got $INSTALL; pip wheel --no-deps -w dist ."
    files+=("$INSTALL")
    package=./$(basename "$INSTALL")
  fi
  printf '%s\n' "$package" >"$SCRATCH/job.install"
  printf '%s\n' "LIBTPU_INIT_ARGS=$FLAGS" "WINDOWS=$WINDOWS" >"$SCRATCH/job.env"
  printf '%s\n' "${ARGUMENTS[@]}" >"$SCRATCH/job.args"
  on_hosts all 'mkdir -p ellama' "${NODES[@]}"
  for node in "${NODES[@]}"; do
    run "${TPUS[@]}" tpu-vm scp "${files[@]}" "$SCRATCH"/job.{install,env,args} "$node:ellama/" "${PLACE[@]}" --worker=all
  done
  [[ $DRY_RUN == 0 ]] || say "job.args: ${ARGUMENTS[*]@Q}" "job.env: LIBTPU_INIT_ARGS=${FLAGS@Q} WINDOWS=$WINDOWS"
  on_hosts all 'bash ellama/on_host.sh install && bash ellama/on_host.sh data' "${NODES[@]}"
}

launch() { on_hosts all 'bash ellama/on_host.sh start' "${NODES[@]}"; }
logs() { on_hosts 0 'tail -n 200 -F ellama/train.log' "${NODES[0]}"; }
logs_all() { on_hosts all 'hostname; tail -n 50 ellama/train.log' "${NODES[@]}"; }
stop() {
  # All slices at once: one that ends alone leaves the others waiting for it.
  local node pids=() pid failed=0
  for node in "${NODES[@]}"; do
    if [[ $DRY_RUN == 1 ]]; then on_hosts all "$STOP" "$node"; continue; fi
    on_hosts all "$STOP" "$node" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
  [[ $failed == 0 ]] || fail "$NAME: a host did not say that its job has ended; run stop again." 1
}

status() {
  local now
  now=$(state ACTIVE)
  say "$NAME: $now"
  [[ $now != ACTIVE ]] || on_hosts all 'hostname; bash ellama/on_host.sh status' "${NODES[@]}"
}

# Deletes the request with its nodes, then any node that is left of an earlier, broken end.
delete() {
  local now node
  now=$(state ACTIVE)
  if [[ $now != ABSENT ]]; then
    run "${TPUS[@]}" queued-resources delete "$NAME" "${PLACE[@]}" --force --quiet
  fi
  for node in "${NODES[@]}"; do
    now=ACTIVE
    [[ $DRY_RUN == 1 ]] || now=$(describe tpu-vm "$node" state)
    [[ $now == ABSENT ]] || run "${TPUS[@]}" tpu-vm delete "$node" "${PLACE[@]}" --quiet
  done
  now=$(state ABSENT)
  [[ $now == ABSENT ]] || fail "$NAME: must be gone, got $now; run delete again." 1
  say "$NAME: nothing is left"
}

# Says whether a slice was taken away although its request is ACTIVE.
lost_a_node() {
  local node now
  [[ $DRY_RUN == 0 ]] || return 1
  for node in "${NODES[@]}"; do
    now=$(describe tpu-vm "$node" state) || exit 1
    case $now in ABSENT | PREEMPTED | TERMINATED | STOPPED | FAILED) say "$node: $now"; return 0 ;; esac
  done
  return 1
}

resume() {
  local now
  now=$(state SUSPENDED)
  while [[ $now == SUSPENDING || $now == DELETING ]]; do
    sleep "$POLL_SECS"
    now=$(state SUSPENDED)
  done
  say "$NAME: $now"
  if [[ $now == SUSPENDED || $now == PREEMPTED || $now == FAILED ]] || { [[ $now == ACTIVE ]] && lost_a_node; }; then
    delete
  elif [[ $now == ACTIVE ]]; then
    now=$(leader_status)
    say "$NAME: $now"
    [[ $now != running ]] || return 0
    stop # all hosts begin together or not at all
  fi
  create
  wait_for
  setup
  launch
}

# Prints how the job on the leading host stands.
leader_status() {
  local text
  text=$(on_hosts 0 'bash ellama/on_host.sh status' "${NODES[0]}" 2>/dev/null) || text=unreachable
  echo "${text##*$'\n'}"
}

# The same, or `lost` if a slice is not there.
job_status() {
  local now
  now=$(describe queued-resources "$NAME" state.state) || exit 1
  if [[ $now != ACTIVE ]] || lost_a_node; then
    echo lost
  else
    leader_status
  fi
}

# `exited 143` is train's answer to SIGTERM: it has saved. 75 says that another process of the job was
# lost, or stood still; the one that has an error of its own may be that one, so not for ever. Any
# other error would come again.
watch() {
  local now last='' lost=0 running=0
  [[ $DRY_RUN == 0 ]] || { resume; return; }
  while true; do
    now=$(job_status) || now=unreachable
    [[ $now == "$last" ]] || say "$NAME: $now"
    last=$now
    case $now in
      'exited 0') say "$NAME: the run has ended; queued.sh delete frees the slices"; return ;;
      running)
        running=$((running + 1))
        ((running < MANY_POLLS)) || lost=0
        ;;
      unreachable) ;;
      'exited 75')
        lost=$((lost + 1)) running=0
        ((lost <= MOST_LOST)) || fail "$NAME: a process was lost $lost times in a row; see queued.sh logs-all." 1
        again
        ;;
      'exited unknown' | 'exited 143') again ;;
      'exited '*) fail "$NAME: the job ended with an error ($now); see queued.sh logs." 1 ;;
      *) again ;;
    esac
    sleep "$POLL_SECS"
  done
}

# In a process of its own: what fails there, a request for instance, is tried again later.
again() { bash "$0" resume "$ENV_FILE" || say "$NAME: could not resume; again in $POLL_SECS s"; }

main() {
  local verb=${1:-} node
  case $verb in
    -h | --help | help) usage; exit ;;
    create | setup | launch | status | logs | stop | delete | resume | watch) ;;
    wait) verb=wait_for ;;
    logs-all) verb=logs_all ;;
    *) fail "verb: must be one of create wait setup launch status logs logs-all stop delete resume watch, got ${verb:-nothing}" ;;
  esac
  [[ $# -le 2 ]] || fail "arguments: must be VERB [ENV_FILE], got $#"
  ENV_FILE=${2:-runs/env}
  read_settings "$ENV_FILE"
  check_settings
  local runtime=${RUNTIMES[${ACCELERATOR%%-*}]:-}
  [[ -n $runtime ]] || fail "ACCELERATOR: must be v4, v5e, v5p or v6e for queued resources, got $ACCELERATOR; tpu7x goes by xpk.sh."
  RUNTIME_VERSION=${RUNTIME_VERSION:-$runtime}
  PLACE=("--project=$PROJECT" "--zone=$ZONE")
  NODES=("$NAME")
  if [[ $SLICES != 1 ]]; then
    NODES=()
    for ((node = 0; node < SLICES; node++)); do NODES+=("$NAME-$node"); done
  fi
  train_arguments
  [[ $DRY_RUN == 1 ]] || command -v gcloud >/dev/null || fail 'gcloud: must be installed, got none.'
  SCRATCH=$(mktemp -d)
  trap 'rm -rf "$SCRATCH"' EXIT
  "$verb"
}

exec 3>&1
main "$@"
