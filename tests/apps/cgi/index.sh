#!/bin/sh
# A CGI script: one process a request.
case "$PATH_INFO" in
  /hello) printf 'Content-Type: text/plain\nContent-Length: 5\n\nhello' ;;
  /pid) printf 'Content-Type: text/plain\n\n%s' "$PPID" ;;
  /sha)
    sum=$(sha256sum)
    printf 'Content-Type: text/plain\n\n%s %s' "$CONTENT_LENGTH" "${sum%% *}"
    ;;
  /stream)
    printf 'Content-Type: text/plain\n\nfirst\n'
    while [ ! -e "${QUERY_STRING#gate=}" ]; do sleep 0.005; done
    echo last
    ;;
  /endless)
    printf 'Content-Type: text/plain\n\n'
    # Written by a process of its own, which has to end as well.
    while :; do echo tick; sleep 0.005; done &
    echo "ticks come from $!" >&2
    wait
    ;;
  /fail)
    echo 'told to fail' >&2
    exit 1
    ;;
  /cookies)
    printf 'Content-Type: text/plain\nSet-Cookie: a=1; Path=/\n'
    printf 'Set-Cookie: b=2; Expires=Thu, 01 Jan 1970 00:00:00 GMT\n\n'
    ;;
  /echo/*) printf 'Content-Type: text/plain\nX-Echo: %s\n\n%s' "$HTTP_X_NAME" "$PATH_INFO" ;;
  # The other kinds of answers that a script may give, and what it is told.
  /missing) printf 'Status: 404 Not Found\nContent-Type: text/plain\n\nnothing here' ;;
  /away) printf 'Location: https://example.com/\n\n' ;;
  /inside) printf 'Location: /hello?from=inside\n\n' ;;
  /circle) printf 'Location: /circle\n\n' ;;
  /nph) printf 'HTTP/1.1 201 Created\nContent-Type: text/plain\n\nwhole' ;;
  /env*) printf 'Content-Type: text/plain\n\n'; env ;;
  *) printf 'Status: 404\nContent-Type: text/plain\n\n' ;;
esac
