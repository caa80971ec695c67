# shellcheck shell=bash
# Sourced by queued.sh and xpk.sh: reads and checks the env file, runs or prints commands.
# Values are read as they stand, never evaluated; what no command may hold is refused here.
# shellcheck disable=SC2034,SC2153  # the settings are used by what sources this

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DRY_RUN=${DRY_RUN:-0}
POLL_SECS=${POLL_SECS:-30}
[[ -n ${PYTHON:-} || ! -x $ROOT/.venv/bin/python ]] || PYTHON=$ROOT/.venv/bin/python
PYTHON=${PYTHON:-python3}
KEYS=(PROJECT ZONE NAME ACCELERATOR SLICES SPOT RESERVED RUNTIME_VERSION NETWORK SUBNETWORK SERVICE_ACCOUNT LABELS
  WORKDIR WINDOWS CONFIG INSTALL CLUSTER IMAGE)
# Names of which there may be several lines.
LISTS=(TRAIN_ARG CREATE_ARG SSH_ARG JOB_ENV JOB_SECRET)
TRAIN_ARG=() CREATE_ARG=() SSH_ARG=() JOB_ENV=() JOB_SECRET=()
# What the scripts themselves tell gcloud and xpk.
OUR_FLAGS=' project zone cluster node-id node-count node-prefix accelerator-type runtime-version spot on-demand reserved
 network subnetwork service-account labels tpu-type num-slices quiet format worker command '
# So many restarts in a row without a newer checkpoint, whatever ended the job, and no more.
MOST_RESTARTS=3

fail() {
  printf '%s: error: %s\n' "$(basename "$0")" "$1" >&2
  exit "${2:-2}"
}

say() { printf '%s\n' "$*" >&2; }

# Runs a command; with DRY_RUN=1 prints it instead, quoted for a shell.
run() {
  if [[ $DRY_RUN == 1 ]]; then
    local text
    printf -v text '%q ' "$@"
    printf '%s\n' "${text% }"
  else
    "$@"
  fi
}

read_settings() {
  local file=$1 line key
  local -A seen=()
  [[ -f $file ]] || fail "env file: must exist, got $file; copy tpu_scripts/env.example."
  for key in "${KEYS[@]}"; do printf -v "$key" '%s' ''; done
  while IFS= read -r line || [[ -n $line ]]; do
    [[ -z $line || $line == \#* ]] && continue
    # Without its value, which may be a secret in the wrong place.
    [[ $line == *=* ]] || fail "$file: a line must be NAME=value, got ${line%%[^A-Za-z0-9_]*}"
    key=${line%%=*}
    if [[ " ${LISTS[*]} " == *" $key "* && $key != *' '* ]]; then
      local -n list=$key
      list+=("${line#*=}")
      continue
    fi
    [[ " ${KEYS[*]} " == *" $key "* && $key != *' '* ]] ||
      fail "$file: a name must be one of ${KEYS[*]} ${LISTS[*]}, got $key"
    [[ -z ${seen[$key]:-} ]] || fail "$file: $key must stand once."
    seen[$key]=1
    printf -v "$key" '%s' "${line#*=}"
  done <"$file"
}

# check NAME REGEX WHAT: the whole value must match.
check() {
  local value=${!1} LC_ALL=C
  [[ $value =~ ^($2)$ && $value != *$'\n'* ]] || fail "$1: must be $3, got ${value:-nothing}"
}

check_settings() {
  local LC_ALL=C bucket='gs://[a-z0-9][a-z0-9._-]+[a-z0-9](/[A-Za-z0-9._=-]+)*' argument name flag
  RESERVED=${RESERVED:-0}
  check PROJECT '[a-z][a-z0-9-]{4,28}[a-z0-9]' 'the id of a project'
  check ZONE '[a-z]+-[a-z]+[0-9]+-[a-z]' 'a zone like us-east5-b'
  # 37 characters leave room for -0 ... -99 within the 40 that xpk takes.
  check NAME '[a-z]([a-z0-9-]{0,35}[a-z0-9])?' 'at most 37 of a-z, 0-9 and -, a letter first'
  check ACCELERATOR '[a-z0-9]+-[0-9]+' 'the name of a slice like v6e-64'
  check SLICES '[1-9][0-9]?' 'a number from 1 to 99'
  check SPOT '[01]' '0 or 1'
  check RESERVED '[01]' '0 or 1'
  [[ $SPOT$RESERVED != 11 ]] || fail 'RESERVED: must be 0 where SPOT is 1, got 1'
  check RUNTIME_VERSION '[a-z0-9.-]*' 'the name of an image of TPU VMs, or empty'
  check NETWORK '([a-z0-9][a-z0-9./:_-]*)?' 'the name of a network, projects/HOST/global/networks/NAME, or empty'
  check SUBNETWORK '([a-z0-9][a-z0-9./:_-]*)?' 'the name of a subnetwork, or empty'
  check SERVICE_ACCOUNT '([a-z0-9][a-z0-9-]*@[a-z0-9.-]+)?' 'the e-mail address of a service account, or empty'
  check LABELS '([a-z][a-z0-9_-]*=[a-z0-9_-]*(,[a-z][a-z0-9_-]*=[a-z0-9_-]*)*)?' 'name=value,name=value or empty'
  check WORKDIR "$bucket" 'a gs:// path of plain characters'
  check WINDOWS "$bucket" 'a gs:// path of plain characters'
  check CONFIG '/?[A-Za-z0-9_][A-Za-z0-9._/-]*(:[A-Za-z0-9._-]+)?' 'a shipped configuration like ellama.py:8b or a file of yours'
  [[ /${CONFIG%%:*}/ != */../* ]] || fail "CONFIG: must lead out of no directory by .., got $CONFIG"
  check INSTALL '([A-Za-z0-9._/][A-Za-z0-9._+/-]*\.whl|git\+https://[A-Za-z0-9._/@+-]+)' 'a wheel or git+https://...'
  for argument in "${TRAIN_ARG[@]}"; do
    [[ $argument == --config.* && $argument == *=* ]] ||
      fail "TRAIN_ARG: must be --config.KEY=VALUE, got ${argument:-nothing}"
    [[ $argument != *[[:cntrl:]]* ]] || fail "TRAIN_ARG: must hold no control characters, got ${argument@Q}"
  done
  for name in CREATE_ARG SSH_ARG; do
    local -n arguments=$name
    for argument in "${arguments[@]}"; do
      [[ $argument =~ ^--[a-z][a-z0-9-]*(=.*)?$ && $argument != *[[:cntrl:]]* ]] ||
        fail "$name: must be --flag or --flag=value, got ${argument@Q}"
      flag=${argument%%=*}
      [[ $OUR_FLAGS != *[[:space:]]"${flag#--}"[[:space:]]* ]] || fail "$name: must be no flag that has a name of its own, got $flag"
    done
  done
  for argument in "${JOB_ENV[@]}"; do
    name=${argument%%=*}
    [[ $argument == *=* && $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ && $argument != *[[:cntrl:]]* ]] ||
      fail "JOB_ENV: must be NAME=value without control characters, got ${name@Q}"
    case ${name^^} in
      LIBTPU_INIT_ARGS) fail 'JOB_ENV: must leave LIBTPU_INIT_ARGS alone; TRAIN_ARG=--config.train.xla_flags=...' ;;
      *_KEY | *_TOKEN | *SECRET* | *PASSWORD*)
        fail "JOB_ENV: must hold nothing secret, got $name; JOB_SECRET=$name=NAME_IN_SECRET_MANAGER" ;;
    esac
  done
  for argument in "${JOB_SECRET[@]}"; do
    [[ $argument =~ ^[A-Za-z_][A-Za-z0-9_]*=[A-Za-z0-9_-]+$ ]] ||
      fail 'JOB_SECRET: must be NAME=NAME_IN_SECRET_MANAGER, got something else, which is not said.'
  done
  check_accelerator
}

# Fills FLAGS, the compiler flags, from the one table, which also knows the slices there are.
check_accelerator() {
  local flags
  flags=$(PYTHONPATH=$ROOT "$PYTHON" -m ellama_jax.core.xla_flags "$ACCELERATOR") || exit 2
  eval "$flags" # our own output, quoted by shlex
  FLAGS=$LIBTPU_INIT_ARGS
  case $ACCELERATOR in
    v5e-* | v5lite-*) ACCELERATOR=v5litepod-${ACCELERATOR#*-} ;;
    v5-*) ACCELERATOR=v5p-${ACCELERATOR#*-} ;;
    v7x-*) ACCELERATOR=tpu7x-${ACCELERATOR#*-} ;;
  esac
}

# Fills ARGUMENTS, those of `ellama train` on every host, and checks what the run is made of by the
# code that will train: with it a wrong key costs a line here and no slice. INPUTS are the files that
# the hosts must be sent, IN_BUCKET lines of KEY and PATH, PACKAGES what they install beside.
check_run() {
  local kind key value found run=("--config.data.windows_dir=$WINDOWS" "${TRAIN_ARG[@]}")
  INPUTS=() IN_BUCKET=() PACKAGES=()
  [[ $INSTALL != *.whl || -f $INSTALL ]] || fail "INSTALL: must exist, got $INSTALL; pip wheel --no-deps -w dist ."
  found=$(PYTHONPATH=$ROOT "$PYTHON" -m ellama_jax.plan.launch "${SLICES}x$ACCELERATOR" "--config=$CONFIG" "${run[@]}") || exit 2
  # A shipped one came with the package.
  if [[ $CONFIG != configs/* && -f ${CONFIG%%:*} ]]; then
    INPUTS+=("${CONFIG%%:*}")
    value=${CONFIG##*/}
    CONFIG=inputs/$value
  fi
  ARGUMENTS=("--config=$CONFIG" "--workdir=$WORKDIR" "${run[@]}")
  while IFS=$'\t' read -r kind key value; do
    case $kind in
      package) PACKAGES+=("$key") ;;
      bucket) IN_BUCKET+=("$key" "$value") ;;
      send) INPUTS+=("$value") && ARGUMENTS+=("--config.$key=inputs/$(basename "$value")") ;;
    esac
  done <<<"$found"
}

# Asks before what cannot be undone; --yes is for scripts.
confirm() {
  local answer=''
  say "$2"
  [[ $YES == 0 && $DRY_RUN == 0 ]] || return 0
  [[ -t 0 ]] || fail "delete: must be confirmed, got no terminal to ask on; add --yes."
  read -r -p "Type $1 to delete it: " answer || true
  [[ $answer == "$1" ]] || fail "$1: nothing was deleted." 1
}
