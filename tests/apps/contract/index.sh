#!/bin/sh
# The contract suite's app, for CGI.
name=${PATH_INFO#/}
kind=${name#*/}
name=${name%%/*}

plain() { printf 'Content-Type: text/plain\n\n'; }
wait_for() { while [ ! -e "$1/go" ]; do sleep 0.005; done; }
fail() {
  echo 'told to fail' >&2
  [ "$kind" = kill ] && kill -9 $$
  exit 1
}

case "$name" in
  hello) plain; printf hello ;;
  pid) plain; printf %s "$PPID" ;;
  ready) plain; printf "the app's" ;;
  env) plain; echo "cwd=$PWD"; env ;;
  sha)
    sum=$(sha256sum)
    plain
    printf '%s %s' "$CONTENT_LENGTH" "${sum%% *}"
    ;;
  ignore) plain; printf ignored ;;
  part) head -c 1000 >/dev/null; plain; printf left ;;
  file)
    printf 'Content-Length: %s\n' "$(wc -c <"$QUERY_STRING")"
    plain
    cat "$QUERY_STRING"
    ;;
  pieces) plain; cat "$QUERY_STRING" ;;
  wait)
    echo $$ >"$QUERY_STRING/started.new" && mv "$QUERY_STRING/started.new" "$QUERY_STRING/started"
    wait_for "$QUERY_STRING"
    : >"$QUERY_STRING/ended"
    plain
    printf 'done'
    ;;
  events | ticks)
    echo $$ >"$QUERY_STRING/started"
    printf 'Content-Type: text/event-stream\n\ndata: 0\n\n'
    while [ ! -e "$QUERY_STRING/go" ]; do
      sleep 0.02
      [ "$name" = ticks ] && printf 'data: 0\n\n'
    done
    ;;
  fail) fail ;;
  break)
    plain
    echo first
    wait_for "$QUERY_STRING"
    fail
    ;;
  fields)
    printf 'X-Latin: %s\nX-Out: a\nX-Out: b\nSet-Cookie: a=1\nSet-Cookie: b=2\n' "$HTTP_X_LATIN"
    plain
    printf '%s\n' "$HTTP_X_MANY" "$HTTP_COOKIE" "$HTTP_X_LATIN"
    ;;
  nobody) printf 'Status: %s X\nContent-Length: 5\n' "$kind"; plain; printf hello ;;
  client) plain; printf %s "$REMOTE_ADDR$HTTP_RIP_CLIENT" ;;
  *) printf 'Status: 404\n'; plain ;;
esac
