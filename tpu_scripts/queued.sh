#!/usr/bin/env bash
# shellcheck disable=SC2153  # settings.sh fills the settings
# TPU VMs as a queued resource, from its request to its end. Every verb may be run again.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

usage() {
  cat <<'TEXT'
usage: queued.sh VERB [ENV_FILE] [--yes], runs/env if none is given; DRY_RUN=1 prints the commands alone
  create   request the slices          wait     until they are there
  setup    install on every host       launch   start `ellama train` on every host
  status   of slices and jobs          logs     the first host's log; logs-all: the end of all
  stop     SIGTERM: save and end       delete   slices, requests, everything; the bucket stays. Asks; --yes does not
  resume   whatever is missing of create, wait, setup, launch; what was taken away is asked for again
  watch    resume, again and again, until the run has ended or another try cannot mend it
  costs    all that the project is billed for, in every zone
TEXT
}

TPUS=(gcloud compute tpus)
# So many polls in a row may say nothing clear before it is acted upon.
PATIENCE=${PATIENCE:-10}
SSH_TRIES=${SSH_TRIES:-3}
# A host that was never set up has nothing to stop.
ON_HOST='test ! -f ellama/on_host.sh || bash ellama/on_host.sh'
# Runtimes by docs.cloud.google.com/tpu/docs/runtimes.
declare -A RUNTIMES=([v4]=tpu-ubuntu2204-base [v5litepod]=v2-alpha-tpuv5-lite
  [v5p]=v2-alpha-tpuv5 [v6e]=v2-alpha-tpuv6e)

# Runs a command that may take SECS seconds: what hangs, as an ssh to a host that is gone, is an error.
# In the background, for there Ctrl-C ends this script at once.
within() {
  local secs=$1
  shift
  if [[ $DRY_RUN == 1 ]]; then run "$@"; return; fi
  timeout --kill-after=10 "$secs" "$@" </dev/null &
  wait "$!"
}

# Runs a command for each node, all at once; {} in it is the node.
on_nodes() {
  local secs=$1 node pid pids=() failed=0 code
  shift
  for node in "${NODES[@]}"; do
    if [[ $DRY_RUN == 1 ]]; then run "${@//\{\}/$node}"; continue; fi
    within "$secs" "${@//\{\}/$node}" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    code=0
    wait "$pid" || code=$?
    # 3: a host refused, and would again.
    [[ $code == 0 || $failed == 3 ]] || failed=$((code == 3 ? 3 : 1))
  done
  return "$failed"
}

# Runs one command line on every host.
on_hosts() { on_nodes "$1" "${SSH[@]}" tpu-vm ssh {} "${PLACE[@]}" "${SSH_ARG[@]}" --worker=all "--command=$2"; }

advise() {
  say "$NAME: a host did not answer in time, or what it ran failed. If none answers: is port 22 open in the network" \
    "${NETWORK:-default}, or does it want SSH_ARG=--tunnel-through-iap? With several: is the key in an agent" \
    '(ssh-add ~/.ssh/google_compute_engine)? One that stays away goes with queued.sh delete.'
}

# Runs what may be run twice, and again if a connection failed: the hosts of a new slice do not all
# take a key at once, and one of many is lost now and then.
again() {
  local tries code
  for ((tries = 1; ; tries++)); do
    code=0
    "$@" || code=$?
    [[ $code != 0 && $code != 3 ]] || break
    if ((tries == SSH_TRIES)); then
      advise
      break
    fi
    say "$NAME: a host could not be reached, or what it ran failed; try $((tries + 1)) of $SSH_TRIES in $POLL_SECS s"
    sleep "$POLL_SECS"
  done
  ((code == 0)) || return 1
}

# Prints one field of a resource, or ABSENT; any other failure is one, not an absence.
describe() {
  local kind=$1 name=$2 field=$3 text
  if text=$(within 120 "${TPUS[@]}" "$kind" describe "$name" "${PLACE[@]}" "--format=value($field)" 2>"$SCRATCH/said"); then
    printf '%s\n' "$text"
    return
  fi
  text=$(<"$SCRATCH/said")
  # By its own name: a project that is not found says nothing of what it holds.
  if [[ $text == *NOT_FOUND*"/$name'"* ]]; then
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

create() {
  local now nodes=("--node-id=$NAME") more=("${CREATE_ARG[@]}")
  now=$(state ABSENT)
  if [[ $now != ABSENT ]]; then
    say "$NAME is there already: $now"
    return
  fi
  [[ $SLICES == 1 ]] || nodes=("--node-count=$SLICES" "--node-prefix=$NAME")
  check_bucket
  [[ $SPOT == 0 ]] || more+=(--spot)
  [[ $RESERVED == 0 ]] || more+=(--reserved)
  [[ -z $NETWORK ]] || more+=("--network=$NETWORK")
  [[ -z $SUBNETWORK ]] || more+=("--subnetwork=$SUBNETWORK")
  [[ -z $SERVICE_ACCOUNT ]] || more+=("--service-account=$SERVICE_ACCOUNT")
  [[ -z $LABELS ]] || more+=("--labels=$LABELS")
  within 600 "${TPUS[@]}" queued-resources create "$NAME" "${PLACE[@]}" "${nodes[@]}" \
    "--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME_VERSION" "${more[@]}" 2>"$SCRATCH/said" ||
    refused "$(<"$SCRATCH/said")"
}

# What the run reads must be there before a chip waits for it.
check_bucket() {
  local at key place
  for ((at = 0; at < ${#IN_BUCKET[@]}; at += 2)); do
    key=${IN_BUCKET[at]} place=${IN_BUCKET[at + 1]}
    within 120 gcloud storage ls "$place" >"$SCRATCH/listed" 2>"$SCRATCH/said" || {
      ! grep -q 'matched no objects' "$SCRATCH/said" ||
        fail "$key: must be there before chips are asked for, got nothing at $place; gcloud storage cp -r DIRECTORY $place"
      fail "$key: $place could not be listed: $(tail -n 1 "$SCRATCH/said")" 75
    }
    [[ $DRY_RUN == 0 ]] || cat "$SCRATCH/listed"
  done
}

# No room now is no reason to give up, and costs nothing: status 75 says so to `watch`.
refused() {
  say "$1"
  case $1 in
    *RESOURCE_EXHAUSTED* | *[Qq]uota* | *capacity* | *UNAVAILABLE*) fail "$NAME: there is no room now; run it again later." 75 ;;
    *) fail "$NAME: could not be requested." 1 ;;
  esac
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
        fail "$NAME: must come to ACTIVE, got $now; queued.sh resume asks for it again." 75 ;;
    esac
    sleep "$POLL_SECS"
  done
}

setup() {
  local files=("$ROOT/tpu_scripts/on_host.sh" "$ROOT/requirements.lock") package=$INSTALL secret
  if [[ $INSTALL == *.whl ]]; then
    files+=("$INSTALL")
    package=./$(basename "$INSTALL")
  fi
  printf '%s\n' "$package" >"$SCRATCH/job.install"
  printf '%s\n' 'jax[tpu]' gcsfs "${PACKAGES[@]}" >"$SCRATCH/job.packages"
  printf '%s\n' "LIBTPU_INIT_ARGS=$FLAGS" "${JOB_ENV[@]}" >"$SCRATCH/job.env"
  printf '%s\n' "${ARGUMENTS[@]}" >"$SCRATCH/job.args"
  # Names alone: each host asks for the values itself.
  for secret in "${JOB_SECRET[@]}"; do printf '%s\n' "${secret%%=*} ${secret#*=} $PROJECT"; done >"$SCRATCH/job.secrets"
  again on_hosts 300 'mkdir -p ellama && rm -rf ellama/inputs && mkdir ellama/inputs'
  copy "${files[@]}" "$SCRATCH"/job.{install,packages,env,args,secrets} {}:ellama/
  [[ ${#INPUTS[@]} == 0 ]] || copy "${INPUTS[@]}" {}:ellama/inputs/ --recurse
  [[ $DRY_RUN == 0 ]] || say "job.args: ${ARGUMENTS[*]@Q}" "job.env: LIBTPU_INIT_ARGS=${FLAGS@Q} ${JOB_ENV[*]@Q}" \
    "job.packages: ${PACKAGES[*]}" "job.secrets: ${JOB_SECRET[*]}"
  again on_hosts 1800 'bash ellama/on_host.sh install'
}

copy() { again on_nodes 900 "${SSH[@]}" tpu-vm scp "$@" "${PLACE[@]}" "${SSH_ARG[@]}" --worker=all; }
launch() { again on_hosts 300 'bash ellama/on_host.sh start'; }
logs() { run "${SSH[@]}" tpu-vm ssh "${NODES[0]}" "${PLACE[@]}" "${SSH_ARG[@]}" --worker=0 '--command=tail -n 200 -F ellama/train.log'; }
# shellcheck disable=SC2016  # the host's own name
logs_all() { on_hosts 120 'tail -n 50 ellama/train.log | sed "s/^/$(hostname): /"' || { advise && return 1; }; }

# All slices at once: one that ends alone leaves the others waiting for it.
halt() {
  local secs=${STOP_SECS:-600}
  on_hosts $((secs + 120)) "$1$ON_HOST stop $secs" ||
    fail "$NAME: a host did not say that its job has ended; run it again." 1
}

# Noted on the hosts, so that a `watch` elsewhere does not start again what a person has stopped.
stop() { halt 'test ! -d ellama || touch ellama/stopped; '; }

status() {
  local now
  now=$(state ACTIVE)
  say "$NAME: $now"
  [[ $now != ACTIVE ]] || on_hosts 120 "$ON_HOST status" || { advise && return 1; }
}

delete() {
  confirm "$NAME" "delete: the queued resource $NAME and its nodes ${NODES[*]} in $ZONE of $PROJECT ($SLICES x $ACCELERATOR), \
with all that is on their disks and a job that may run there. $WORKDIR stays."
  remove
}

# Deletes the request with its nodes, then any node that is left of an earlier, broken end.
remove() {
  local now node
  now=$(state ACTIVE)
  if [[ $now != ABSENT ]]; then
    within 1800 "${TPUS[@]}" queued-resources delete "$NAME" "${PLACE[@]}" --force --quiet
  fi
  for node in "${NODES[@]}"; do
    now=ACTIVE
    [[ $DRY_RUN == 1 ]] || now=$(describe tpu-vm "$node" state)
    [[ $now == ABSENT ]] || within 1800 "${TPUS[@]}" tpu-vm delete "$node" "${PLACE[@]}" --quiet
  done
  now=$(state ABSENT)
  [[ $now == ABSENT ]] || fail "$NAME: must be gone, got $now; run delete again." 1
  say "$NAME: nothing is left"
}

# Says whether a slice was taken away although its request is ACTIVE.
lost_a_node() {
  local node now
  for node in "${NODES[@]}"; do
    now=$(describe tpu-vm "$node" state) || exit 1
    case $now in ABSENT | PREEMPTED | TERMINATED | STOPPED | FAILED) say "$node: $now"; return 0 ;; esac
  done
  return 1
}

resume() {
  local now
  now=$(state ABSENT)
  while [[ $now == SUSPENDING || $now == DELETING ]]; do
    sleep "$POLL_SECS"
    now=$(state ABSENT)
  done
  say "$NAME: $now"
  if [[ $now == SUSPENDED || $now == PREEMPTED || $now == FAILED ]] || { [[ $now == ACTIVE ]] && lost_a_node; }; then
    remove
  elif [[ $now == ACTIVE ]]; then
    now=$(jobs_state)
    say "$NAME: $now"
    [[ $now != running ]] || return 0
    [[ $now == 'not started' ]] || halt '' # all hosts begin together or not at all
    setup
    launch
    return
  fi
  create
  wait_for
  setup
  launch
}

# Prints all that the project pays for, whoever made it. What cannot be listed is no nothing.
costs() {
  local what words failed=0
  while IFS='|' read -r what words; do
    say "== $what"
    # shellcheck disable=SC2086 # words of our own
    within 120 gcloud $words "--project=$PROJECT" --quiet 2>"$SCRATCH/said" || {
      # An API that was never switched on bills nothing.
      if grep -Eq 'SERVICE_DISABLED|has not been used in project|is not enabled' "$SCRATCH/said"; then
        say 'none: its API is off'
      else
        say "could not be listed: $(tail -n 1 "$SCRATCH/said")"
        failed=1
      fi
    }
  done <<'TEXT'
TPU slices, by chip and second from READY to delete|compute tpus tpu-vm list --zone=-
requests, which cost nothing until they are ACTIVE|compute tpus queued-resources list --zone=-
virtual machines|compute instances list
disks, also of no machine|compute disks list
addresses that were reserved|compute addresses list
clusters (xpk.sh)|container clusters list
container images, by size|artifacts repositories list
secrets, by version and month|secrets list
buckets, by size (gcloud storage du --summarize gs://NAME)|storage buckets list --format=value(name,location)
TEXT
  return "$failed"
}

# Prints how the hosts' jobs stand, in a word; $SCRATCH/jobs has a line a host.
#   exited 0     all have ended well                 failed   one with an error that would come again
#   running      all that answer run                 ended    all have ended: another try may mend it
#   partly       some run, some do not               stopped, stopping by a person
#   not started  on no host                          unreachable
jobs_state() {
  local line answered=1 total=0 running=0 well=0 none=0 failed=0 stopped=0
  on_hosts 120 "$ON_HOST status" >"$SCRATCH/jobs" 2>/dev/null || answered=0
  while IFS= read -r line; do
    [[ $line =~ ^[^\ ]+:\ (running|stopped|not\ started|exited\ (unknown|[0-9]+))(:|$) ]] || continue
    total=$((total + 1))
    case ${BASH_REMATCH[1]} in
      running) running=$((running + 1)) ;;
      stopped) stopped=1 ;;
      'not started') none=$((none + 1)) ;;
      'exited 0') well=$((well + 1)) ;;
      # Another process was lost, or stood still; killed; gone with its machine.
      'exited 75' | 'exited unknown') ;;
      *) ((BASH_REMATCH[2] >= 128)) || failed=1 ;;
    esac
  done <"$SCRATCH/jobs"
  if ((total == 0 && answered == 0)); then
    echo unreachable
  elif ((none == total)); then
    echo 'not started' # or not even set up
  elif ((failed)); then
    echo failed
  elif ((running == total)); then
    echo running
  elif ((stopped)); then
    if ((running)); then echo stopping; else echo stopped; fi
  elif ((running)); then
    echo partly
  elif ((well == total)); then
    echo 'exited 0'
  else
    echo ended
  fi
}

# The same, or `lost` if a slice is not there. With `first` the first host alone is asked, as long as
# it runs: where one host has ended, the others end within a minute.
run_state() {
  local now
  now=$(describe queued-resources "$NAME" state.state) || exit 1
  if [[ $now != ACTIVE ]] || lost_a_node; then
    echo lost
  elif [[ $1 == first && $(first_host) == *': running' ]]; then
    echo running
  else
    jobs_state
  fi
}

first_host() {
  within 120 "${SSH[@]}" tpu-vm ssh "${NODES[0]}" "${PLACE[@]}" "${SSH_ARG[@]}" --worker=0 "--command=$ON_HOST status" 2>/dev/null || true
}

# Prints what the hosts said, once what several said alike: it goes with the slice.
show_jobs() {
  awk '{ at = index($0, ": "); host = substr($0, 1, at - 1); words = substr($0, at) }
    !(words in count) { order[++lines] = words; first[words] = host }
    { count[words]++ }
    END { for (i = 1; i <= lines; i++) {
      words = order[i]; others = count[words] - 1
      print first[words] (others ? " and " others " more" : "") words } }' "$SCRATCH/jobs" >&2
}

# Prints the newest whole step in the work directory, 0 if there is none. Orbax writes
# commit_success.txt last.
newest_step() {
  local text tries command=(gcloud storage ls "$WORKDIR/checkpoints/*/commit_success.txt")
  [[ $DRY_RUN == 0 ]] || { run "${command[@]}" >&3; return; }
  for ((tries = 0; tries < PATIENCE; tries++)); do
    if text=$(within 120 "${command[@]}" 2>"$SCRATCH/said"); then
      sed -nE '1i 0'$'\n''s|.*/checkpoints/([0-9]+)/commit_success.txt$|\1|p' <<<"$text" | sort -n | tail -n 1
      return
    elif grep -q 'matched no objects' "$SCRATCH/said"; then
      echo 0
      return
    fi
    sleep "$POLL_SECS"
  done
  say "$WORKDIR: could not be listed: $(tail -n 1 "$SCRATCH/said")"
  return 1
}

watch() {
  local now last='' newest step whom polls=0 unclear=0 begun=0 restarts=0 code
  if [[ $DRY_RUN == 1 ]]; then
    newest_step
    resume
    status
    return
  fi
  newest=$(newest_step) || newest=0
  while true; do
    whom=all
    [[ $last != running ]] || ((polls % PATIENCE == 0)) || whom=first
    polls=$((polls + 1))
    now=$(run_state "$whom" 2>"$SCRATCH/why") || now=unreachable
    if [[ $now != "$last" ]]; then
      say "$NAME: $now"
      cat "$SCRATCH/why" >&2
      case $now in ended | failed) show_jobs ;; esac
    fi
    last=$now
    case $now in
      'exited 0') say "$NAME: the run has ended; queued.sh delete frees the slices"; return ;;
      running | stopping | unreachable) unclear=0 ;;
      partly) unclear=$((unclear + 1)) ;;
      *) unclear=$((PATIENCE + 1)) ;;
    esac
    # Whoever begins to watch has mended what ended the job before.
    ((begun == 0)) || case $now in
      failed) fail "$NAME: the job ended with an error that another try cannot mend; mend it, then queued.sh watch." 1 ;;
      stopped) fail "$NAME: somebody stopped the job; queued.sh watch goes on with it." 1 ;;
    esac
    case $now in running | partly | ended) begun=1 ;; esac
    if ((unclear > PATIENCE)); then
      step=$(newest_step) || step=$newest # not known to be newer
      ((step <= newest)) || { newest=$step; restarts=0; }
      ((restarts < MOST_RESTARTS)) ||
        fail "$NAME: no checkpoint newer than step $newest after $restarts restarts in a row; mend it, then queued.sh watch." 1
      code=0
      bash "$0" resume "$ENV_FILE" || code=$?
      case $code in
        0 | 1) ((begun == 0)) || restarts=$((restarts + 1)); begun=1 ;;
        2) exit 2 ;; # the command or its file is wrong
      esac
      [[ $code == 0 ]] || say "$NAME: could not resume; again in $POLL_SECS s"
      # Half a start is no reason to wait: all hosts are stopped and begin again.
      last='' unclear=$((code == 0 ? 0 : PATIENCE))
    fi
    sleep "$POLL_SECS"
  done
}

main() {
  local verb=${1:-} node tool
  case $verb in
    -h | --help | help) usage; exit ;;
    create | setup | launch | status | logs | stop | delete | resume | watch | costs) ;;
    wait) verb=wait_for ;;
    logs-all) verb=logs_all ;;
    *) fail "verb: must be one of create wait setup launch status logs logs-all stop delete resume watch costs, got ${verb:-nothing}" ;;
  esac
  YES=0
  [[ $verb != delete || ${!#} != --yes ]] || { YES=1 && set -- "${@:1:$#-1}"; }
  [[ $# -le 2 ]] || fail "arguments: must be VERB [ENV_FILE], got $#"
  ENV_FILE=${2:-runs/env}
  read_settings "$ENV_FILE"
  check_settings
  local runtime=${RUNTIMES[${ACCELERATOR%%-*}]:-}
  [[ -n $runtime ]] || fail "ACCELERATOR: must be v4, v5e, v5p or v6e for queued resources, got $ACCELERATOR; tpu7x goes by xpk.sh."
  RUNTIME_VERSION=${RUNTIME_VERSION:-$runtime}
  PLACE=("--project=$PROJECT" "--zone=$ZONE")
  # A way that gcloud has in its alpha commands alone (SDK 528).
  SSH=("${TPUS[@]}")
  [[ " ${SSH_ARG[*]} " != *' --tunnel-through-iap '* ]] || SSH=(gcloud alpha compute tpus)
  NODES=("$NAME")
  if [[ $SLICES != 1 ]]; then
    NODES=()
    for ((node = 0; node < SLICES; node++)); do NODES+=("$NAME-$node"); done
  fi
  # What a host is sent is what was checked; to look at a run and to end one nothing has to be right.
  case $verb in create | setup | launch | resume | watch) check_run ;; esac
  for tool in gcloud timeout; do
    [[ $DRY_RUN == 1 ]] || command -v "$tool" >/dev/null || fail "$tool: must be installed, got none."
  done
  SCRATCH=$(mktemp -d)
  trap 'rm -rf "$SCRATCH"' EXIT
  "$verb"
}

exec 3>&1
main "$@"
