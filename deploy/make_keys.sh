#!/bin/sh
# Makes the keys of the service and the password of its Redis, each where it is missing. It never replaces one by itself.
#
#   make_keys.sh KEYS_FOLDER REDIS_FOLDER                       what the composition runs at each start
#   make_keys.sh KEYS_FOLDER REDIS_FOLDER add api_keys          one more key, beside the old ones; prints it
#   make_keys.sh KEYS_FOLDER REDIS_FOLDER only-newest api_keys  all keys but the newest are gone
#   make_keys.sh KEYS_FOLDER REDIS_FOLDER new-password          another password of Redis
#
# The service takes the keys of read_keys, api_keys and admin_keys. It reads them when it starts. Containers of the
# composition read the files; on the host they lie in volumes, which only its administrators reach.
set -eu
umask 022
keys=$1
redis=$2

put() { # a file, with stdin: a half-written file is no key
  cat >"$1.new"
  mv "$1.new" "$1"
}
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
make() {
  [ -s "$1" ] && return
  random | put "$1"
  echo "made $1"
}
key_file() {
  case ${1:-} in
    read_keys | api_keys | admin_keys) echo "$keys/$1" ;;
    *)
      echo "make_keys.sh: which keys? read_keys, api_keys or admin_keys" >&2
      exit 2
      ;;
  esac
}

case ${3:-} in
  '') ;;
  add)
    file=$(key_file "${4:-}")
    key=$(random)
    { if [ -s "$file" ]; then cat "$file" && echo; fi && printf '%s\n' "$key"; } | grep . | put "$file"
    echo "$key"
    exit
    ;;
  only-newest)
    file=$(key_file "${4:-}")
    grep . "$file" | tail -n 1 | put "$file"
    exit
    ;;
  new-password) rm -f "$redis/password" "$redis/url" ;;
  *)
    sed -n '4,7s/^# *//p' "$0" >&2
    exit 2
    ;;
esac

make "$keys/api_keys"
make "$keys/admin_keys"
make "$redis/password"
printf 'redis://:%s@redis:6379/0\n' "$(cat "$redis/password")" | put "$redis/url"
