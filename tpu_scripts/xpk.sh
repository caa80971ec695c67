#!/usr/bin/env bash
# The same run on GKE through XPK (the Python package xpk, written for 1.16).
# shellcheck disable=SC2153  # settings.sh fills the settings
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

usage() {
  cat <<'TEXT'
usage: xpk.sh VERB [ENV_FILE] [--yes], runs/env if none is given; DRY_RUN=1 prints the commands alone
  cluster  create the cluster, or its missing parts    image   build and push the container
  launch   create the workload                         list    workloads and how they stand
  logs     of the pods                                 stop    delete the workload: save and end
  delete   the cluster with all that is in it; the bucket stays. Asks; --yes does not
TEXT
}

cluster() {
  local tier=(--on-demand)
  [[ $SPOT == 0 ]] || tier=(--spot)
  [[ " ${CREATE_ARG[*]}" != *' --reservation='* ]] || tier=()
  run xpk cluster create "${PLACE[@]}" "--tpu-type=$ACCELERATOR" "--num-slices=$SLICES" "${tier[@]}" "${CREATE_ARG[@]}"
}

image() {
  [[ $INSTALL == *.whl ]] || fail "INSTALL: must be a wheel for the image, got $INSTALL"
  local file
  for file in "$INSTALL" "${INPUTS[@]}"; do
    [[ $file -ef $ROOT/$file ]] || fail "$file: must lie in $ROOT, from which the image is built, and be named from there."
  done
  run docker build "--file=$ROOT/tpu_scripts/Dockerfile" "--build-arg=WHEEL=$INSTALL" "--build-arg=INPUT=${INPUTS[*]}" \
    "--build-arg=PACKAGES=${PACKAGES[*]}" "--tag=$IMAGE" "$ROOT"
  run docker push "$IMAGE"
}

# What a pod runs, quoted twice: here for the pod's shell, by xpk in its YAML.
pod_command() {
  local text
  printf -v text '%q ' exec env "LIBTPU_INIT_ARGS=$FLAGS" "${JOB_ENV[@]}" \
    "LAUNCH=$(date --utc +%Y%m%dT%H%M%SZ)" "MOST_RESTARTS=$MOST_RESTARTS" bash /ellama/on_host.sh train "${ARGUMENTS[@]}"
  printf '%s' "${text% }"
}

launch() {
  local there
  if [[ $DRY_RUN == 0 ]]; then
    there=$(xpk workload list "${PLACE[@]}" "--filter-by-job=^$NAME\$")
    # At the start of a row of the table; the lines that tell what xpk does name it too.
    if grep -Eq "^[| ]*$NAME([| ]|\$)" <<<"$there"; then
      say "$NAME is there already, perhaps at its end; xpk.sh stop deletes it"
      return
    fi
  fi
  # Any status but 42, 75 and 127 to 255 ends the workload for good. How often the others restart it in
  # a row on_host.sh counts; the cluster's own number counts preemptions of many days alike.
  run xpk workload create "${PLACE[@]}" "--workload=$NAME" "--tpu-type=$ACCELERATOR" \
    "--num-slices=$SLICES" "--docker-image=$IMAGE" --max-restarts=1000 \
    --restart-on-exit-codes=75 --termination-grace-period-seconds=600 "--command=$(pod_command)"
}

list() { run xpk workload list "${PLACE[@]}"; }

logs() {
  run gcloud container clusters get-credentials "$CLUSTER" "--project=$PROJECT" "--region=${ZONE%-*}"
  run kubectl logs "--selector=jobset.sigs.k8s.io/jobset-name=$NAME" --all-containers --prefix --tail=200
}

stop() { run xpk workload delete "${PLACE[@]}" "--workload=$NAME" --force; }
delete() {
  confirm "$CLUSTER" "delete: the cluster $CLUSTER in $ZONE of $PROJECT with all its node pools and every workload in it. $WORKDIR stays."
  run xpk cluster delete "${PLACE[@]}" --force
}

# A pod has no gcloud to ask for a secret, no place to be sent directories to, and its cluster a network.
check_pods() {
  local name
  for name in NETWORK SUBNETWORK SERVICE_ACCOUNT LABELS; do
    [[ -z ${!name} ]] || fail "$name: must be empty with xpk, got ${!name}; CREATE_ARG=--custom-cluster-arguments=... has it."
  done
  [[ $RESERVED == 0 ]] || fail 'RESERVED: must be 0 with xpk, got 1; CREATE_ARG=--reservation=NAME has it.'
  [[ ${#JOB_SECRET[@]} == 0 ]] || fail 'JOB_SECRET: must be none with xpk; a secret of Kubernetes in the namespace has it.'
  ((${#INPUTS[@]} < 2)) && [[ ${#INPUTS[@]} == 0 || $CONFIG == inputs/* ]] ||
    fail "${INPUTS[*]}: must be in a bucket for pods, but for a configuration of yours."
}

main() {
  local verb=${1:-} tool
  case $verb in
    -h | --help | help) usage; exit ;;
    cluster | image | launch | list | logs | stop | delete) ;;
    *) fail "verb: must be one of cluster image launch list logs stop delete, got ${verb:-nothing}" ;;
  esac
  YES=0
  [[ $verb != delete || ${!#} != --yes ]] || { YES=1 && set -- "${@:1:$#-1}"; }
  [[ $# -le 2 ]] || fail "arguments: must be VERB [ENV_FILE], got $#"
  read_settings "${2:-runs/env}"
  check_settings
  check CLUSTER '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' 'at most 40 of a-z, 0-9 and -, a letter first'
  check IMAGE '[a-z0-9][A-Za-z0-9._/:@-]*' 'the name of a container image'
  PLACE=("--project=$PROJECT" "--zone=$ZONE" "--cluster=$CLUSTER")
  case $verb in cluster | image | launch) check_run && check_pods ;; esac
  case $verb in image) tool=docker ;; logs) tool=kubectl ;; *) tool=xpk ;; esac
  [[ $DRY_RUN == 1 ]] || command -v "$tool" >/dev/null || fail "$tool: must be installed, got none."
  "$verb"
}

main "$@"
