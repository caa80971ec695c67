# shellcheck shell=bash
# Sourced by queued.sh and xpk.sh: reads and checks the env file, runs or prints commands.
# Values are read as they stand, never evaluated; what no command may hold is refused here.
# shellcheck disable=SC2034,SC2153  # the settings are used by what sources this

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DRY_RUN=${DRY_RUN:-0}
POLL_SECS=${POLL_SECS:-30}
KEYS=(PROJECT ZONE NAME ACCELERATOR SLICES SPOT RUNTIME_VERSION WORKDIR WINDOWS CONFIG INSTALL CLUSTER IMAGE)
TRAIN_ARGS=()
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
    [[ $line == *=* ]] || fail "$file: a line must be NAME=value, got $line"
    key=${line%%=*}
    if [[ $key == TRAIN_ARG ]]; then
      TRAIN_ARGS+=("${line#*=}")
      continue
    fi
    [[ " ${KEYS[*]} " == *" $key "* && $key != *' '* ]] ||
      fail "$file: a name must be one of ${KEYS[*]} TRAIN_ARG, got $key"
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
  local LC_ALL=C bucket='gs://[a-z0-9][a-z0-9._-]+[a-z0-9](/[A-Za-z0-9._=-]+)*' argument
  check PROJECT '[a-z][a-z0-9-]{4,28}[a-z0-9]' 'the id of a project'
  check ZONE '[a-z]+-[a-z]+[0-9]+-[a-z]' 'a zone like us-east5-b'
  # 37 characters leave room for -0 ... -99 within the 40 that xpk takes.
  check NAME '[a-z]([a-z0-9-]{0,35}[a-z0-9])?' 'at most 37 of a-z, 0-9 and -, a letter first'
  check ACCELERATOR '[a-z0-9]+-[0-9]+' 'the name of a slice like v6e-64'
  check SLICES '[1-9][0-9]?' 'a number from 1 to 99'
  check SPOT '[01]' '0 or 1'
  check RUNTIME_VERSION '[a-z0-9.-]*' 'the name of an image of TPU VMs, or empty'
  check WORKDIR "$bucket" 'a gs:// path of plain characters'
  check WINDOWS "$bucket" 'a gs:// path of plain characters'
  check CONFIG '/?[A-Za-z0-9_][A-Za-z0-9._/-]*(:[A-Za-z0-9._-]+)?' 'a shipped configuration like ellama.py:8b or a file of yours'
  [[ /${CONFIG%%:*}/ != */../* ]] || fail "CONFIG: must lead out of no directory by .., got $CONFIG"
  check INSTALL '([A-Za-z0-9._/][A-Za-z0-9._+/-]*\.whl|git\+https://[A-Za-z0-9._/@+-]+)' 'a wheel or git+https://...'
  for argument in "${TRAIN_ARGS[@]}"; do
    [[ $argument == --config.* && $argument == *=* ]] ||
      fail "TRAIN_ARG: must be --config.KEY=VALUE, got ${argument:-nothing}"
    [[ $argument != *[[:cntrl:]]* ]] || fail "TRAIN_ARG: must hold no control characters, got ${argument@Q}"
  done
  check_accelerator
}

# Fills FLAGS, the compiler flags, from the one table, which also knows the slices there are.
check_accelerator() {
  local flags
  flags=$(PYTHONPATH=$ROOT "${PYTHON:-python3}" -m ellama_jax.core.xla_flags "$ACCELERATOR") || exit 2
  eval "$flags" # our own output, quoted by shlex
  FLAGS=$LIBTPU_INIT_ARGS
  case $ACCELERATOR in
    v5e-* | v5lite-*) ACCELERATOR=v5litepod-${ACCELERATOR#*-} ;;
    v5-*) ACCELERATOR=v5p-${ACCELERATOR#*-} ;;
    v7x-*) ACCELERATOR=tpu7x-${ACCELERATOR#*-} ;;
  esac
}

# Fills ARGUMENTS, those of `ellama train` on every host.
train_arguments() {
  ARGUMENTS=("--config=$CONFIG" "--workdir=$WORKDIR" "--config.data.windows_dir=$WINDOWS" "${TRAIN_ARGS[@]}")
}
