#!/bin/sh
# Writes the append-only files of a Redis that runs to stdout, as a tar. It runs where Redis runs:
#   docker compose exec -T redis sh <deploy/backup_redis.sh >backup.tar
# DATA is the folder of Redis, PASSWORD_FILE holds its password, CLI is the command with its options.
set -eu
data=${DATA:-/data}
password_file=${PASSWORD_FILE-/redis-auth/password}
cli=${CLI:-redis-cli}
if [ -n "$password_file" ]; then
  REDISCLI_AUTH=$(cat "$password_file")
  export REDISCLI_AUTH
fi

ask() { # $cli may have options
  $cli "$@" || exit 1
}

# No rewrite may begin meanwhile, or the files would be those of two moments. Redis' manual describes the steps.
setting=$(ask config get auto-aof-rewrite-percentage | tail -n 1)
trap 'ask config set auto-aof-rewrite-percentage "$setting" >/dev/null; rm -rf "$data/backup"' EXIT
ask config set auto-aof-rewrite-percentage 0 >/dev/null
while ask info persistence | grep -Eq 'aof_rewrite_(in_progress|scheduled):1'; do sleep 1; done
ask info persistence | grep -q 'aof_enabled:1' || {
  echo "backup_redis.sh: this Redis has no append-only file" >&2
  exit 1
}
# Links take no room, and stay if Redis deletes the files.
rm -rf "$data/backup"
mkdir "$data/backup"
cp -lR "$data/appendonlydir" "$data/backup/appendonlydir" 2>/dev/null || {
  mkdir -p "$data/backup/appendonlydir"
  for file in "$data"/appendonlydir/*; do ln "$file" "$data/backup/appendonlydir/"; done
}
# The newest file grows meanwhile. It is cut off at the length that it had, and Redis takes it up to its last whole change.
tar -C "$data/backup" -cf - appendonlydir || [ $? -eq 1 ]
